"""Networks on images of another size than their own, as far as they take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from bottleneck.dataset.export import export_features
from bottleneck.dataset.features import open_features
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.extract.local import extract_images
from bottleneck.networks.base import Base
from bottleneck.networks.prepared import differences
from bottleneck.networks.resolve import resolve
from bottleneck.networks.weights import load_network
from bottleneck.pixels import PixelsRequest
from bottleneck.spec import FeatureRequest

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras.*")

BASE = "mobilenet_0.25"
LAYERS = ("conv_pw_13_relu:avg", "conv_pw_13_relu:none")


def request(
    image_size: int | None, base: str = BASE, weights: str = "random:0", layers: tuple[str, ...] = LAYERS
) -> FeatureRequest:
    asked = PixelsRequest(image_size=image_size)
    return FeatureRequest(base=base, weights=weights, layers=layers, dtype="float32", precision="float32", input=asked)


@pytest.mark.parametrize("runtime", ["keras", "onnxruntime"])
def test_features_are_keras_own_at_that_size(runtime: str) -> None:
    import keras

    base = Base.of(request(160), "float32", 3, runtime=runtime)  # type: ignore[arg-type]
    assert base.spec.image_size_px == 160
    assert base.spec.dims == (256, 5 * 5 * 256)
    network = keras.applications.MobileNet((160, 160, 3), alpha=0.25, include_top=False, weights=None)
    network.set_weights(load_network(BASE, "random:0", ()).get_weights())
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), np.uint8)
    prepared = keras.applications.mobilenet.preprocess_input(pixels_NHWC.astype(np.float32))
    maps_NHWC = np.asarray(network(prepared))
    expected = (maps_NHWC.mean(axis=(1, 2)), maps_NHWC.reshape(3, -1))
    assert differences(base(pixels_NHWC), expected) < 1e-4


def test_a_size_is_part_of_the_fingerprint_and_the_usual_one_needs_no_word() -> None:
    usual = resolve(request(None), "float32")
    assert resolve(request(224), "float32") == usual
    other = resolve(request(160), "float32")
    assert (other.fingerprint != usual.fingerprint, other.weights_sha256) == (True, usual.weights_sha256)
    assert (usual.request.input.image_size, other.request.input.image_size) == (None, 160)
    assert resolve(other.request, "float32") == other


def test_a_file_with_the_top_gives_the_weights_of_the_body(tmp_path: Path) -> None:
    path = str(tmp_path / "whole.weights.h5")
    load_network(BASE, "random:3", ("predictions:none",)).save_weights(path)
    found = load_network(BASE, path, (), 96)
    assert found.input_shape == (None, 96, 96, 3)
    for ours, theirs in zip(found.get_weights(), load_network(BASE, "random:3", ()).get_weights(), strict=False):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (request(8), "mobilenet_0.25 takes no images of `image_size` 8"),
        (request(160, layers=("predictions:none",)), "Layers of the top have images of one size"),
        (request(96, base="vgg16", layers=("fc2:none",)), "`image_size` 96 with fc2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(asked: FeatureRequest, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve(asked, "float32")


def test_a_dataset_keeps_its_size_and_maps_their_shape(tmp_path: Path) -> None:
    tiny.photos(tmp_path / "photos", 5)
    output = str(tmp_path / "features")
    extract_images(str(tmp_path / "photos"), output, request(96))
    features = open_features(output)
    assert features.spec.image_size_px == 96
    facts = export_features(features, str(tmp_path / "maps.npy"), "conv_pw_13_relu:none")
    assert facts["shape"] == [5, 3, 3, 256]
    with pytest.raises(FingerprintError, match="image_size"):
        extract_images(str(tmp_path / "photos"), output, request(None))
