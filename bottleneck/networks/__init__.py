"""The frozen network: bases, weights, layers, and the compiled function from pixels to features.

    base          The frozen network: one compiled function from uint8 pixels to features.
    build         Build the networks of the catalog in code.
    class_names   The names of a network's classes: ImageNet's from Keras' file, or a list of the user.
    compiled      Compile a network into one function from uint8 pixels to pooled features.
    describe      Describe a network's layers and the features they give, without weights.
    device        The device a network runs on, and whether it has bfloat16 in hardware.
    keras_import  Import Keras without the optional libraries that it would load and this project never uses.
    layers        The layers of every base by name, to reject a misspelt one without starting Keras.
    resolve       Resolve a request into a spec: weights, layers and precision.
    weights       Load weights by name, from a file or store, or random; their identity is the sha256 of the values.
    weights_file  Check the structure of an HDF5 weights file before its values are read.

Imports storage; knows nothing of sources.
"""
