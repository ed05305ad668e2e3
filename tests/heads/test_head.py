"""A head is one of scikit-learn's classifiers, and its files can fail but never execute."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load, save
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from bottleneck.errors import CorruptError, FingerprintError, UsageError
from bottleneck.heads.head import HEAD_JSON, Head, Origin
from bottleneck.heads.head_file import HEAD_TENSORS
from bottleneck.heads.solver.losses import best_temperature, log_loss
from bottleneck.spec import sha256_json


def reasons(estimator: Head) -> dict[str, str]:
    """The checks of scikit-learn's that a head does not pass, and why."""
    minibatches = "an mlp draws its images in minibatches, so a weight of two is nearly, not exactly, the image twice"
    return {"check_sample_weight_equivalence_on_dense_data": minibatches} if estimator.kind == "mlp" else {}


@parametrize_with_checks(
    [
        Head("logistic"),
        Head("svm"),
        Head("logistic", scale="standard", class_weight="balanced"),
        Head("svm", scale="l2"),
        Head("mlp"),
    ],
    expected_failed_checks=reasons,
)
def test_it_is_a_classifier_of_scikit_learns(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck.heads.solver.mlp.STEPS", 200)
    check(estimator)


def test_numpy_through_the_array_api_changes_nothing() -> None:
    """The check that scikit-learn skips above: scipy takes the switch only before it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "check_array_api"]
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def data(num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels_N = np.array(["ash", "beech", "cedar", "dogwood"], dtype=object)[np.arange(60) % num_classes]
    return rng.standard_normal((60, 8)) + (np.arange(60) % num_classes)[:, None], labels_N


def saved(folder: Path, **parameters: Any) -> Head:
    features_ND, labels_N = data()
    head = Head(**parameters).fit(features_ND, labels_N)
    head.save(str(folder), Origin("fc:none", tiny.spec(), "features", "0" * 64, {"note": 1}))
    return head


@pytest.mark.parametrize("parameters", [{}, {"kind": "svm", "scale": "standard"}, {"kind": "mlp", "scale": "l2"}])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_what_is_saved_predicts_the_same(tmp_path: Path, parameters: Any, num_classes: int) -> None:
    features_ND, labels_N = data(num_classes)
    head = Head(**parameters).fit(features_ND, labels_N)
    head.save(str(tmp_path), Origin("fc:none", tiny.spec(), "features", "0" * 64, {"note": 1}))
    loaded = Head.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.predict_proba(features_ND), head.predict_proba(features_ND))
    np.testing.assert_array_equal(loaded.predict(features_ND), head.predict(features_ND))
    assert loaded.score(features_ND, labels_N) == head.score(features_ND, labels_N) > 0.5
    assert loaded.origin_ == head.origin_
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEAD_JSON, HEAD_TENSORS]


def test_a_small_network_keeps_its_size_and_a_forged_one_is_not_read(tmp_path: Path) -> None:
    features_ND, labels_N = data()
    head = saved(tmp_path, kind="mlp", hidden_size=np.int64(300), epochs=2, seed=3)
    loaded = Head.load(str(tmp_path))
    assert loaded.hidden_coef_.shape == (300, 8)
    assert loaded.get_params() == head.get_params()
    np.testing.assert_array_equal(clone(loaded).fit(features_ND, labels_N).coef_, head.coef_)
    rewritten(tmp_path, hidden_size=299)
    with pytest.raises(CorruptError, match="expected arrays"):
        Head.load(str(tmp_path))
    rewritten(tmp_path, hidden_size=10**9)
    with pytest.raises(CorruptError, match="`hidden_size` takes a whole number"):
        Head.load(str(tmp_path))


@pytest.mark.parametrize(
    "labels",
    [np.array([7, -3, 12]), np.array([3, 200, 9], np.uint8), [True, False], np.array(["b", "a", "c"]), ["b", "a", "é"]],
    ids=["int64", "uint8", "bool", "text", "object"],
)
def test_classes_are_what_they_were_after_saving(tmp_path: Path, labels: Any) -> None:
    labels = np.array(labels, object) if isinstance(labels, list) and isinstance(labels[0], str) else np.array(labels)
    features_ND, _ = data(len(labels))
    labels_N = labels[np.arange(60) % len(labels)]
    weights = dict.fromkeys(labels.tolist(), 2.0)
    head = Head(class_weight=weights).fit(features_ND, labels_N)
    head.save(str(tmp_path), Origin("fc:none", tiny.spec(), "features", "0" * 64))
    loaded = Head.load(str(tmp_path))
    assert loaded.classes_.tolist() == head.classes_.tolist()
    assert {type(label) for label in loaded.classes_.tolist()} == {type(label) for label in labels.tolist()}
    assert loaded.score(features_ND, labels_N) == head.score(features_ND, labels_N) > 0.5
    assert loaded.class_weight == weights
    assert clone(loaded).fit(features_ND, labels_N).score(features_ND, labels_N) > 0.5
    names = loaded.predictions(features_ND).column("predicted").to_pylist()
    assert names == [str(label) for label in head.predict(features_ND)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [([1.0, 2.0], r"1\.0 \(float\)"), ([1 << 70, 2], "beyond 64 bits"), ([b"a", b"b"], r"b'a' \(bytes\)")],
    ids=["float", "large", "bytes"],
)
def test_classes_that_cannot_be_kept_are_told(tmp_path: Path, labels: Any, words: str) -> None:
    features_ND, labels_N = data(2)
    head = Head().fit(features_ND, labels_N)
    head.classes_ = np.array(labels, object)
    with pytest.raises(UsageError, match=f"all strings, all integers or all booleans.*{words}"):
        head.save(str(tmp_path / "head"), Origin("fc:none", tiny.spec(), "features", "0" * 64))
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"kind": "Logistic"}, r"`kind` takes logistic, svm or mlp\. Received: 'Logistic'\. Did you mean logistic\?"),
        ({"scale": "std"}, r"`scale` takes none, standard or l2\. Received: 'std'"),
        ({"scale": None}, r"`scale` takes none, standard or l2\. Received: None"),
        ({"class_weight": "Balanced"}, r"`class_weight` takes none or balanced\. Received: 'Balanced'"),
        ({"class_weight": {"ash": -1.0}}, r"class_weight takes numbers from 0 up\. Received: -1.0 for 'ash'"),
        ({"class_weight": {"ash": "2"}}, r"class_weight takes numbers from 0 up\. Received: '2' for 'ash'"),
        ({"C": 0}, r"C takes a number above 0\. Received: 0"),
        ({"C": float("nan")}, r"C takes a number above 0\. Received: nan"),
        ({"C": "1"}, r"C takes a number above 0\. Received: '1'"),
        ({"C": 10.0, "kind": "mlp"}, r"takes no C\. Received: 10.0"),
        ({"hidden_size": 8}, r"`hidden_size` is an option of the mlp\. Received: 8 with logistic"),
        ({"kind": "mlp", "epochs": 0}, r"`epochs` takes a whole number from 1"),
    ],
)
def test_a_parameter_that_means_nothing_is_told(parameters: dict[str, Any], words: str) -> None:
    features_ND, labels_N = data()
    head = Head(**parameters)  # scikit-learn checks in fit: parameters can be set until then
    with pytest.raises(UsageError, match=words):
        head.fit(features_ND, labels_N)


def test_weights_of_labels_that_are_no_classes_are_told() -> None:
    features_ND, labels_N = data()
    with pytest.raises(ValueError, match="are not in class_weight"):
        Head(class_weight={"ahs": 5.0}).fit(features_ND, labels_N)
    assert Head(class_weight=None).fit(features_ND, labels_N).score(features_ND, labels_N) > 0.5


def test_predictions_are_the_best_classes_in_order() -> None:
    features_ND, labels_N = data()
    head = Head().fit(features_ND, labels_N)
    table = head.predictions(features_ND, top=2)
    assert table.column("predicted").to_pylist() == head.predict(features_ND).tolist()
    best = np.sort(head.predict_proba(features_ND), axis=1)[:, ::-1][:, :2]
    np.testing.assert_allclose(table.column("top_probabilities").to_pylist(), best, rtol=1e-6)
    assert [labels[0] for labels in table.column("top_labels").to_pylist()] == table.column("predicted").to_pylist()
    assert len(head.predictions(features_ND[:0])) == 0
    assert len(head.predictions(features_ND, top=9).column("top_labels")[0]) == 3


def test_features_of_another_fingerprint_are_refused(tmp_path: Path) -> None:
    head = saved(tmp_path)
    head.check_fits(tiny.spec())
    with pytest.raises(FingerprintError, match="interpolation: head bilinear, features nearest"):
        head.check_fits(tiny.spec(interpolation="nearest"))


def test_a_head_is_not_written_over(tmp_path: Path) -> None:
    head = saved(tmp_path)
    with pytest.raises(UsageError, match="holds a head already"):
        head.save(str(tmp_path))


def rewritten(folder: Path, tensors: bytes | None = None, **changes: Any) -> None:
    """Change a head so that all its digests are right again, as somebody who means harm would."""
    document = json.loads((folder / HEAD_JSON).read_text())
    if tensors is not None:
        (folder / HEAD_TENSORS).write_bytes(tensors)
        changes["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
    document |= changes
    del document["sha256"]
    (folder / HEAD_JSON).write_text(json.dumps({**document, "sha256": sha256_json(document)}))


def cut(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def edit(folder: Path) -> None:
    path = folder / HEAD_JSON
    path.write_text(path.read_text().replace('"C": 1.0', '"C": 2.0'))


def tensors(folder: Path, **changes: Any) -> bytes:
    return save({**load((folder / HEAD_TENSORS).read_bytes()), **changes})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: cut(f, HEAD_JSON), "truncated"),
        (lambda f: cut(f, HEAD_TENSORS), "damaged"),
        (edit, "changed after it was written"),
        (lambda f: (f / HEAD_TENSORS).unlink(), "is gone"),
        (lambda f: (f / HEAD_JSON).write_text("[1]"), "no head"),
        (lambda f: rewritten(f, b"\x80\x04K\x01."), "no safetensors file"),
        (lambda f: rewritten(f, tensors(f, coef=np.zeros((3, 7)))), "expected arrays"),
        (lambda f: rewritten(f, tensors(f, coef=np.full((3, 8), np.nan))), "not all finite"),
        (lambda f: rewritten(f, tensors(f, coef=np.zeros((3, 8), np.float32))), "not all finite float64"),
        (lambda f: rewritten(f, tensors(f, more=np.zeros(1))), "expected arrays"),
        (lambda f: rewritten(f, kind="standard"), "`kind` takes logistic"),
        (lambda f: rewritten(f, scale="std"), "`scale` takes none"),
        (lambda f: rewritten(f, class_weight="Balanced"), "`class_weight` takes none"),
        (lambda f: rewritten(f, C=-1.0), "C takes a number above 0"),
        (lambda f: rewritten(f, classes=None), "no readable head"),
        (lambda f: rewritten(f, dim="x"), "no readable head"),
    ],
)
def test_a_malformed_head_is_told(tmp_path: Path, harm: Any, words: str) -> None:
    saved(tmp_path)
    harm(tmp_path)
    with pytest.raises(CorruptError, match=words):
        Head.load(str(tmp_path))


def header(**tensors: Any) -> bytes:
    """A safetensors file of a header alone, and eight bytes of values."""
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


F64 = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / HEAD_JSON).write_bytes(b"[" * 100_000), "no head"),
        (lambda f: (f / HEAD_JSON).write_bytes(b'{"a":' * 100_000), "no head"),
        (lambda f: (f / HEAD_JSON).write_bytes(b"\xff\xfe{}"), "no head"),
        (lambda f: (f / HEAD_JSON).write_text('{"sha256": ' + "9" * 10_000 + "}"), "no head"),
        (lambda f: rewritten(f, b""), "no safetensors file"),
        (lambda f: rewritten(f, bytes(8)), "no safetensors file"),
        (lambda f: rewritten(f, (1 << 62).to_bytes(8, "little") + b"{}"), "no safetensors file"),
        (lambda f: rewritten(f, header(coef={**F64, "shape": [1 << 40]})), "no safetensors file"),
        (lambda f: rewritten(f, header(coef={**F64, "shape": [1 << 33, 1 << 33]})), "no safetensors file"),
        (lambda f: rewritten(f, header(coef={**F64, "data_offsets": [0, 1 << 50]})), "no safetensors file"),
        (lambda f: rewritten(f, header(coef={**F64, "dtype": "OBJECT"})), "no safetensors file"),
        (lambda f: rewritten(f, header(coef={**F64, "dtype": "BF16", "shape": [4]})), "no readable head"),
        (lambda f: rewritten(f, tensors(f, coef=np.full((3, 8), np.inf))), "not all finite"),
        (lambda f: rewritten(f, tensors(f, coef=np.zeros((3, 8), np.int64))), "not all finite float64"),
        (lambda f: rewritten(f, classes=[1, "2", 3]), r"\(int, str\)"),
        (lambda f: rewritten(f, classes=[0, 1, True]), r"\(bool, int\)"),
        (lambda f: rewritten(f, classes=[0.5, 1.5, 2.5]), r"0\.5 \(float\)"),
        (lambda f: rewritten(f, classes=[1, 2, 1 << 70]), "beyond 64 bits"),
        (lambda f: rewritten(f, classes=[["ash"], ["beech"], ["cedar"]]), r"\(list\)"),
        (lambda f: rewritten(f, classes=["ash", "ash", "cedar"]), "two or more different ones"),
        (lambda f: rewritten(f, classes=["ash"]), "two or more different ones"),
        (lambda f: rewritten(f, classes=[]), "two or more different ones"),
        (lambda f: rewritten(f, feature_names=["a"]), "feature_names are not one string for each feature"),
        (lambda f: rewritten(f, feature_names=[0] * 8), "feature_names are not one string for each feature"),
        (lambda f: rewritten(f, feature_names="eightlet"), "feature_names are not one string for each feature"),
        (lambda f: rewritten(f, dim=1e308), "dim is float"),
        (lambda f: rewritten(f, dim=float("inf")), "dim is float"),
        (lambda f: rewritten(f, dim=1 << 60), "expected arrays"),
        (lambda f: rewritten(f, layer=["fc"]), "layer is list"),
        (lambda f: rewritten(f, details=None), "details is NoneType"),
        (lambda f: rewritten(f, spec="vgg16"), "spec is str"),
        (lambda f: rewritten(f, spec={**tiny.spec().to_json(), "layers": 3}), "layers is int"),
        (lambda f: rewritten(f, spec={**tiny.spec().to_json(), "base": {}}), "base is dict"),
        (lambda f: rewritten(f, kind={}), "no readable head"),
    ],
)
def test_a_head_made_to_harm_is_told(tmp_path: Path, harm: Any, words: str) -> None:
    test_a_malformed_head_is_told(tmp_path, harm, words)


@pytest.mark.parametrize("name", ["kind", "C", "classes", "dim", "layer", "spec", "features", "details", "format"])
def test_a_head_without_one_of_its_fields_is_told(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    document = json.loads((tmp_path / HEAD_JSON).read_text())
    del document[name], document["sha256"]
    (tmp_path / HEAD_JSON).write_text(json.dumps({**document, "sha256": sha256_json(document)}))
    with pytest.raises((CorruptError, UsageError), match=rf"{name}|format None"):
        Head.load(str(tmp_path))


def test_a_scale_of_nothing_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, kind="svm", scale="standard")
    rewritten(tmp_path, tensors(tmp_path, scale=np.zeros(8)))
    with pytest.raises(CorruptError, match="scale is not all above 0"):
        Head.load(str(tmp_path))


def test_a_head_that_is_a_link_is_read_as_what_it_leads_to_and_nothing_of_it_is_told(tmp_path: Path) -> None:
    saved(tmp_path / "head")
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "linked").mkdir()
    for name in (HEAD_JSON, HEAD_TENSORS):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "head" / name)
    assert Head.load(str(tmp_path / "linked")).kind == "logistic"
    (tmp_path / "head" / HEAD_JSON).unlink()
    (tmp_path / "head" / HEAD_JSON).symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptError, match="no head") as told:
        Head.load(str(tmp_path / "linked"))
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("name", [HEAD_JSON, HEAD_TENSORS])
def test_files_of_a_head_that_are_larger_than_they_can_be_are_not_read(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(10**12)  # of which the disk holds next to nothing
    with pytest.raises(CorruptError, match=rf"{name} has 1,000,000,000,000 bytes, expected at most"):
        Head.load(str(tmp_path))


@pytest.mark.parametrize(("name", "error"), [(HEAD_JSON, UsageError), (HEAD_TENSORS, CorruptError)])
def test_a_head_that_leads_to_a_device_is_not_read_without_end(
    tmp_path: Path, name: str, error: type[Exception]
) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(error, match=r"no head|is gone"):
        Head.load(str(tmp_path))


def test_no_head_and_another_format_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no head"):
        Head.load(str(tmp_path))
    saved(tmp_path)
    rewritten(tmp_path, format=2)
    with pytest.raises(UsageError, match="format 2"):
        Head.load(str(tmp_path))


def test_the_temperature_of_an_svm_has_the_least_log_loss() -> None:
    rng = np.random.default_rng(0)
    class_indices_N = rng.integers(0, 3, 500)
    scores_NK = rng.standard_normal((500, 3)) + 2 * np.eye(3)[class_indices_N]
    best = best_temperature(scores_NK, class_indices_N)
    assert 0.5 < best < 4
    at = [log_loss(scores_NK * factor, class_indices_N) for factor in (best, best * 1.05, best / 1.05)]
    assert at[0] == min(at)


def test_the_log_loss_is_scikit_learns() -> None:
    features_ND, labels_N = data(2)
    class_indices_N = np.unique(labels_N, return_inverse=True)[1]
    peer = LogisticRegression().fit(features_ND, class_indices_N)
    expected = -np.log(peer.predict_proba(features_ND)[np.arange(60), class_indices_N]).sum()
    assert log_loss(peer.decision_function(features_ND)[:, None], class_indices_N) == pytest.approx(expected)
