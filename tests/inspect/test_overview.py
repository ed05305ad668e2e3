"""A page of what is in a dataset: everything counted, bounded, and loading nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from bottleneck.dataset.features import Features, open_features
from bottleneck.inspect import overview
from bottleneck.inspect.duplicate_groups import grouped
from bottleneck.inspect.duplicates import near_duplicates
from bottleneck.inspect.overview import overview_html, overview_of
from jobs.__main__ import main

STUB = ("--base", "stub", "--weights", "random:0", "--local")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Sixty pictures of two classes, one without a class, one twice, one damaged."""
    folder = tmp_path_factory.mktemp("overview")
    tiny.photos(folder / "photos", 60)
    others = {"alone.jpg": tiny.jpeg(99, (300, 200)), "cats/twice.jpg": tiny.jpeg(5), "dogs/<i>no.jpg": b"no image"}
    tiny.write_files(folder / "photos", others)
    assert main(["extract", str(folder / "photos"), str(folder / "features"), *STUB, "--max-rejected", "0.1"]) == 0
    return open_features(str(folder / "features"))


def test_everything_is_counted(features: Features) -> None:
    found = overview_of(features, features.layers[0])
    assert found.labels == {"cats": 31, "dogs": 30, None: 1}
    assert found.num_ok == 62
    assert {reason: one.images for reason, one in found.rejected.items()} == {"not_an_image": 1}
    assert found.sizes == {0: 61, 3: 1}  # 40 x 30 pixels, and 300 x 200
    assert found.modes == {"RGB": 62}
    assert found.keys == features.keys().tolist()
    assert found.first_keys["cats"] == sorted(key for key in found.keys if key.startswith("cats/"))[:6]
    assert found.copies_of == "all 62 images"
    expected = grouped(features, near_duplicates(features, 0.99))
    assert found.num_copies == expected.num_groups >= 1
    assert found.copies[0] == expected.largest(1, 5)[0]


def test_outliers_are_those_whose_nearest_are_least_like_them(features: Features) -> None:
    found = overview_of(features, features.layers[0])
    values_ND, _ = features.arrays()
    units_ND = values_ND / np.linalg.norm(values_ND, axis=1, keepdims=True)
    means = {}
    for row, key in enumerate(features.keys().tolist()):
        cosines_N = np.delete(units_ND @ units_ND[row], row)
        means[key] = np.sort(cosines_N)[-5:].mean()
    expected = sorted(means.values())[: len(found.outliers)]
    np.testing.assert_allclose([cosine for _, _, cosine in found.outliers], expected, atol=1e-5)
    assert all(abs(means[key] - cosine) < 1e-5 for key, _, cosine in found.outliers)
    assert ((found.points_N2 >= 0) & (found.points_N2 <= 1)).all()
    assert 0 < found.explained <= 1 + 1e-6


def test_large_datasets_are_sampled_evenly(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MAX_SAMPLE", 20)
    monkeypatch.setattr(overview, "MAX_OPERATIONS", 1)
    found = overview_of(features, features.layers[0])
    every = features.keys().tolist()
    assert (len(found.keys), found.keys[0], found.keys[-1]) == (20, every[0], every[-1])
    assert found.num_ok == 62
    assert found.copies_of == "the 20 images of the sample"
    assert sum(group.num_images for group in found.copies) <= 20
    assert all(group.num_images >= 2 and group.least_cosine >= 0.99 for group in found.copies)
    assert found.num_copies >= len(found.copies) >= 1
    assert np.diff([every.index(key) for key in found.keys]).max() <= 4


def test_a_single_image_is_shown(tmp_path: Path) -> None:
    tiny.photos(tmp_path / "photos", 1)
    assert main(["extract", str(tmp_path / "photos"), str(tmp_path / "features"), *STUB]) == 0
    one = open_features(str(tmp_path / "features"))
    found = overview_of(one, one.layers[0])
    assert (found.outliers, found.num_copies, found.points_N2.tolist()) == ([], 0, [[0.5, 0.5]])
    assert "dogs/0000.jpg" in overview_html(one, one.layers[0], found)


def test_the_page_loads_nothing_and_escapes_names(features: Features) -> None:
    page = overview_html(features, features.layers[0], overview_of(features, features.layers[0]))
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    assert page.count("data:image/jpeg") > 90
    assert "<i>no" not in page
    assert "not_an_image: 1" in page
    assert "(no label)" in page


def test_without_the_source_there_is_a_page_without_pictures(
    features: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.move(features.plan.source, tmp_path / "elsewhere")
    try:
        assert main(["--json", "report", features.plan.output, str(tmp_path / "page.html")]) == 0
    finally:
        shutil.move(moved, features.plan.source)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = (tmp_path / "page.html").read_text()
    assert "pictures" in page
    assert "data:image/jpeg" not in page
    assert (result["images"], result["unlabelled"], result["rejected"]) == (62, 1, {"not_an_image": 1})
    assert result["bytes"] == len(page.encode())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{features}", "page.htm"], "ending in .html"),
        (["{folder}", "{folder}/page.html"], "no plan.json"),
        (["{features}", "{folder}/page.html", "--layer", "fc9"], "no features of that layer"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    arguments: list[str], told: str, features: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"features": features.plan.output, "folder": str(tmp_path)}
    assert main(["report", *(one.format(**places) for one in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
