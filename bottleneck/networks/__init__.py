"""The frozen network: bases, weights, layers, and the compiled function from pixels to features.

    base           The frozen network: one compiled function from uint8 pixels to features.
    build          Build the networks of the catalog in code.
    cache          The user's cache of prepared networks and of the results of probes.
    class_names    The names of a network's classes: ImageNet's from Keras' file, or a list of the user.
    describe       Describe a network's layers and the features they give, without weights.
    device         The device a network runs on, and whether it is fast in bfloat16 or int8.
    feature_model  Build the model that takes a network's features: preprocessing before it, pooling after it.
    keras_import   Import Keras without the optional libraries that it would load and this project never uses.
    layers         The layers of every base by name, to reject a misspelt one without starting Keras.
    onnx_features  Cut from a user's ONNX file the graph from uint8 pixels to features.
    onnx_file      Read a user's ONNX file and check it.
    prepare        Prepare a network: from the cache, or with Keras in a process of its own.
    prepared       A prepared network: what a request resolves to, and the ONNX graph from uint8 pixels to features.
    quantize       Quantize a network's graph to int8, calibrated with photos that every installation has.
    resolve        Resolve a request into a spec: weights, layers and precision.
    to_onnx        Convert a Keras model into an ONNX graph from uint8 pixels to features.
    weights        Load weights by name, from a file or store, or random; their identity is the sha256 of the values.
    weights_file   Check the structure of an HDF5 weights file before its values are read.
    runtimes/      How a prepared network is executed.

Imports storage; knows nothing of sources.
"""
