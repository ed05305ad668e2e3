"""Every runtime gives the features Keras gives; the fastest is chosen by measurement, which is remembered.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assets import asset

from bottleneck.catalog import NETWORKS
from bottleneck.errors import UsageError
from bottleneck.networks import cache, prepare
from bottleneck.networks.base import Base
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import PreparedNetwork, differences, least_cosine, reference_pixels
from bottleneck.networks.runtimes import choose
from bottleneck.networks.runtimes.probe import Probed, known, probe
from bottleneck.networks.runtimes.table import RUNTIMES, is_installed
from bottleneck.spec import FeatureRequest

VGG16 = "weights/vgg16_notop.rebuilt.h5"
MOBILENET = "weights/mobilenet_7_5_224_tf_no_top.rebuilt.h5"
EVERY = [family if not row.widths else f"{family}_{row.widths[0]}" for family, row in NETWORKS.items()]
"""One width of each family."""
TINY = FeatureRequest(base="mobilenet_0.25", weights="random:0", dtype="float32")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photos_NHWC(num_images: int, size_px: int = 224) -> np.ndarray:
    from PIL import Image

    paths = sorted(asset("flowers17").glob("*/*.jpg"))
    chosen = paths[:: len(paths) // num_images][:num_images]
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((size_px, size_px))) for path in chosen])


def features(request: FeatureRequest, runtime: Any, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
    base = Base.of(request, "float32", 4, runtime=runtime)
    assert base.device.split()[0] == (runtime if runtime != "keras" else "tensorflow")
    return base(pixels_NHWC)


@pytest.mark.parametrize(
    ("base", "weights", "layers", "runtimes"),
    [
        (
            "vgg16",
            VGG16,
            ("block5_pool:avg", "block5_pool:none", "block3_conv2:max"),
            ["onnxruntime", "ncnn", "openvino"],
        ),
        ("mobilenet_0.75", MOBILENET, (), ["onnxruntime", "openvino"]),
    ],
)
def test_every_runtime_gives_kerass_features_of_photos(
    base: str, weights: str, layers: tuple[str, ...], runtimes: list[str]
) -> None:
    request = FeatureRequest(base=base, weights=str(asset(weights)), layers=layers, dtype="float32")
    pixels_NHWC = photos_NHWC(6)  # one full batch, and a part of one
    expected = tuple(features(request, "keras", pixels_NHWC))
    for runtime in runtimes:
        assert is_installed(runtime)
        assert differences(features(request, runtime, pixels_NHWC), expected) <= 1e-4, runtime


def test_openvino_in_bfloat16_gives_the_features_of_float32_nearly() -> None:
    request = FeatureRequest(base="vgg16", weights=str(asset(VGG16)), dtype="float32")
    pixels_NHWC = photos_NHWC(4)
    expected = tuple(features(request, "onnxruntime", pixels_NHWC))
    base = Base.of(request, "bfloat16", 4, runtime="openvino")
    assert base.spec.precision == "bfloat16"
    assert least_cosine(base(pixels_NHWC), expected) >= 0.9999


def test_a_runtime_that_does_not_take_a_network_is_refused_with_those_that_do() -> None:
    with pytest.raises(
        UsageError, match=r"does not run mobilenet_0.25 in float32. Expected auto, onnxruntime, .*keras"
    ):
        Base.of(TINY, "float32", 4, runtime="ncnn")
    with pytest.raises(UsageError, match=r"does not run mobilenet_0.25 in bfloat16"):
        Base.of(TINY, "bfloat16", 4, runtime="onnxruntime")
    with pytest.raises(UsageError, match="`runtime` takes auto, keras, onnxruntime"):
        Base.of(TINY, "float32", 4, runtime="tflite")  # type: ignore[arg-type]


def test_a_runtime_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "is_installed", lambda name: name == "onnxruntime")
    with pytest.raises(UsageError, match="pip install openvino"):
        Base.of(TINY, "float32", 4, runtime="openvino")


def test_a_runtime_with_other_features_is_neither_chosen_nor_offered(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = prepare_network(TINY)
    wrong = Probed("openvino", images_per_second=1000.0, difference=2e-4, cosine=1.0)
    right = Probed("onnxruntime", images_per_second=10.0, difference=1e-6, cosine=1.0)
    died = Probed("ncnn", error="its process died")
    assert choose.fastest([wrong, right, died], "float32") == "onnxruntime"
    assert choose.fastest([wrong, died], "float32") == "keras"
    assert choose.fastest([wrong, right], "bfloat16") == "openvino"  # where the cosine decides
    monkeypatch.setattr(choose, "probe", lambda *_: [wrong])
    with pytest.raises(UsageError, match=r"not offered for mobilenet_0.25 here: .* 2.0e-04"):
        choose.choose_runtime("openvino", network, "float32", 2, 0)


def test_a_large_job_measures_once_and_a_small_one_never(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = prepare_network(TINY)
    assert choose.choose_runtime("auto", network, "float32", 2, choose.MIN_IMAGES - 1) == "onnxruntime"
    assert cache.load_probes() == []
    names = choose.candidates(network, "float32")
    assert names == ["onnxruntime", "openvino"]
    chosen = choose.choose_runtime("auto", network, "float32", 2, choose.MIN_IMAGES)
    found = known(network, "float32", names, 2)
    assert found is not None
    assert chosen == max(found, key=lambda one: one.images_per_second).runtime
    assert all(one.agrees("float32") for one in found)
    [told] = cache.load_probes()
    assert (told["base"], told["precision"], told["threads"]) == ("mobilenet_0.25", "float32", 2)
    monkeypatch.setattr("bottleneck.networks.runtimes.probe._ask", lambda *_: pytest.fail("measured again"))
    for num_images in (0, 10**6):
        assert choose.choose_runtime("auto", network, "float32", 2, num_images) == chosen
    assert known(network, "float32", names, 1) is None  # other threads are another matter


def test_a_runtime_that_crashes_is_measured_as_such(own_cache: Path) -> None:
    network = prepare_network(TINY)
    assert network.graph is not None
    broken = PreparedNetwork(**{**vars(network), "key": "0" * 64, "graph": network.graph[: len(network.graph) // 2]})
    [found] = probe(broken, "float32", ["onnxruntime"], 2)
    assert found.error
    assert not found.agrees("float32")


def test_the_second_start_needs_neither_keras_nor_the_weights(own_cache: Path, tmp_path: Path) -> None:
    script = """
import sys, time
from bottleneck.networks.base import Base
from bottleneck.spec import FeatureRequest
base = Base.of(FeatureRequest(base="mobilenet_0.25", weights="random:0"), "float32", 4)
base(__import__("numpy").zeros((3, 224, 224, 3), "uint8"))
print(sorted({"tensorflow", "keras", "tf2onnx", "onnx", "sklearn", "ray"} & set(sys.modules)), base.device)
"""
    prepare_network(TINY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "[] onnxruntime cpu\n", done.stderr


def test_a_damaged_graph_is_made_again(own_cache: Path) -> None:
    network = prepare_network(TINY)
    [graph] = (own_cache / "networks").glob("*.onnx")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    assert cache.load_network(network.key) is None
    again = prepare_network(TINY)
    assert again.graph is not None
    assert differences(list(again.references), network.references) == 0
    assert cache.load_network(network.key) is not None
    [record] = (own_cache / "networks").glob("*.json")
    for text in ("", "{}", "[1]", record.read_text()[:-20]):
        record.write_text(text)
        assert cache.load_network(network.key) is None


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOTTLENECK_CACHE", "/proc/no-such-place")
    network = prepare_network(TINY)
    assert network.graph is not None
    found = choose.choose_runtime("onnxruntime", network, "float32", 2, 0)
    assert found == "onnxruntime"


def test_the_cache_has_a_bound_and_no_rests(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = prepare_network(TINY)
    folder = own_cache / "networks"
    stale = folder / f"{cache.TEMPORARY}left"
    stale.write_bytes(b"")
    os.utime(stale, (0, 0))
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    time.sleep(0.01)
    assert cache.store_network(PreparedNetwork(**{**vars(network), "key": "f" * 64}))
    assert {path.name[:1] for path in folder.iterdir()} == {"f"}
    assert (own_cache / "networks").stat().st_mode & 0o077 == 0


def test_a_graph_that_gives_other_features_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from bottleneck.networks.keras_import import import_keras

    keras = import_keras()
    pixels = keras.Input((8, 8, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.ops.cast(pixels, "float32"))
    model = keras.Model(pixels, mean)
    right = tuple(prepare._features(model, reference_pixels(8)))
    assert prepare._graph(model, right) is not None
    assert prepare._graph(model, (right[0] * 1.001,)) is None
    monkeypatch.setattr("bottleneck.networks.to_onnx.to_onnx", lambda _: 1 // 0)
    assert prepare._graph(model, right) is None


def test_what_imagenet_means_changes_with_keras_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    request = FeatureRequest(base="resnet50_v2", weights="imagenet")
    keys = [prepare.network_key(request, "", with_graph=True)]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(b"1")
    keys.append(prepare.network_key(request, "", with_graph=True))
    (tmp_path / "models" / "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(b"1")
    keys.append(prepare.network_key(request, "", with_graph=True))
    assert keys[0] == keys[1] != keys[2]


def test_reference_pixels_never_change() -> None:
    import hashlib

    pixels_NHWC = reference_pixels(224)
    assert (pixels_NHWC.shape, pixels_NHWC.dtype) == ((2, 224, 224, 3), np.uint8)
    assert hashlib.sha256(pixels_NHWC.tobytes()).hexdigest()[:16] == "086500e058a41522"


@pytest.mark.faults
@pytest.mark.parametrize("base", EVERY)
def test_every_base_of_the_catalog_has_the_same_features_on_every_runtime(base: str, own_cache: Path) -> None:
    """An hour on two cores."""
    network = prepare_network(FeatureRequest(base=base, weights="random:0"))
    if base.startswith("convnext"):  # the converter knows neither its erfc nor its depthwise convolution
        assert network.graph is None
        return
    names = choose.candidates(network, "float32")
    assert {"onnxruntime", "openvino"} <= set(names)
    for found in probe(network, "float32", names, None):
        assert found.agrees("float32"), found
    assert set(names) <= set(RUNTIMES)
