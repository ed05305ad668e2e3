"""Every network of keras.applications gives the features that Keras gives, under names that stay.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assets import asset
from PIL import Image
from test_base import max_relative_difference, min_cosine, photos, pixels_of

from bottleneck.catalog import NETWORKS, base_names, find_network
from bottleneck.errors import WeightsError
from bottleneck.heads.export import _preprocessing
from bottleneck.networks.base import Base
from bottleneck.networks.build import build_network
from bottleneck.networks.describe import describe, draw_network, table, table_of_bases
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.layers import check_layers
from bottleneck.networks.resolve import resolve
from bottleneck.networks.weights import load_network, sha256_weights
from bottleneck.spec import FeatureRequest
from jobs.__main__ import main

# Keras' own, when it saves a network.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = ("mobilenet_v2_0.35", "mobilenet_v3_small_0.75", "inception_v3")
"""Some seconds on two cores; all of them are half an hour. Other tests here have EfficientNet and ConvNeXt."""
ALL = [base if base in QUICK else pytest.param(base, marks=pytest.mark.faults) for base in base_names()]
EFFICIENTNET = "keras.src.applications.efficientnet.file_utils.get_file"


def pictures(num_images: int, size_px: int) -> np.ndarray:
    """Soft blots of colour: unlike noise, a network tells them apart."""
    rng = np.random.default_rng(0)
    blots = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)) for _ in range(num_images)]
    return np.stack([np.asarray(blot.resize((size_px, size_px), Image.Resampling.BICUBIC)) for blot in blots])


def request(base: str, **changes: Any) -> FeatureRequest:
    return FeatureRequest(**{"base": base, "weights": "random:0", "dtype": "float32", **changes})


def constructor_of(base: str) -> tuple[Any, dict[str, Any]]:
    """Keras' own, and what it takes to make this base."""
    row, width = find_network(base)
    size = row.image_size_px
    arguments: dict[str, Any] = {"input_shape": (size, size, 3)}
    return getattr(import_keras().applications, row.constructor), arguments | ({"alpha": width} if width else {})


def by_keras(base: str, pixels_NHWC: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Averaged features by nothing but Keras, with the weights `random:0` of the base."""
    applications = import_keras().applications
    constructor, arguments = constructor_of(base)
    arguments |= {"include_top": False, "pooling": "avg"}
    weighted = load_network(base, "random:0", ())
    if constructor.__name__.startswith("EfficientNetB"):  # which Keras builds another way for ImageNet's weights
        path = folder / "network.weights.h5"
        weighted.save_weights(path)
        monkeypatch.setattr(EFFICIENTNET, lambda *_, **__: str(path))
        model = constructor(weights="imagenet", **arguments)
    else:
        model = constructor(weights=None, **arguments)
        model.set_weights(weighted.get_weights())
    module = getattr(applications, constructor.__module__.rpartition(".")[2])
    prepared = module.preprocess_input(pixels_NHWC.astype(np.float32))
    return np.asarray(model.predict(prepared, batch_size=1, verbose=0))


def test_the_table_is_complete() -> None:
    applications = vars(import_keras().applications)
    constructors = {name for name, value in applications.items() if callable(value) and name[0].isupper()}
    assert {row.constructor for row in NETWORKS.values()} == constructors
    assert len(base_names()) == len(set(base_names()))
    assert all(find_network(base)[0] in NETWORKS.values() for base in base_names())


@pytest.mark.parametrize("base", ALL)
def test_a_base_gives_the_features_keras_gives(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels_NHWC = pictures(3, find_network(base)[0].image_size_px)
    expected_ND = by_keras(base, pixels_NHWC, tmp_path, monkeypatch)
    [found_ND] = Base.of(request(base), "float32", 1)(pixels_NHWC)
    assert found_ND.shape == expected_ND.shape
    assert max_relative_difference(found_ND, expected_ND) <= 1e-3
    assert min_cosine(found_ND, expected_ND) > 1 - 1e-9
    # What tests and benchmarks with random weights rest on: sizes that float16 holds, and images that differ.
    assert 1e-4 < np.sqrt(np.mean(np.square(found_ND))) < np.abs(found_ND).max() < 10_000
    assert min_cosine(found_ND[:1], found_ND[1:2]) < 0.9995


@pytest.mark.parametrize("base", ALL)
def test_a_description_is_keras_own(base: str) -> None:
    constructor, arguments = constructor_of(base)
    description = describe(base)
    assert description.num_parameters == constructor(weights=None, **arguments).count_params()
    body = constructor(weights=None, include_top=False, **arguments)
    assert description.num_body_parameters == body.count_params()
    assert description.layers[-1].name == find_network(base)[0].classifier
    check_layers(base, [layer.name for layer in description.layers])
    assert (description.layers[-1].shape, description.layers[-1].in_top) == ((1000,), True)
    assert not description.default.in_top
    assert description.default_dim == body.output.shape[-1]
    assert len(table(description).splitlines()) == len(description.layers) + 6
    assert draw_network(description, "png")


# Names


def test_layers_are_called_alike_in_every_network_of_a_process() -> None:
    """Keras numbers what has no name (`conv2d_94`) on through the process, as the caller's own networks need it."""
    keras = import_keras()
    before = int(keras.layers.Conv2D(1, 1).name.rpartition("_")[2].replace("conv2d", "0"))
    first, second = (build_network("inception_v3", with_top=False) for _ in range(2))
    names = [layer.name for layer in first.layers]
    assert names == [layer.name for layer in second.layers]
    assert {"conv2d", "conv2d_93", "batch_normalization_93", "mixed10", "avg_pool"} <= set(names)
    assert "conv2d_94" not in names
    assert keras.layers.Conv2D(1, 1).name == f"conv2d_{before + 1}"


def test_random_weights_of_deep_networks_are_the_same_for_ever() -> None:
    """As of the small ones: every kind of layer, and branches that are added."""
    golden = {
        "resnet50": "062f786ed0b9cc20e8a74f254deb0d5ce7a9af3519719db73c836e880cff273b",
        "xception": "6b9db30b795dddf4457ec6788b83c19f5327373322e237668150907cca8668d2",
        "efficientnet_b0": "299e68925eb9213fe55c9fbb13df0b7f4cd782377ededd925b2c8093ae5fceb6",
    }
    assert {base: sha256_weights(load_network(base, "random:0", ())) for base in golden} == golden


@pytest.mark.parametrize(
    ("name", "with_top"), [("network.h5", True), pytest.param("network.weights.h5", False, marks=pytest.mark.faults)]
)
def test_a_second_inceptions_weights_are_those_of_a_first(tmp_path: Path, name: str, with_top: bool) -> None:
    """Files Keras wrote in a long session, whose layers have other numbers; avg_pool needs no top."""
    constructor, arguments = constructor_of("inception_v3")
    constructor(weights=None, include_top=False, **arguments)
    network = constructor(weights=None, include_top=with_top, **arguments)
    values = load_network("inception_v3", "random:0", ("predictions",) if with_top else ()).get_weights()
    network.set_weights(values)
    path = tmp_path / name
    network.save_weights(path) if name.endswith(".weights.h5") else network.save(path)
    spec = resolve(request("inception_v3", weights=str(path)), "float32")
    assert (spec.layers, spec.dims, spec.image_size_px) == (("avg_pool:none",), (2048,), 299)
    assert spec.fingerprint == resolve(request("inception_v3"), "float32").fingerprint


# Layers of the top that need none of its weights


@pytest.mark.parametrize(
    ("base", "layer", "same_as"),
    [
        ("mobilenet_0.25", "dropout", "conv_pw_13_relu:avg"),
        ("mobilenet_v3_small_0.75", "global_average_pooling2d", "activation_17:avg"),
        ("vgg16", "flatten", "block5_pool:none"),
    ],
)
def test_a_layer_without_weights_needs_no_top(base: str, layer: str, same_as: str, tmp_path: Path) -> None:
    body = resolve(request(base), "float32")
    constructor, arguments = constructor_of(base)
    network = constructor(weights=None, include_top=False, **arguments)
    network.set_weights(load_network(base, "random:0", ()).get_weights())
    network.save_weights(tmp_path / "body.weights.h5")
    weights = str(tmp_path / "body.weights.h5")
    spec = resolve(request(base, weights=weights, layers=(layer, same_as)), "float32")
    assert spec.weights_sha256 == body.weights_sha256
    found_ND, expected_ND = Base(spec, 1, runtime="keras")(pictures(1, spec.image_size_px))
    np.testing.assert_allclose(found_ND.reshape(1, -1), expected_ND, rtol=1e-5, atol=1e-6)


def test_layers_after_weights_of_the_top_need_them(tmp_path: Path) -> None:
    base = "mobilenet_v3_small_0.75"
    load_network(base, "random:0", ()).save_weights(tmp_path / "body.weights.h5")
    with pytest.raises(WeightsError, match=f"do not fit {base} with its top"):
        resolve(request(base, weights=str(tmp_path / "body.weights.h5"), layers=("conv_2:avg",)), "float32")


def test_convnext_takes_weights_with_and_without_its_top(tmp_path: Path) -> None:
    """Keras' own body normalises elsewhere, by a layer of another name."""
    constructor, arguments = constructor_of("convnext_tiny")
    values = load_network("convnext_tiny", "random:0", ("convnext_tiny_head_dense",)).get_weights()
    expected = resolve(request("convnext_tiny"), "float32").fingerprint
    for with_top, name in ((True, "whole.h5"), (False, "body.weights.h5")):
        network = constructor(weights=None, include_top=with_top, **arguments)
        network.set_weights(values[: len(network.weights)])
        path = tmp_path / name
        network.save_weights(path) if name.endswith(".weights.h5") else network.save(path)
        assert resolve(request("convnext_tiny", weights=str(path)), "float32").fingerprint == expected, name


# Preprocessing


@pytest.mark.parametrize("base", ["vgg16", "inception_v3", "densenet121", "efficientnet_v2_s"])
def test_an_exported_model_prepares_pixels_as_keras_does(base: str) -> None:
    constructor, _ = constructor_of(base)
    module = getattr(import_keras().applications, constructor.__module__.rpartition(".")[2])
    pixels_NHWC = pictures(2, 16).astype(np.float32)
    expected_NHWC = module.preprocess_input(pixels_NHWC.copy())
    np.testing.assert_allclose(np.asarray(_preprocessing(base)(pixels_NHWC)), expected_NHWC, atol=1e-4)


def test_efficientnet_is_the_one_of_its_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold mean and deviation, and Keras adds a layer for them: from a file as from Keras' cache."""
    network = load_network("efficientnet_b0", "random:0", ())
    published = [np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]), np.zeros((), np.int32)]
    network.get_layer("normalization").set_weights(published)
    path = tmp_path / "efficientnetb0_notop.weights.h5"
    network.save_weights(path)
    monkeypatch.setattr(EFFICIENTNET, lambda *_, **__: str(path))
    constructor, arguments = constructor_of("efficientnet_b0")
    model = constructor(weights="imagenet", include_top=False, pooling="avg", **arguments)
    pixels_NHWC = pictures(1, 224)
    expected_ND = np.asarray(model(pixels_NHWC.astype(np.float32), training=False))
    for weights, precision, least in ((str(path), "float32", 1 - 1e-9), ("imagenet", "bfloat16", 0.999)):
        base = Base.of(request("efficientnet_b0", weights=weights), precision, 1, runtime="keras")
        assert min_cosine(base(pixels_NHWC)[0], expected_ND) > least


def test_mobilenet_v2_with_its_trained_weights_gives_the_features_keras_gives() -> None:
    weights = str(asset("weights/mobilenet_v2_0.35_224_no_top.rebuilt_from_teachable_machine.h5"))
    constructor, arguments = constructor_of("mobilenet_v2_0.35")
    model = constructor(weights=weights, include_top=False, pooling="avg", **arguments)
    spec = resolve(request("mobilenet_v2_0.35", weights=weights), "float32")
    pixels_NHWC = pixels_of(photos(16), spec)
    preprocess_input = import_keras().applications.mobilenet_v2.preprocess_input
    expected_ND = model.predict(preprocess_input(pixels_NHWC.astype(np.float32)), verbose=0)
    [found_ND] = Base(spec, 16)(pixels_NHWC)
    assert max_relative_difference(found_ND, expected_ND) <= 1e-4
    bfloat16 = Base(resolve(request("mobilenet_v2_0.35", weights=weights), "bfloat16"), 16, runtime="keras")
    assert 0.98 < min_cosine(bfloat16(pixels_NHWC)[0], expected_ND) < 0.9999  # why the table does not call it safe


# The job


def test_describe_without_a_base_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "describe"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["bases"]
    assert [row["base"] for row in rows] == base_names()
    assert [line.split()[0] for line in table_of_bases().splitlines()[1:]] == base_names()
    assert main(["describe", "--plot", "all.png"]) == 2
    assert "give its BASE" in capsys.readouterr().err


# The base of benchmarks


def test_the_stub_is_the_mean_colour_and_in_no_list() -> None:
    pixels_NHWC = pictures(3, 32)
    [found_ND] = Base.of(request("stub"), "float32", 2)(pixels_NHWC)
    np.testing.assert_allclose(found_ND, pixels_NHWC.mean(axis=(1, 2)), rtol=1e-5)
    assert "stub" not in base_names()
    assert describe("stub").num_parameters == 0
    with pytest.raises(WeightsError, match=r"stub has no weights\. Expected `weights` random:0"):
        resolve(request("stub", weights="imagenet"), "float32")
