"""Batches that overlap come out in order and complete, and torch's own layers give what Keras' give.

Legend: N images, D features of a layer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

from bottleneck.networks.base import Base
from bottleneck.networks.runtimes.torch_runtime import one_late

ROOT = Path(__file__).resolve().parents[2]


def recorder(events: list[str]) -> Callable[[int, str], Callable[[], str]]:
    """A `begin` that records what is begun and what is waited for."""

    def begin(number: int, batch: str) -> Callable[[], str]:
        events.append(f"begin {number}")

        def wait() -> str:
            events.append(f"wait {number}")
            return batch.upper()

        return wait

    return begin


@pytest.mark.parametrize("num_batches", [0, 1, 2, 5])
def test_a_batch_is_waited_for_when_the_next_has_begun(num_batches: int) -> None:
    events: list[str] = []
    batches = "abcde"[:num_batches]
    assert list(one_late(recorder(events), batches)) == list(batches.upper())
    begun = [f"begin {number}" for number in range(num_batches)]
    waited = [f"wait {number}" for number in range(num_batches)]
    pairs = zip(begun[1:], waited, strict=False)
    assert events == [*begun[:1], *(event for pair in pairs for event in pair), *waited[-1:]]


def test_two_batches_are_under_way_at_most() -> None:
    events: list[str] = []
    for _ in one_late(recorder(events), "abcde"):
        begun, waited = (sum(event.startswith(kind) for event in events) for kind in ("begin", "wait"))
        assert begun - waited <= 1  # before the next is begun, so that its buffers are free


class LateForward:
    """Stands in for a network on a GPU: a feature is an image's first value, and batches have one shape."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        raise AssertionError("called, where a stream was to be had")

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        def begin(_: int, pixels_NHWC: np.ndarray) -> Callable[[], list[np.ndarray]]:
            self.shapes.append(pixels_NHWC.shape)
            return lambda: [pixels_NHWC[:, 0, 0, :1].astype(np.float32)]

        return one_late(begin, batches)


@pytest.mark.parametrize("num_images", [0, 3, 4, 5, 9])
def test_a_base_streams_full_batches_and_gives_every_image_its_features(num_images: int) -> None:
    base, forward = Base.__new__(Base), LateForward()
    base.spec, base.batch_size, base.is_fixed, base._forward = tiny.spec(dims=(1,)), 4, True, forward
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (num_images, 2, 2, 3), np.uint8)
    expected_ND = pixels_NHWC[:, 0, 0, :1].astype(np.float32)
    sizes = [len(batch) for [batch] in base.stream(pixels_NHWC)]
    assert sizes == [4] * (num_images // 4) + [num_images % 4] * (num_images % 4 > 0)
    assert forward.shapes == [(4, 2, 2, 3)] * len(sizes)
    np.testing.assert_array_equal(base(pixels_NHWC)[0], expected_ND)


def run_on_torch(script: str, folder: Path) -> None:
    """Keras has one backend a process: torch in another."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_layers_that_stay_channels_last_give_what_keras_layers_give(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = """
import keras
import numpy as np
import torch
from keras import layers
from bottleneck.networks.runtimes.torch_runtime import keep_channels_last

keras.utils.set_random_seed(0)
outside = keras.Input((24, 23, 3))
inside = keras.Input((24, 23, 8))
inner = keras.Model(inside, layers.MaxPooling2D()(layers.Conv2D(8, 3, padding="same", activation="relu")(inside)))
flow = layers.Conv2D(8, 3, padding="same", activation="relu", bias_initializer="normal")(outside)
flow = inner(flow)
flow = layers.Conv2D(6, (1, 3), activation="tanh", use_bias=False)(flow)
flow = layers.Conv2D(6, 3, padding="same", dilation_rate=2, bias_initializer="normal")(flow)
flow = layers.Conv2D(6, 3, padding="same", strides=2, activation="relu")(flow)  # pads one side more: Keras' own
flow = layers.Conv2D(6, 3, padding="same", groups=2)(flow)
flow = layers.MaxPooling2D(2, strides=1)(flow)
flow = layers.MaxPooling2D(2, padding="same")(flow)
model = keras.Model(outside, flow)
images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 24, 23, 3)).astype(np.float32))
with torch.inference_mode():
    expected = model(images.to(model.weights[0].value.device)).cpu()
    keep_channels_last(model)
    found = model(images.to(model.weights[0].value.device)).cpu()
changed = [layer for one in (model, inner) for layer in one.layers if "call" in vars(layer)]
assert len(changed) == 5, changed
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
"""
    run_on_torch(script, tmp_path)


@pytest.mark.gpu
def test_a_gpu_gives_overlapped_what_keras_gives_batch_by_batch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch finds")
    script = """
import numpy as np
import torch
from bottleneck.networks.base import Base
from bottleneck.networks.prepared import least_cosine
from bottleneck.networks.resolve import load_feature_model
from bottleneck.spec import FeatureRequest

request = FeatureRequest(base="vgg16", weights="random:0", dtype="float32")
pixels_NHWC = np.random.default_rng(0).integers(0, 256, (41, 224, 224, 3), np.uint8)
_, model, _ = load_feature_model(request, "float32")
with torch.inference_mode():
    batches = [model(torch.from_numpy(pixels_NHWC[i : i + 8]).cuda()) for i in range(0, 41, 8)]
expected = np.concatenate([(one[0] if isinstance(one, list) else one).cpu().numpy() for one in batches])
for precision, cosine in (("float32", 0.999999), ("bfloat16", 0.9999)):
    base = Base.of(request, precision, 8)
    [found] = base(pixels_NHWC)
    one_by_one = [base(pixels_NHWC[i : i + 8])[0] for i in range(0, 41, 8)]
    np.testing.assert_array_equal(found, np.concatenate(one_by_one))
    assert least_cosine([found], (expected,)) >= cosine, precision
"""
    run_on_torch(script, tmp_path)
