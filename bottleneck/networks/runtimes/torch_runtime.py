"""Run a Keras network with torch on a GPU: copies beside computing, layers channels last.

Legend: N images of a batch, H x W places, I and O channels of a kernel's input and output.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def one_late(begin: Callable[[int, Batch], Callable[[], Result]], batches: Iterable[Batch]) -> Iterator[Result]:
    """Begin each batch before the one before it is waited for, and yield the results in order.

    So two are under way at most, an even and an odd one.

    Args:
        begin: starts the work on a batch, told its number, and returns what waits for its result.
    """
    wait: Callable[[], Result] | None = None
    for number, batch in enumerate(batches):
        before, wait = wait, begin(number, batch)
        if before is not None:
            yield before()
    if wait is not None:
        yield wait()


class OverlappedForward:
    """A network on a GPU that takes batches one after the other: while one is computed, the next is copied to the card.

    Pixels go through two pairs of buffers, one in pinned memory, which the card reads by itself, and one on the card.
    One stream at a time: they share the buffers.
    """

    def __init__(self, network: Callable[[Any], list[Any]], shape_NHWC: tuple[int, ...]) -> None:
        """Set up the buffers.

        Args:
            network: from pixels on the card to features on the card.
            shape_NHWC: of every batch.
        """
        import torch

        self._torch, self._network = torch, network
        self._pinned = [torch.empty(shape_NHWC, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._on_card = [torch.empty(shape_NHWC, dtype=torch.uint8, device="cuda") for _ in range(2)]
        self._there, self._back = torch.cuda.Stream(), torch.cuda.Stream()

    def __call__(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        [outputs] = self.stream([pixels_NHWC])
        return outputs

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        self._torch.cuda.synchronize()  # an earlier stream may have been left before its end
        return one_late(self._begin, batches)

    def _begin(self, number: int, pixels_NHWC: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Queue a batch: copy it there, compute, copy what comes out back. The buffers it takes are free by now."""
        cuda, pinned, on_card = self._torch.cuda, self._pinned[number % 2], self._on_card[number % 2]
        np.copyto(pinned.numpy(), pixels_NHWC)
        computing = cuda.current_stream()
        with self._torch.inference_mode():
            with cuda.stream(self._there):
                on_card.copy_(pinned, non_blocking=True)
            computing.wait_stream(self._there)
            outputs = self._network(on_card)
            self._back.wait_stream(computing)
            with cuda.stream(self._back):
                copies = [output.to("cpu", non_blocking=True) for output in outputs]  # into pinned memory
            done = self._back.record_event()

        def wait() -> list[np.ndarray]:
            done.synchronize()
            outputs.clear()  # until here, or their memory would be used again before it is copied
            return [copy.numpy() for copy in copies]

        return wait


def keep_channels_last(model: Any) -> None:
    """Let a model's convolutions and largest-value pools take what flows between them as it is, channels last.

    Keras' own copy every input to channels first and back, which takes longer than the convolutions. Convolutions in
    groups or with one side padded more than the other, and pools that overlap, stay Keras' own.
    """
    import keras

    for layer in model.layers:
        if hasattr(layer, "layers"):
            keep_channels_last(layer)
        elif getattr(layer, "data_format", "") != "channels_last":
            continue
        elif type(layer) is keras.layers.Conv2D and layer.groups == 1 and _padding(layer) is not None:
            layer.call = partial(_convolve, layer, layer.activation is keras.activations.relu)
        elif type(layer) is keras.layers.MaxPooling2D and layer.padding == "valid" and layer.strides == layer.pool_size:
            layer.call = partial(_pool, layer)


def _padding(layer: Any) -> list[int] | None:
    """Places that a convolution adds on each side, for H and W; None where the sides differ."""
    if layer.padding == "valid":
        return [0, 0]
    totals = [rate * (size - 1) for rate, size in zip(layer.dilation_rate, layer.kernel_size, strict=True)]
    if layer.padding != "same" or max(layer.strides) > 1 or any(total % 2 for total in totals):
        return None
    return [total // 2 for total in totals]


def _convolve(layer: Any, ends_in_relu: bool, inputs_NHWC: Any) -> Any:
    """Conv2D.call; on a card bias and ReLU are part of cuDNN's kernel, which saves two passes through its memory."""
    import torch

    kernel_OIHW = layer.kernel.value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    bias = layer.bias.value if layer.use_bias else None
    how = (layer.strides, _padding(layer), layer.dilation_rate, 1)
    inputs_NIHW = inputs_NHWC.permute(0, 3, 1, 2)
    if ends_in_relu and inputs_NHWC.is_cuda:
        return torch.cudnn_convolution_relu(inputs_NIHW, kernel_OIHW, bias, *how).permute(0, 2, 3, 1)
    outputs_NHWC = torch.nn.functional.conv2d(inputs_NIHW, kernel_OIHW, bias, *how).permute(0, 2, 3, 1)
    return outputs_NHWC if layer.activation is None else layer.activation(outputs_NHWC)


def _pool(layer: Any, inputs_NHWC: Any) -> Any:
    """MaxPooling2D.call, without the places of the largest values, which torch's own kernel stores, too."""
    num_images, height, width, num_channels = inputs_NHWC.shape
    rows, columns = layer.pool_size
    whole_NHWC = inputs_NHWC[:, : height // rows * rows, : width // columns * columns]
    shape = (num_images, height // rows, rows, width // columns, columns, num_channels)
    return whole_NHWC.reshape(shape).amax((2, 4))
