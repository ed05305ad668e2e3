"""Find the optimum of a fit, in one process or many.

    certify         Certify a fitted head: how far its own arrays are above the optimum, by one pass over features.
    coordinator     Find the optimum of a fit: a coordinator asks the workers that hold the images.
    fit_data        The data of a fit: workers, class indices, folds, weights and scaling.
    gram            Solve data that fits one worker: rotate it into its span, then follow growing C fold by fold.
    grid            Fill the grid of a cross-validation and choose the best cell.
    label_counts    Count what was predicted for images with several labels each, in flat memory.
    losses          The losses of linear classifiers: values, slopes and curvatures by scores.
    metrics         Count what was predicted for the images a fold left out, and score it by a metric.
    mlp             The tutorials' small network: one hidden layer, relu, softmax; Adam on minibatches.
    mlp_fit         Fit the small network, on rotated images, images, or images that stay with their workers.
    newton          Solve many regularised linear problems over the same rows, by truncated Newton steps in lockstep.
    objective       The sums of losses over rows: values, gradients, Hessian products.
    out_of_fold     What the folds of the best C say of the images they left out, and the temperature that follows.
    partial         Keep the results of an unfinished fit in the place of its head, for the next run.
    preconditioner  Approximate the inverse Hessian of softmax and one-column losses, for conjugate gradients.
    protocol        How a coordinator asks the workers of a fit: methods of `Worker`, here or elsewhere.
    rows            The rows of one worker, converted block by block and gone through by several threads.
    sums_fit        Fit images that stay with their workers, by sums over all values of C and folds in one pass.
    whole_fit       Fit data that one worker holds: the Gram matrix of the images, or the images themselves.
    worker          A worker of a fit: reads its images, and computes on them what the coordinator asks.

Imports dataset, and from heads only splits, evaluation and the request; no Ray.
"""
