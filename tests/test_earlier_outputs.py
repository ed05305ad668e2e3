"""An output made by version 0.1.0, before the modules had folders, is verified, read, extended and predicted."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny

from bottleneck import Head, extract_images, open_features
from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.plan import load_plan
from bottleneck.dataset.success import finished
from bottleneck.heads.fit import evaluate_head
from bottleneck.spec import FeatureRequest
from jobs.__main__ import main

OUTPUT = Path(__file__).parent / "data/output-0.1.0.tar.gz"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """`photos`, `features`, `predictions` and `head`; the source's path in the plans is where it now lies."""
    with tarfile.open(OUTPUT) as archive:
        archive.extractall(tmp_path, filter="data")
    for output in ("features", "predictions"):
        path = tmp_path / output / "plan.json"
        plan = json.loads(path.read_text())
        plan["source"] = str(tmp_path / "photos")
        path.write_text(json.dumps(plan))
    return tmp_path


def test_it_is_verified(earlier: Path) -> None:
    for output in ("features", "predictions"):
        report = verify(str(earlier / output), full=True)
        assert (report.exit_code, report.planned) == (0, 37)


def test_its_features_and_head_are_read(earlier: Path) -> None:
    features = open_features(str(earlier / "features"))
    features_ND, labels_N = features.arrays()
    assert (features_ND.shape, features_ND.dtype) == ((36, 256), np.dtype("float32"))
    head = Head.load(str(earlier / "head"))
    assert head.score(features_ND, labels_N.astype(str)) > 0.9
    assert evaluate_head(head, features, held_out=True).num_images == 9


def test_it_is_finished_and_extended_without_touching_what_is_there(earlier: Path) -> None:
    photos, output = earlier / "photos", earlier / "features"
    precision = open_features(str(output)).spec.precision
    request = FeatureRequest(base="mobilenet_0.25", weights="random:0", precision=precision)
    before = {path.name: path.read_bytes() for path in (output / "data").iterdir()}
    summary = extract_images(str(photos), str(output), request, max_rejected=0.1)
    assert (summary.done_before, summary.done_now, summary.ok) == (3, 0, 36)
    tiny.write_files(photos, {f"green/more-{n}.jpg": tiny.jpeg(n) for n in range(5)})
    plan = load_plan(str(output))
    assert plan is not None
    plan, extended = extend_plan(plan)
    assert (extended.added, extended.gone) == (5, 0)  # those that were unpacked have another time, so another etag
    summary = extract_images(str(photos), str(output), request, max_rejected=0.1)
    assert (summary.done_before, summary.done_now, summary.ok) == (3, 1, 41)
    assert finished(plan)
    assert verify(str(output), full=True).exit_code == 0
    assert {name: (output / "data" / name).read_bytes() for name in before} == before


def test_its_head_predicts_its_features_and_its_predictions_are_complete(earlier: Path) -> None:
    arguments = ["predict", str(earlier / "features"), str(earlier / "head")]
    assert main([*arguments, str(earlier / "again")]) == 0
    assert verify(str(earlier / "again"), full=True).exit_code == 0
    assert main(["predict", str(earlier / "photos"), str(earlier / "head"), str(earlier / "predictions")]) == 0
