"""The classifier on features: splits, fit, evaluation, predictions, export.

    as_sklearn        Make scikit-learn's own estimator of a head, for where this package is not installed.
    coverage          Count how many images a head answers if it may leave some undecided, and how many rightly.
    dealing           Deal groups of images to the held-out part and the folds, evenly for every class.
    evaluate          The evaluation of a head: accuracy, scores per class, calibration, confusion, mistakes.
    evaluator         Count a head's predictions batch by batch, in flat memory.
    export            Export a network, alone or with a head, as a model: uint8 in, features or probabilities out.
    export_facts      What a program must know of an exported model, as a file beside it.
    export_onnx       Join a head to its network's graph, as one ONNX file: uint8 images in, probabilities out.
    fit               Fit a head on a features dataset: read labels, split, fit, evaluate on held-out images.
    fit_arrays        Fit a head on arrays, in this process.
    head              The classifier on features, with scikit-learn's interface; saved as safetensors and JSON.
    head_file         Read, check and write the files of a head; nothing in them is executed.
    held_out          The images that a fit held out: what a head says of them, and which they were.
    label_issues      Find images that are likely mislabelled, by what heads say that have not seen them.
    label_sets        Labels that are sets of names, as `cat;dog`.
    labels_evaluation Evaluate a head of images with several labels each: average precision, F1 at its thresholds.
    near_copies       Find held-out images that have a near copy among the fitted ones.
    origin            Where a head comes from: the features it was fitted on, and how.
    predict           Predict the classes of images or of stored features, as an output of their own.
    predicted         Count the predicted classes of an output.
    prediction_plan   Plan predictions, and check that an output was planned for the same ones.
    prediction_table  Predictions of images as a table: the best classes of each, or all of them.
    request           The options of a head, and their checks.
    splits            Split images into a held-out part and folds: stratified, deterministic, copies together.
    test_set          A separate test set: features of other images, checked before the fit and evaluated after it.
    solver/           Find the optimum of a fit.

Imports extract and the folders below it; no Ray.
"""
