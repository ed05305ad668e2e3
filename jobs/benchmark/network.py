"""The network alone: its rate, its operations per image, and the device's matrix rate."""

import math
import time

from bottleneck.networks.base import Base
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.weights import load_network
from bottleneck.spec import FeatureSpec, split_layer
from jobs.benchmark.process import Figures

NETWORK_SECONDS = 5.0
"""At least, for the network alone."""
MATRIX_SECONDS = 3.0
MATRIX_SIZES = {False: 2048, True: 8192}
"""Rows and columns on a CPU, and on a GPU."""
AT_ONCE = {False: (1, 4), True: (8, 32)}
"""Batches of a call and matrix products of a round on a CPU, and on a GPU, which is to have the next at hand."""


def measure_network(spec: FeatureSpec, batch_size: int, num_threads: int, num_images: int) -> Figures:
    """One network as a job's actor holds it, fed with the same random pixels again and again."""
    import numpy as np

    base = Base(spec, batch_size, num_threads=num_threads)
    shape = (batch_size, spec.image_size_px, spec.image_size_px, 3)
    num_batches = AT_ONCE[is_gpu(base.device)][0]
    pixels_NHWC = np.concatenate([np.random.default_rng(0).integers(0, 256, shape, np.uint8)] * num_batches)
    base(pixels_NHWC)
    done, started, seconds = 0, time.perf_counter(), 0.0
    while done < num_images or seconds < NETWORK_SECONDS:
        base(pixels_NHWC)
        done += len(pixels_NHWC)
        seconds = time.perf_counter() - started
    gflop = operations_per_image(spec) / 1e9
    matrix_gflop = matrix_operations_per_second(spec, base.device) / 1e9
    return {
        "images_per_second": done / seconds,
        "batch_size": batch_size,
        "threads": num_threads,
        "device": base.device,
        "gflop_per_image": gflop,
        "matrix_gflop_per_second": matrix_gflop,
        "share_of_matrix_rate": gflop * done / seconds / matrix_gflop if matrix_gflop else None,
    }


def operations_per_image(spec: FeatureSpec) -> float:
    """Floating point operations of the layers with weights: two for each value of a kernel, at each place it is put."""
    keras = import_keras()
    network = load_network(spec.base, "random:0", spec.layers)
    wanted = [network.get_layer(split_layer(layer)[0]).output for layer in spec.layers]
    operations = 0.0
    for layer in keras.Model(network.input, wanted).layers:
        kernels = [weight for weight in layer.weights if len(weight.shape) > 1]
        places = math.prod(layer.output.shape[1:-1]) if kernels else 0
        operations += sum(2.0 * places * math.prod(kernel.shape) for kernel in kernels)
    return operations


def matrix_operations_per_second(spec: FeatureSpec, device: str) -> float:
    """What the device reaches on products of large square matrices in the spec's precision.

    A network of convolutions is about as fast, and faster with Winograd's algorithm, which multiplies less.
    """
    keras = import_keras()
    size, num_products = MATRIX_SIZES[is_gpu(device)], AT_ONCE[is_gpu(device)][1]
    one, other = (keras.random.normal((size, size), dtype=spec.precision) for _ in range(2))

    def multiply(times: int) -> None:
        for _ in range(times):
            product = keras.ops.matmul(one, other)
        float(keras.ops.convert_to_numpy(keras.ops.cast(product[0, 0], "float32")))  # waits for the device

    multiply(2)
    times, started, seconds = 0, time.perf_counter(), 0.0
    while seconds < MATRIX_SECONDS:
        multiply(num_products)
        times += num_products
        seconds = time.perf_counter() - started
    return 2.0 * size**3 * times / seconds


def is_gpu(device: str) -> bool:
    """Whether a base's `device` is one."""
    return not device.lower().endswith(("cpu", "cpu:0"))


def network_line(network: Figures) -> str:
    """What the network's rate means, for a person to read."""
    needed = f"the network needs {network['gflop_per_image']:.2f} GFLOP an image"
    if network["share_of_matrix_rate"] is None:
        return needed
    return (
        f"{needed} and reaches {network['gflop_per_image'] * network['images_per_second']:,.0f} GFLOP/s, "
        f"{network['share_of_matrix_rate']:.2f} of what large matrices do "
        f"here ({network['matrix_gflop_per_second']:,.0f})"
    )
