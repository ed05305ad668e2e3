"""A base gives the features Keras gives, from the weights that were planned.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from assets import asset

from bottleneck.catalog import NETWORKS, base_named
from bottleneck.errors import FeaturesError, FingerprintError, UsageError, WeightsError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.networks.base import Base, fitting_batch_size
from bottleneck.networks.build import build_network, to_bfloat16
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.resolve import choose_precision, requested_layers, resolve
from bottleneck.networks.weights import load_network, sha256_weights
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision

# Keras' own, when it saves a network.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MOBILENET = "weights/mobilenet_7_5_224_tf{}.rebuilt.h5"
ROOT = Path(__file__).resolve().parents[2]
KERAS: dict[str, Any] = {"interpolation": "nearest", "exif": "ignore", "dtype": "float32"}
"""The choices that make features those of Keras' own load_img and predict."""
BATCH = 16


def photos(num_images: int) -> list[Path]:
    """Photos of all classes."""
    found = sorted(asset("flowers17").glob("*/*.jpg"))
    return found[:: len(found) // num_images][:num_images]


def pixels_of(paths: list[Path], spec: FeatureSpec) -> np.ndarray:
    decoded = [decode(path.read_bytes(), spec, Limits()) for path in paths]
    return np.stack([one.pixels_HWC for one in decoded if isinstance(one, Decoded)])


def noise(num_images: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, 224, 224, 3), np.uint8)


def request(**changes: Any) -> FeatureRequest:
    return FeatureRequest(**{"base": "mobilenet_0.25", "weights": "random:0", "dtype": "float32", **changes})


def features(paths: list[Path], precision: Precision, **changes: Any) -> np.ndarray:
    spec = resolve(request(**KERAS, **changes), precision)
    [features_ND] = Base(spec, BATCH)(pixels_of(paths, spec))
    return features_ND


def by_keras(paths: list[Path], application: Any, network: Any, layer: str) -> np.ndarray:
    """The same by nothing but Keras: load_img, preprocess_input, predict, and a mean over the map."""
    keras = import_keras()
    model = keras.Model(network.input, network.get_layer(layer).output)
    images = [keras.utils.img_to_array(keras.utils.load_img(path, target_size=(224, 224))) for path in paths]
    maps: np.ndarray = model.predict(application.preprocess_input(np.stack(images)), batch_size=BATCH, verbose=0)
    return maps.mean(axis=(1, 2), dtype=np.float64) if maps.ndim == 4 else maps


def max_relative_difference(found_ND: np.ndarray, expected_ND: np.ndarray) -> float:
    """The largest over all values of |found - expected| / max(|expected|, a tenth of their root mean square).

    The floor is for values near zero: they are small differences of large sums, which float32 rounds at 1e-6 of what is
    large (TensorFlow fuses convolution and batch normalisation in one graph and not in the other).
    """
    floor = 0.1 * float(np.sqrt(np.mean(np.square(expected_ND, dtype=np.float64))))
    difference_ND = np.abs(found_ND.astype(np.float64) - expected_ND) / np.maximum(np.abs(expected_ND), floor)
    return float(difference_ND.max())


def min_cosine(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    one_ND, other_ND = one_ND.astype(np.float64), other_ND.astype(np.float64)
    norms_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return float(((one_ND * other_ND).sum(axis=1) / norms_N).min())


@cache
def small_base(batch_size: int = 4, **changes: Any) -> Base:
    return Base(resolve(request(**changes), "float32"), batch_size)


# Parity


def test_mobilenet_gives_the_features_keras_gives() -> None:
    keras, paths = import_keras(), photos(100)
    weights = str(asset(MOBILENET.format("_no_top")))
    network = keras.applications.MobileNet(alpha=0.75, include_top=False, weights=weights, input_shape=(224, 224, 3))
    expected_ND = by_keras(paths, keras.applications.mobilenet, network, "conv_pw_13_relu")
    found_ND = features(paths, "float32", base="mobilenet_0.75", weights=weights)
    assert found_ND.shape == (100, 768)
    difference = max_relative_difference(found_ND, expected_ND)
    assert difference <= 1e-4


@pytest.mark.parametrize("num_images", [16, pytest.param(100, marks=pytest.mark.faults)])
def test_vgg16_gives_the_features_keras_gives(num_images: int) -> None:
    keras, paths = import_keras(), photos(num_images)
    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    network.set_weights(load_network("vgg16", "random:0", ()).get_weights())
    expected_ND = by_keras(paths, keras.applications.vgg16, network, "block5_pool")
    found_ND = features(paths, "float32", base="vgg16")
    assert found_ND.shape == (num_images, 512)
    difference = max_relative_difference(found_ND, expected_ND)
    assert difference <= 1e-4


@pytest.mark.parametrize(
    ("base", "module", "layer", "dim"),
    [
        ("mobilenet_0.25", "mobilenet", "predictions", 1000),
        pytest.param("vgg16", "vgg16", "fc2", 4096, marks=pytest.mark.faults),  # 138 million weights: a minute
    ],
)
def test_layers_of_the_top_are_those_keras_gives(base: str, module: str, layer: str, dim: int) -> None:
    paths = photos(4)
    network = load_network(base, "random:0", (f"{layer}:none",))
    expected_ND = by_keras(paths, getattr(import_keras().applications, module), network, layer)
    found_ND = features(paths, "float32", base=base, layers=(layer,))
    assert found_ND.shape == (4, dim)
    assert max_relative_difference(found_ND, expected_ND) <= 1e-4


@pytest.mark.parametrize(
    ("base", "weights", "least"),
    [("vgg16", "random:0", 0.9999), ("mobilenet_0.75", "trained", 0.95)],
)
def test_bfloat16_features_point_where_float32_ones_do(base: str, weights: str, least: float) -> None:
    weights = str(asset(MOBILENET.format("_no_top"))) if weights == "trained" else weights
    paths = photos(16)
    cosine = min_cosine(
        features(paths, "bfloat16", base=base, weights=weights), features(paths, "float32", base=base, weights=weights)
    )
    assert cosine >= least


def test_colours_and_scale_reach_the_network_as_it_was_trained() -> None:
    """Red and blue are not the same to it: what a wrong channel order would let pass."""
    red, blue = np.zeros((2, 1, 224, 224, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    [features_ND] = small_base()(np.concatenate([red, blue]))
    assert min_cosine(features_ND[:1], features_ND[1:]) < 0.99


# Layers


def test_several_layers_come_in_one_pass_in_their_order() -> None:
    layers = ("conv_pw_1_relu:max", "conv_pw_13_relu:avg", "conv_pw_13_relu:max", "conv_pw_13_relu")
    base = small_base(layers=layers)
    assert base.spec.layers == (*layers[:3], "conv_pw_13_relu:none")
    assert base.spec.dims == (16, 256, 256, 7 * 7 * 256)
    first_ND, mean_ND, most_ND, flat_ND = base(noise(3))
    assert [features_ND.shape[1] for features_ND in (first_ND, mean_ND, most_ND, flat_ND)] == list(base.spec.dims)
    maps_NHWC = flat_ND.reshape(3, 7, 7, 256)
    np.testing.assert_allclose(mean_ND, maps_NHWC.mean(axis=(1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(most_ND, maps_NHWC.max(axis=(1, 2)))
    np.testing.assert_allclose(mean_ND, small_base()(noise(3))[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("base", "layer"), [("vgg16", "block5_pool:avg"), ("mobilenet_1.0", "conv_pw_13_relu:avg")])
def test_the_default_layer_is_the_last_before_the_top_averaged(base: str, layer: str) -> None:
    assert requested_layers(request(base=base)) == (layer,)


@pytest.mark.parametrize(
    ("base", "nearest"),
    [("vgg61", "vgg19"), ("mobilenet_0.7", "mobilenet_0.75"), ("InceptionV4", "inception_v3")],
)
def test_an_unknown_base_is_refused_with_the_nearest_first(base: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"Unknown base. Expected {nearest}, .*another of the 50 .*Received: {base}"):
        request(base=base)


def test_a_base_has_keras_name_too() -> None:
    for family, row in NETWORKS.items():
        base = f"{family}_1.0" if row.widths else family
        assert {base_named(name) for name in (base, row.constructor, row.constructor.lower())} == {base}
    assert FeatureRequest(base="ResNet50V2") == FeatureRequest(base="resnet50_v2")
    assert base_named("MobileNetV2_0.35") == "mobilenet_v2_0.35"


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("conv_pw_13_rel:avg", "conv_pw_13_relu"), ("predictons", "predictions"), ("input_layer", "")],
)
def test_an_unknown_layer_is_refused_with_the_nearest_first(layer: str, nearest: str) -> None:
    name = layer.partition(":")[0]
    with pytest.raises(UsageError, match=f"no layer of this name. Expected {nearest}.*Received: {name}"):
        resolve(request(layers=(layer,)), "float32")


def test_a_plain_vector_cannot_be_pooled() -> None:
    with pytest.raises(UsageError, match=r"predictions is a plain vector.*Received: predictions:avg"):
        resolve(request(layers=("predictions:avg",)), "float32")


# Batches


@pytest.mark.parametrize("num_images", [1, 3, 4, 5, 9])
def test_the_padding_of_the_last_batch_changes_no_feature(num_images: int) -> None:
    pixels_NHWC = noise(12)
    [whole_ND] = small_base(12)(pixels_NHWC)
    [features_ND] = small_base(4)(pixels_NHWC[:num_images])
    assert features_ND.shape == (num_images, 256)
    np.testing.assert_allclose(features_ND, whole_ND[:num_images], rtol=1e-5, atol=1e-7)


def test_no_images_give_no_features() -> None:
    [features_ND] = small_base()(noise(0))
    assert (features_ND.shape, features_ND.dtype) == ((0, 256), np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_have_the_stored_dtype(dtype: str) -> None:
    base = small_base(dtype=dtype)
    [features_ND] = base(noise(2))
    assert features_ND.dtype == np.dtype(dtype)
    assert base.device in ("onnxruntime cpu", "openvino cpu")  # whichever another test found to be faster
    assert base.batch_size == 4


def test_the_same_images_give_the_same_features() -> None:
    np.testing.assert_array_equal(small_base()(noise(4))[0], small_base()(noise(4))[0])


@pytest.mark.parametrize(
    ("most", "shard_size", "batch_size"),
    [
        *[(32, 512, 32), (32, 8, 8), (32, 16, 16), (32, 48, 24), (32, 33, 17), (32, 1, 1), (32, 300, 32)],
        *[(256, 512, 256), (256, 480, 240), (256, 64, 64), (1, 5, 1), (32, None, 32)],
    ],
)
def test_batches_divide_shards_evenly(most: int, shard_size: int | None, batch_size: int) -> None:
    """Padding costs as much as images do."""
    assert fitting_batch_size(most, shard_size) == batch_size
    if shard_size:
        assert -(-shard_size // batch_size) * batch_size <= shard_size * 1.13
        assert fitting_batch_size(batch_size, shard_size) == batch_size


# Precision


def test_precision_auto_is_bfloat16_where_hardware_and_base_allow() -> None:
    assert choose_precision(request(base="vgg16"), lambda: True) == "bfloat16"
    assert choose_precision(request(base="vgg16"), lambda: False) == "float32"
    assert choose_precision(request(base="mobilenet_0.25"), lambda: True) == "float32"


def test_a_given_precision_is_taken_without_asking_the_hardware() -> None:
    def ask() -> bool:
        raise AssertionError("asked")

    assert choose_precision(request(precision="bfloat16"), ask) == "bfloat16"
    assert choose_precision(request(base="vgg16", precision="float32"), ask) == "float32"


# Weights


def test_random_weights_are_the_same_for_ever() -> None:
    """A seed stands in plans and benchmarks: another Keras, NumPy or machine must not change what it means."""
    golden = {
        ("mobilenet_0.25", "random:0"): "5cf7c00fc79eb443c002814a34d197f9def4d80369e84c0d076c82ec399e81e2",
        ("mobilenet_0.25", "random:1"): "dbebb98237f2114461981289efebafb8ac03b2927ea856581d8fea60a79af6df",
        ("vgg16", "random:0"): "f03f68b0c023bde742ce8b76e95d97faffe40cf37201cee4d2315a66d56dc2ce",
    }
    found = {key: sha256_weights(load_network(*key, ())) for key in golden}
    assert found == golden


def test_random_features_are_neither_dead_nor_alike() -> None:
    """Of a size that float16 holds, or tests with them would compare zeros with zeros."""
    [features_ND] = small_base()(noise(4))
    assert (features_ND > 0).mean() > 0.5
    assert 0.01 < features_ND.mean() < 6
    assert min_cosine(features_ND[:1], features_ND[1:2]) < 0.999


def saved(path: Path, *, with_top: bool, seed: int = 0, base: str = "mobilenet_0.25") -> str:
    """Random weights in a file, in the layout Keras gives a name like this."""
    network = load_network(base, f"random:{seed}", ("predictions:none",) if with_top else ())
    network.save_weights(path) if path.name.endswith(".weights.h5") else network.save(path)
    return str(path)


@pytest.mark.parametrize("name", ["network.h5", "network.weights.h5"])
@pytest.mark.parametrize("with_top", [True, False])
def test_files_with_and_without_top_give_one_fingerprint(tmp_path: Path, name: str, with_top: bool) -> None:
    weights = saved(tmp_path / name, with_top=with_top)
    expected = resolve(request(), "float32")
    assert resolve(request(weights=weights), "float32").fingerprint == expected.fingerprint
    assert resolve(request(weights=f"file://{weights}"), "float32").fingerprint == expected.fingerprint


def test_published_files_with_and_without_top_give_one_fingerprint() -> None:
    specs = [
        resolve(request(base="mobilenet_0.75", weights=str(asset(MOBILENET.format(top)))), "float32")
        for top in ("", "_no_top")
    ]
    assert specs[0].fingerprint == specs[1].fingerprint


@pytest.mark.parametrize("name", ["network.h5", "network.weights.h5"])
def test_a_layer_of_the_top_needs_weights_with_a_top(tmp_path: Path, name: str) -> None:
    top = request(layers=("predictions",))
    whole = resolve(FeatureRequest(**{**vars(top), "weights": saved(tmp_path / name, with_top=True)}), "float32")
    assert whole.fingerprint == resolve(top, "float32").fingerprint
    (tmp_path / "body").mkdir()
    body = saved(tmp_path / "body" / name, with_top=False)
    with pytest.raises(WeightsError, match=r"do not fit mobilenet_0.25 with its top"):
        resolve(FeatureRequest(**{**vars(top), "weights": body}), "float32")


@pytest.mark.parametrize("name", ["network.h5", "network.weights.h5"])
def test_weights_of_another_width_do_not_fit(tmp_path: Path, name: str) -> None:
    weights = saved(tmp_path / name, with_top=False, base="mobilenet_0.5")
    with pytest.raises(WeightsError, match=f"do not fit mobilenet_0.25.*Received: {weights}"):
        resolve(request(weights=weights), "float32")


@pytest.mark.parametrize("name", ["network.h5", "network.weights.h5"])
def test_damaged_weights_are_refused(tmp_path: Path, name: str) -> None:
    path = Path(saved(tmp_path / name, with_top=False))
    data = path.read_bytes()
    for damaged in (b"", os.urandom(1000), data[: len(data) // 2], b"404 Not Found"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=rf"do not fit.*Received: {path}"):
            resolve(request(weights=str(path)), "float32")


@pytest.mark.parametrize("weights", ["no/such/file.h5", "file:///no/such/file.h5"])
def test_missing_weights_are_told(weights: str) -> None:
    with pytest.raises(WeightsError, match=f"No such weights.*Received: {weights}"):
        resolve(request(weights=weights), "float32")


@pytest.mark.parametrize("weights", ["imagnet", "model.keras", "weights.pth", "s3://bucket/model.pkl", "random"])
def test_what_is_no_weights_file_by_its_name_is_not_opened(weights: str) -> None:
    with pytest.raises(WeightsError, match=f"Expected imagenet, random:SEED, .*Received: {weights}"):
        resolve(request(weights=weights), "float32")


def weights_with(path: Path, scale: float) -> str:
    """Weights of which one kernel is multiplied."""
    network = load_network("mobilenet_0.25", "random:0", ())
    layer = network.get_layer("conv_pw_13")
    layer.set_weights([values * np.float32(scale) for values in layer.get_weights()])
    network.save_weights(path)
    return str(path)


def test_weights_that_are_no_numbers_give_no_features(tmp_path: Path) -> None:
    weights = weights_with(tmp_path / "nan.weights.h5", float("nan"))
    base = Base(resolve(request(weights=weights, layers=("conv_pw_13_relu:avg", "conv_pw_13_relu:max")), "float32"), 2)
    with pytest.raises(FeaturesError, match=r"conv_pw_13_relu:avg.*NaN"):
        base(noise(1))


def test_values_too_large_for_float16_stop_the_run(tmp_path: Path) -> None:
    weights = weights_with(tmp_path / "large.weights.h5", 1e8)
    kept = Base(resolve(request(weights=weights, layers=("conv_pw_13:max",)), "float32"), 2)
    assert kept(noise(1))[0].max() > 65_504
    base = Base(resolve(request(weights=weights, layers=("conv_pw_13:max",), dtype="float16"), "float32"), 2)
    with pytest.raises(FeaturesError, match=r"too large for float16.*`dtype` float32"):
        base(noise(1))


def test_weights_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.weights.h5"
    spec = resolve(request(weights=saved(path, with_top=False)), "float32")
    Base(spec, 2)
    saved(path, with_top=False, seed=1)
    with pytest.raises(FingerprintError, match=f"weights_sha256.*{spec.weights_sha256}"):
        Base(spec, 2)


def test_building_a_network_leaves_keras_as_it_was() -> None:
    keras = import_keras()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = build_network("mobilenet_0.25", with_top=False)
        assert (network.compute_dtype, to_bfloat16(network).layers[-1].compute_dtype) == ("float32", "bfloat16")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_request_of_a_spec_resolves_to_it() -> None:
    assert resolve(tiny.real_spec().request, "float32") == tiny.real_spec()
