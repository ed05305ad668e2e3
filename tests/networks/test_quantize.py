"""Networks in int8: quantized once, the same everywhere, near float32, and refused where they would not be.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from assets import asset
from PIL import Image

import bottleneck
from bottleneck.distributed.placement import needs_cpus
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.inspect import recompute
from bottleneck.inspect.diff import diff_features
from bottleneck.networks import cache, device, quantize
from bottleneck.networks.base import Base
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import MIN_COSINES, all_cosines, least_cosine, reference_pixels
from bottleneck.networks.runtimes import choose
from bottleneck.networks.runtimes.probe import Probed
from bottleneck.spec import QUANTIZATION, FeatureRequest, FeatureSpec
from jobs.benchmark.runtimes import precisions

TINY = FeatureRequest(base="mobilenet_0.25", weights="random:0", precision="int8", dtype="float32")
needs_vnni = pytest.mark.skipif(not device.has_vnni(), reason="int8 takes a CPU with VNNI")


@pytest.fixture(scope="module")
def int8_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the tiny network in both precisions, quantized once for this module."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(folder))
        prepare_network(TINY, "int8")
    return folder


@pytest.fixture
def in_cache(int8_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOTTLENECK_CACHE", str(int8_cache))
    return int8_cache


@needs_vnni
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_features_are_near_float32_for_any_batch_size(in_cache: Path, runtime: quantize.RuntimeName) -> None:
    pixels_NHWC = np.concatenate([quantize.calibration_pixels(224)[1::9], reference_pixels(224)])
    expected = Base.of(TINY, "float32", 4, runtime="onnxruntime")(pixels_NHWC)
    base = Base.of(TINY, "int8", 4, runtime=runtime)
    found = base(pixels_NHWC)
    assert base.spec.precision == "int8"
    assert base.device == f"{runtime} cpu"
    assert MIN_COSINES["int8"] <= least_cosine(found, tuple(expected)) < 0.99999  # it is no float32
    for batch_size in (1, 3):
        again = Base.of(TINY, "int8", batch_size, runtime=runtime)(pixels_NHWC)
        np.testing.assert_allclose(again[0], found[0], rtol=0, atol=1e-6 * float(np.abs(found[0]).max()))


@needs_vnni
def test_the_runtimes_agree_to_what_recomputing_allows(in_cache: Path) -> None:
    pixels_NHWC = quantize.calibration_pixels(224)[::8]
    one, other = (Base.of(TINY, "int8", 6, runtime=name)(pixels_NHWC) for name in ("onnxruntime", "openvino"))
    assert least_cosine(one, tuple(other)) > recompute.least_cosine_of("int8")
    assert recompute.least_cosine_of("float32") == recompute.least_cosine_of("bfloat16") == recompute.MIN_COSINE


@needs_vnni
def test_a_network_is_quantized_once_and_again_if_its_graph_is_damaged(
    in_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_network(TINY, "int8")
    assert first.graph is not None
    graphs = [path for path in (in_cache / "networks").glob(f"{first.key}-*.onnx") if path.read_bytes() == first.graph]
    assert len(graphs) == 1
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "ask", lambda *_: pytest.fail("quantized again"))
        assert prepare_network(TINY, "int8").graph == first.graph
    graphs[0].write_bytes(first.graph[:-1] + bytes([first.graph[-1] ^ 1]))
    assert cache.load_network(first.key) is None
    assert prepare_network(TINY, "int8").graph == first.graph  # byte by byte: the rule has no chance in it
    floats = prepare_network(TINY)
    assert floats.key != first.key
    assert all((a == b).all() for a, b in zip(floats.references, first.references, strict=True))


@needs_vnni
def test_a_network_too_far_from_float32_is_refused_with_its_cosine(
    in_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = replace(prepare_network(TINY), key="1" * 64)
    monkeypatch.setitem(MIN_COSINES, "int8", 1.5)
    with pytest.raises(UsageError, match=r"mobilenet_0.25 is not offered in int8: cosine .* 0\.9\d+ at least.*1\.5"):
        quantize.quantize_network(network)
    assert cache.load_network(quantize.quantized_key(network)) is None
    with pytest.raises(UsageError, match=r"There is no graph of mobilenet_0.25 to quantize"):
        quantize.quantize_network(replace(network, graph=None))


@needs_vnni
def test_int8_has_a_fingerprint_of_its_own_and_does_not_go_on_in_float32(in_cache: Path, tmp_path: Path) -> None:
    network = prepare_network(TINY)
    int8, floats = network.spec(TINY, "int8"), network.spec(TINY, "float32")
    assert int8.fingerprint != floats.fingerprint
    assert "quantization" not in floats.to_json()
    assert FeatureSpec.from_json(int8.to_json()) == int8
    assert int8.request == replace(TINY, layers=int8.layers)
    assert replace(int8, quantization=QUANTIZATION + 1).fingerprint != int8.fingerprint
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number, pixels_HWC in enumerate(quantize.calibration_pixels(64)[:3]):
        Image.fromarray(pixels_HWC).save(tmp_path / "photos" / "a" / f"{number}.png")
    source, output = str(tmp_path / "photos"), str(tmp_path / "features")
    settings = {"base": TINY.base, "weights": TINY.weights}
    bottleneck.extract_images(source, output, FeatureRequest(**settings, precision="int8"))  # type: ignore[arg-type]
    with pytest.raises(FingerprintError, match="precision"):
        bottleneck.extract_images(source, output, FeatureRequest(**settings, precision="float32"))  # type: ignore[arg-type]
    bottleneck.extract_images(source, output, FeatureRequest(**settings))  # type: ignore[arg-type]  # whatever is there
    assert bottleneck.open_features(output).spec.precision == "int8"
    assert not recompute.recompute(output, 3).different
    floats_output = str(tmp_path / "floats")
    bottleneck.extract_images(source, floats_output, FeatureRequest(**settings, precision="float32"))  # type: ignore[arg-type]
    in_int8, in_float32 = map(bottleneck.open_features, (output, floats_output))
    for one, other, rules in ((in_int8, in_float32, (QUANTIZATION, None)), (in_float32, in_int8, (None, QUANTIZATION))):
        settings_found = diff_features(one, other).settings
        assert set(settings_found) == {"precision", "quantization"}
        assert settings_found["quantization"] == rules


def test_what_int8_does_not_go_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"int8 is for networks of the catalog. Received: base stub"):
        FeatureRequest(base="stub", weights="random:0", precision="int8")
    with pytest.raises(UsageError, match="Received: base onnx"):
        FeatureRequest(base="onnx", weights="model.onnx", precision="int8")
    for runtime in ("keras", "ncnn"):
        with pytest.raises(UsageError, match=f"onnxruntime or openvino. Received: {runtime}"):
            needs_cpus("vgg16", runtime, False, "int8")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"onnxruntime or openvino. Received: {runtime}"):
            Base.of(TINY, "int8", 4, runtime=runtime)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"`use_gpu` does not go with .*`precision` int8"):
        needs_cpus("vgg16", "auto", True, "int8")
    assert needs_cpus("vgg16", "auto", False, "int8")
    assert not needs_cpus("vgg16", "auto", False, "float32")


def test_a_machine_without_vnni_says_so_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx2", "avx512f"})
    with pytest.raises(UsageError, match="int8 takes a CPU with VNNI"):
        bottleneck.extract_images(str(tmp_path / "none"), str(tmp_path / "features"), TINY)
    assert not (tmp_path / "features").exists()
    assert "int8" not in precisions("vgg16")
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx2", "avx_vnni"})
    assert "int8" in precisions("vgg16")
    assert "int8" not in precisions("stub")


@needs_vnni
def test_without_a_runtime_that_agrees_int8_does_not_fall_back_to_keras(
    in_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = prepare_network(TINY, "int8")
    assert choose.candidates(network, "int8") == ["onnxruntime", "openvino"]
    monkeypatch.setattr(choose, "known", lambda *_: [Probed("openvino", 10.0, 0.5, 0.7)])
    with pytest.raises(UsageError, match=r"No runtime here .* in int8.* Received: openvino 0\.70000"):
        choose.choose_runtime("auto", network, "int8", 2, choose.MIN_IMAGES)


def test_ranges_grow_to_a_coarse_grid() -> None:
    for value in (1e-3, 0.9999, 1.0, 1.0001, 151.06, -123.68):
        rounded = quantize.rounded_up(value)
        assert 1 <= rounded / value < 2 ** (1 / quantize.STEPS) + 1e-12
        assert quantize.rounded_up(value * 1.0000001) in (rounded, quantize.rounded_up(value * 1.001))
    assert quantize.rounded_up(0.0) == 0.0


def test_crops_are_the_same_every_time() -> None:
    crops_NHWC = quantize.calibration_pixels(32)
    assert (crops_NHWC.shape, crops_NHWC.dtype) == ((48, 32, 32, 3), np.uint8)
    assert (crops_NHWC == quantize.calibration_pixels(32)).all()
    assert (crops_NHWC[1] == crops_NHWC[0][:, ::-1]).all()


@pytest.mark.faults
@needs_vnni
def test_vgg16_keeps_its_features_of_photos_in_int8() -> None:
    request = FeatureRequest(base="vgg16", weights=str(asset("weights/vgg16_notop.rebuilt.h5")), dtype="float32")
    paths = sorted(asset("flowers17").glob("*/*.jpg"))[::170]
    photos = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]
    expected, found = (Base.of(request, one, 8)(np.stack(photos)) for one in ("float32", "int8"))
    cosines = all_cosines(found, tuple(expected))
    assert cosines.min() > 0.99
