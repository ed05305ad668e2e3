"""How a prepared network is executed: one function from uint8 pixels to features, by several libraries.

    choose            Choose the runtime of a network: the one asked for, or the fastest one here by measurement.
    keras_runtime     Run a network with Keras, on the backend KERAS_BACKEND names: GPUs, and bfloat16 on CPUs.
    ncnn_runtime      Run plain chains of convolutions, such as VGG16, with ncnn's Winograd kernels.
    onnx_runtime      Run a network's graph with ONNX Runtime.
    openvino_runtime  Run a network's graph with OpenVINO.
    probe             Time a network's runtimes on this machine, compare their features, and remember the result.
    table             The runtimes that take a network as a graph: what they are called, need and can do.
    torch_runtime     Run a Keras network with torch on a GPU: copies beside computing, layers channels last.

Each runtime is held to the same reference features, so the runtime is no part of a fingerprint.
"""
