"""The whole job on real photos, from a real S3 server, with real ImageNet weights; and on every odd image."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.dataset
import pytest
from assets import asset
from PIL import Image
from servers import S3Server
from sklearn.linear_model import LogisticRegression
from test_label_issues import issues_of

from bottleneck.audit.verify import verify
from bottleneck.dataset.export import export_features
from bottleneck.dataset.features import open_features
from bottleneck.extract.local import extract_images
from bottleneck.heads.head import Head
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.splits import split
from bottleneck.inspect.duplicate_groups import grouped
from bottleneck.inspect.duplicates import near_duplicates
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureRequest

WEIGHTS = "weights/mobilenet_7_5_224_tf_no_top.rebuilt.h5"


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Features of the photos in the local folder, without Ray."""
    output = str(tmp_path_factory.mktemp("flowers") / "features")
    request = FeatureRequest(base="mobilenet_0.75", weights=str(asset(WEIGHTS)))
    summary = extract_images(str(asset("flowers17")), output, request)
    assert (summary.images, summary.ok) == (1360, 1360)
    return output


def test_flowers_through_s3_are_the_flowers_of_the_folder(
    from_folder: str, s3_server: S3Server, bucket: str, s3_environment: dict[str, str]
) -> None:
    assert s3_server.upload_folder(asset("flowers17"), bucket, "photos/") >= 1360
    job = [sys.executable, "-m", "jobs", "--json", "extract", f"s3://{bucket}/photos", f"s3://{bucket}/features"]
    options = ["--base", "mobilenet_0.75", "--weights", str(asset(WEIGHTS))]
    done = subprocess.run([*job, *options], capture_output=True, text=True, env=os.environ | s3_environment)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (summary["images"], summary["ok"], summary["rejected"]) == (1360, 1360, {})

    report = verify(f"s3://{bucket}/features", full=True)
    assert (report.exit_code, report.ok) == (0, 1360)
    here, there = open_features(from_folder), open_features(f"s3://{bucket}/features")
    assert len(there.plan.label_counts) == 17
    for mine, theirs in zip(here.arrays(), there.arrays(), strict=True):
        assert mine.tobytes() == theirs.tobytes() if mine.dtype != object else list(mine) == list(theirs)


@pytest.mark.parametrize(("kind", "least"), [("logistic", 0.955), ("svm", 0.955), ("mlp", 0.94)])
def test_accuracy_of_a_head_on_the_flowers(from_folder: str, kind: Any, least: float) -> None:
    """Five folds of the project's own split; C as it comes, for the svm a stronger penalty."""
    features = open_features(from_folder)
    features_ND, labels_N = features.arrays()
    digests = [value[:8] for table in features.tables(["sha256"]) for value in table.column("sha256").to_pylist()]
    classes, class_indices_N = np.unique(labels_N.astype(str), return_inverse=True)
    folds_N = split(
        class_indices_N, np.frombuffer(b"".join(digests), ">u8").astype(np.uint64), list(classes), 0.0, 5
    ).folds_N
    scores = []
    for fold in range(5):
        seen = folds_N != fold
        head = Head(kind, C=0.01 if kind == "svm" else 1.0).fit(features_ND[seen].astype(np.float32), labels_N[seen])
        scores.append(head.score(features_ND[~seen].astype(np.float32), labels_N[~seen]))
    assert np.mean(scores) >= least


def test_a_photo_that_was_saved_again_is_a_near_duplicate(from_folder: str, tmp_path: Path) -> None:
    photos = sorted(asset("flowers17").glob("*/*.jpg"))[::68]
    assert len(photos) == 20
    for photo in photos:
        (tmp_path / "photos" / photo.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "photos" / photo.parent.name / photo.name)
    again = tmp_path / "photos" / "again.jpg"
    with Image.open(photos[7]) as picture:
        picture.save(again, quality=60)
    assert again.read_bytes() != photos[7].read_bytes()
    extract_images(str(tmp_path / "photos"), str(tmp_path / "features"), open_features(from_folder).spec.request)
    features = open_features(str(tmp_path / "features"))
    [group] = grouped(features, near_duplicates(features, 0.95)).largest(10, 10)
    assert set(group.keys) == {"again.jpg", f"{photos[7].parent.name}/{photos[7].name}"}


def test_most_of_the_flowers_with_a_wrong_label_are_found_first(from_folder: str) -> None:
    """5 % of the labels are another class at random."""
    features_ND, labels_N = open_features(from_folder).arrays()
    class_indices_N = np.unique(labels_N.astype(str), return_inverse=True)[1]
    rng = np.random.default_rng(0)
    flipped_N = rng.choice(len(labels_N), round(0.05 * len(labels_N)), replace=False)
    class_indices_N[flipped_N] = (class_indices_N[flipped_N] + rng.integers(1, 17, len(flipped_N))) % 17
    folds_N = rng.integers(0, 3, len(labels_N))
    found = issues_of(features_ND, class_indices_N, folds_N, HeadRequest(c=(0.1, 1.0)))
    first = {int(key) for key in found.column("key").to_pylist()[:100]}
    assert len(first & set(flipped_N.tolist())) >= 0.8 * len(flipped_N)


def test_the_tutorials_reader_recognises_the_flowers(from_folder: str, tmp_path: Path) -> None:
    """Fitted on the first three quarters of the exported file and judged on the rest, as the tutorial goes on."""
    export_features(open_features(from_folder), str(tmp_path / "flowers.h5"))
    with h5py.File(tmp_path / "flowers.h5", "r") as db:
        i = int(db["labels"].shape[0] * 0.75)
        model = LogisticRegression(max_iter=1000).fit(db["features"][:i], db["labels"][:i])
        assert model.score(db["features"][i:], db["labels"][i:]) >= 0.94


@pytest.mark.parametrize("tiff", [False, True])
def test_every_odd_image_ends_as_the_table_says(tiff: bool, tmp_path: Path) -> None:
    request = FeatureRequest(base="mobilenet_0.25", weights="random:0")
    output = str(tmp_path / "features")
    extract_images(
        str(asset("oddimages")), output, request, limits=Limits(formats=("tiff",) if tiff else ()), max_rejected=1.0
    )
    rows = pyarrow.dataset.dataset(output + "/data").to_table(columns=["key", "reason"]).to_pylist()
    found = {row["key"]: row["reason"] or "ok" for row in rows}
    with open(Path(__file__).parent / "oddimages.tsv", newline="") as file:
        expected = {
            line["file"]: line["with_tiff" if tiff else "status"] for line in csv.DictReader(file, delimiter="\t")
        }
    skipped = expected.keys() - found.keys()
    assert found == {key: reason for key, reason in expected.items() if key not in skipped}
    assert all(expected[key] == "not_an_image" for key in skipped)
    assert verify(output, full=True).exit_code == 0
