"""An exported model says what the head says, and other programs can load it safely."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from tiny import REQUEST, jpeg, real_spec, saved_head, spec, write_files

from bottleneck.errors import FingerprintError, UsageError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.heads.export import export_head, export_network
from bottleneck.heads.head import Head, Origin
from bottleneck.networks.base import Base
from bottleneck.networks.resolve import resolve
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureRequest, FeatureSpec, RuntimeName
from jobs.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras.*")

KINDS = [
    ("logistic", "none", 4),
    ("logistic", "none", 2),
    ("logistic", "standard", 4),
    ("svm", "l2", 4),
    ("svm", "standard", 2),
    ("mlp", "standard", 3),
]


def pixels(spec: FeatureSpec, num_images: int = 6) -> np.ndarray:
    decoded = [decode(jpeg(n, (300, 200)), spec, Limits()) for n in range(num_images)]
    return np.stack([one.pixels_HWC for one in decoded if isinstance(one, Decoded)])


def head_of(kind: Any, scale: Any, num_classes: int, spec: FeatureSpec, seed: int = 0) -> Head:
    """A head of any kind with random weights that make its answers differ."""
    rng = np.random.default_rng(seed)
    features_ND = Base(spec, 8)(pixels(spec))[0].astype(np.float64)
    dim = features_ND.shape[1]
    head = Head(kind=kind, scale=scale)
    head.classes_ = np.array([f"class {n}" for n in range(num_classes)], object)
    head.n_features_in_ = dim
    if scale == "standard":
        head.mean_, head.scale_ = features_ND.mean(axis=0), features_ND.std(axis=0) + 1e-3
    width = dim
    if kind == "mlp":
        width = 16
        head.hidden_coef_, head.hidden_intercept_ = rng.normal(size=(width, dim)) / 16, rng.normal(size=width)
    rows = 1 if num_classes == 2 else num_classes
    head.coef_, head.intercept_ = rng.normal(size=(rows, width)), rng.normal(size=rows) / 10
    head.temperature_ = 1.7
    head.origin_ = Origin(spec.layers[0], spec, "features", "0" * 64)
    return head


def expected_of(head: Head, pixels_NHWC: np.ndarray, runtime: RuntimeName = "auto") -> np.ndarray:
    """Probabilities [N, K] in the order of the classes."""
    features_ND = Base(head.origin_.spec, 8, runtime=runtime)(pixels_NHWC)[0]
    table = head.predictions(features_ND, len(head.classes_)).to_pydict()
    rows = [
        dict(zip(labels, values, strict=True))
        for labels, values in zip(table["top_labels"], table["top_probabilities"], strict=True)
    ]
    return np.array([[row[label] for label in head.classes_] for row in rows])


@pytest.mark.parametrize("file_format", ["onnx", "keras"])
def test_the_network_of_features_gives_them(file_format: Any, tmp_path: Path) -> None:
    spec = real_spec()
    layer = spec.layers[0]
    data, facts = export_network(spec, layer, file_format)
    pixels_NHWC = pixels(spec)
    [expected_ND] = Base(spec, 8, runtime="keras")(pixels_NHWC)
    if file_format == "onnx":
        session = onnxruntime.InferenceSession(data)
        [port], [output] = session.get_inputs(), session.get_outputs()
        assert (port.name, port.shape[1:], output.name) == ("pixels", facts["input"]["shape"][1:], "features")
        metadata = session.get_modelmeta().custom_metadata_map
        assert (metadata["layer"], metadata["fingerprint"]) == (layer, spec.fingerprint)
        [found_ND] = session.run(None, {"pixels": pixels_NHWC})
    else:
        found_ND = np.asarray(loaded(data, tmp_path)(pixels_NHWC))
    assert found_ND.dtype == np.float32
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-3 * np.abs(expected_ND).max())
    assert facts["output"]["shape"] == ["batch", spec.dim_of(layer)]
    assert "classes" not in facts


def test_a_network_of_other_weights_is_not_exported() -> None:
    with pytest.raises(FingerprintError, match="not those of the features"):
        export_network(real_spec(), real_spec().layers[0], "onnx", "random:7")


def loaded(data: bytes, folder: Path) -> Any:
    path = folder / "model.keras"
    path.write_bytes(data)
    return keras.saving.load_model(path, safe_mode=True)


@pytest.mark.parametrize(("kind", "scale", "num_classes"), KINDS)
def test_a_keras_file_gives_the_heads_probabilities(kind: str, scale: str, num_classes: int, tmp_path: Path) -> None:
    head = head_of(kind, scale, num_classes, real_spec())
    data, facts = export_head(head, "keras")
    pixels_NHWC = pixels(real_spec())
    found_NK = np.asarray(loaded(data, tmp_path)(pixels_NHWC))
    expected_NK = expected_of(head, pixels_NHWC)
    assert found_NK.dtype == np.float32
    assert np.ptp(expected_NK, axis=0).max() > 0.01, "the answers should differ from image to image"
    assert np.abs(found_NK - expected_NK).max() < 2e-5
    assert facts["classes"] == [f"class {n}" for n in range(num_classes)]
    assert facts["max_difference"] < 2e-5


@pytest.mark.parametrize(
    ("base", "layer"),
    [("vgg16", "block5_pool:none"), ("mobilenet_0.25", "conv_pw_13_relu:max"), ("mobilenet_0.25", "predictions")],
)
def test_preprocessing_and_every_pooling_are_in_the_file(base: str, layer: str, tmp_path: Path) -> None:
    request = FeatureRequest(base=base, weights="random:0", layers=(layer,), precision="float32", dtype="float32")
    spec = resolve(request, "float32")
    head = head_of("logistic", "standard", 3, spec)
    head.coef_ /= 10
    pixels_NHWC = pixels(spec, 3)
    found_NK = np.asarray(loaded(export_head(head, "keras")[0], tmp_path)(pixels_NHWC))
    assert np.abs(found_NK - expected_of(head, pixels_NHWC, "keras")).max() < 1e-4


def test_a_head_that_was_fitted_on_arrays_has_no_network_to_go_with() -> None:
    head = Head().fit([[0.0], [1.0]], ["ash", "beech"])
    with pytest.raises(UsageError, match="fitted on arrays"):
        export_head(head, "onnx")


@pytest.mark.filterwarnings("ignore::FutureWarning:keras.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_file_gives_the_heads_probabilities() -> None:
    head = head_of("svm", "l2", 4, real_spec())
    data, facts = export_head(head, "onnx")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    ports = [(one.name, one.type, one.shape) for one in (*session.get_inputs(), *session.get_outputs())]
    assert ports == [
        ("pixels", "tensor(uint8)", ["batch", 224, 224, 3]),
        ("probabilities", "tensor(float)", ["batch", 4]),
    ]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == [f"class {n}" for n in range(4)] == facts["classes"]
    assert (told["resize"], told["image_size_px"]) == ("squash", "224")
    assert told["fingerprint"] == real_spec().fingerprint
    assert told.keys() == facts.keys()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for num_images in (1, 6):
        pixels_NHWC = pixels(real_spec(), num_images)
        [found_NK] = session.run(["probabilities"], {"pixels": pixels_NHWC})
        assert np.abs(found_NK - expected_of(head, pixels_NHWC)).max() < 2e-5


def test_other_weights_than_the_heads_are_refused() -> None:
    head = head_of("logistic", "none", 3, real_spec())
    with pytest.raises(FingerprintError, match="random:1"):
        export_head(head, "keras", "random:1")


def test_the_job_writes_model_and_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path, {"a.jpg": jpeg(0)})
    features_ND = Base(real_spec(), 8)(pixels(real_spec()))[0]
    saved_head(tmp_path / "head", features_ND, np.array(["cat", "dog"] * 3, object), real_spec())
    file = tmp_path / "model.keras"
    assert main(["--json", "export", str(tmp_path / "head"), str(file)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    facts = json.loads((tmp_path / "model.keras.json").read_text())
    assert facts["classes"] == result["classes"] == ["cat", "dog"]
    assert facts["fingerprint"] == real_spec().fingerprint
    assert facts["input"] == {"name": "pixels", "shape": ["batch", 224, 224, 3], "dtype": "uint8", "channels": "RGB"}
    assert result["bytes"] == file.stat().st_size
    before = file.read_bytes()
    assert main(["export", str(tmp_path / "head"), str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["export", str(tmp_path / "head"), str(tmp_path / "model.pb")]) == 2
    assert ".keras or .onnx" in capsys.readouterr().err


def test_no_file_is_there_without_what_says_how_to_use_it(tmp_path: Path) -> None:
    """Else a job killed between the two could not be run again: a file that is there is never replaced."""
    features_ND = Base(real_spec(), 8)(pixels(real_spec()))[0]
    saved_head(tmp_path / "head", features_ND, np.array(["cat", "dog"] * 3, object), real_spec())
    file, beside = tmp_path / "model.keras", tmp_path / "model.keras.json"
    assert main(["export", str(tmp_path / "head"), str(file)]) == 0
    file.unlink()  # as a kill between the two leaves them
    left = json.loads(beside.read_text())
    beside.write_text(json.dumps(left | {"base": "of another version"}))
    assert main(["export", str(tmp_path / "head"), str(file)]) == 0
    assert file.exists()
    assert json.loads(beside.read_text()) == left


def test_what_lies_beside_the_model_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FILE.json of the user's is found before the work, whatever it holds."""
    features_ND = np.random.default_rng(0).normal(size=(6, 256))
    saved_head(tmp_path / "head", features_ND, np.array(["cat", "dog"] * 3, object), spec())
    facts = {"fingerprint": spec().fingerprint, "head_sha256": "that of another head"}
    beside = tmp_path / "model.onnx.json"
    for mine in ("{}", '{"mine": 1}', "[1]", "no JSON", json.dumps(facts)):
        beside.write_text(mine)
        assert main(["export", str(tmp_path / "head"), str(tmp_path / "model.onnx")]) == 2
        assert "model.onnx.json is there already" in capsys.readouterr().err
        assert beside.read_text() == mine
    beside.unlink()
    beside.mkdir()
    assert main(["export", str(tmp_path / "head"), str(tmp_path / "model.onnx")]) == 2
    assert list(beside.iterdir()) == []


def test_the_file_holds_no_code(tmp_path: Path) -> None:
    data, _ = export_head(head_of("mlp", "l2", 3, real_spec()), "keras")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = archive.read("config.json").decode()
    assert "Lambda" not in config
    assert REQUEST.base in config
