"""The report: one page that loads nothing, believes no text it is given, and can be read on any screen."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DARK, ask, ask_all, screenshot
from PIL import Image
from test_evaluate import evaluated, head_of
from tiny import data_rows, jpeg, saved_head, spec, write_files

from bottleneck.dataset.features import Features, open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import encode, outcomes
from bottleneck.heads.evaluate import Evaluation
from bottleneck.heads.head import Head
from bottleneck.inspect.plots import LIGHT, draw_calibration, draw_confusion, draw_coverage
from bottleneck.inspect.report import (
    MAX_THUMBNAILS,
    keys_shown,
    rejections_of,
    report_of_features,
    thumbnails_of,
    write_report,
)
from bottleneck.inspect.report_sections import LabelIssues, Rejections, Thumbnails, report_html
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import open_store
from jobs.__main__ import main

HOSTILE = "<script>document.title='taken'</script>\"' onload='x $\\frac{"
GRID = [
    {"C": 0.1, "folds": [0.9, 0.92, 0.91], "mean": 0.91, "std": 0.008, "seconds": 1.25},
    {"C": 1.0, "folds": [0.95, 0.94, 0.96], "mean": 0.95, "std": 0.008, "seconds": 1.5},
]


def evaluation_of(num_classes: int, num_images: int, names: list[str] | None = None) -> Evaluation:
    """Of a head that is often wrong."""
    head = head_of(num_classes)
    if names:
        head.classes_ = np.array(names, object)
    rng = np.random.default_rng(0)
    true_N = rng.integers(0, num_classes, num_images)
    scores_NK = rng.normal(size=(num_images, num_classes)).astype(np.float32)
    scores_NK[np.arange(num_images), true_N] += 3
    keys = [f"{head.classes_[n]}/{i:05d}.jpg" for i, n in enumerate(true_N)]
    return evaluated(head, keys, head.classes_[true_N], scores_NK, 512).result()


def issue_of(key: str) -> dict[str, Any]:
    return {"key": key, "label": HOSTILE, "suggested": HOSTILE, "score": 0.987654, "held_out": False}


def pictures_of(evaluation: Evaluation) -> Thumbnails:
    return Thumbnails({key: jpeg(number, (96, 96)) for number, key in enumerate(keys_shown(evaluation))})


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Finished features of 60 pictures, three of them rejected, without a network."""
    folder = tmp_path_factory.mktemp("report")
    keys = [f"{'cats' if n % 2 else 'dogs'}/{n:04d}.jpg" for n in range(60)]
    write_files(folder / "photos", {key: jpeg(n, (80, 50)) for n, key in enumerate(keys)})
    plan = make_plan(str(folder / "photos"), str(folder / "features"), spec(), shard_size=25)
    store = open_store(plan.output)
    planned = [image.key for image in plan.images()]
    for shard in range(plan.num_shards):
        part = planned[shard * 25 : (shard + 1) * 25]
        rows = data_rows(plan.spec, part, {part[0]: "truncated"}, seed=shard)
        data = encode(rows, plan.spec, shard, outcomes(rows), run_id="test", device="none")
        store.create(plan.data_name(shard), data)
    finish(plan)
    return open_features(plan.output)


@pytest.fixture(scope="module")
def head(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Head:
    """Fitted on a third of the rows, so that it errs on others."""
    features_ND, labels_N = features.arrays()
    folder = tmp_path_factory.mktemp("head") / "head"
    fitted: Head = saved_head(folder, features_ND[::3], labels_N[::3], features.spec)
    fitted.uri = str(folder)  # type: ignore[attr-defined]
    return fitted


def test_the_job_prints_the_report_and_writes_the_page(
    features: Features, head: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "evaluate", head.uri, features.plan.output, "--report", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["images"] == 57
    assert result["fitted_on_these"] is False
    assert "macro avg" in shown.err
    text = (tmp_path / "report/report.html").read_text()
    assert result["report"] == str(tmp_path / "report/report.html")
    assert f"{result['accuracy']:.2%}" in text
    assert "truncated: 3" in text
    assert features.spec.fingerprint in text
    assert "pictures missing" not in text
    again = Evaluation.from_json(json.loads((tmp_path / "report/evaluation.json").read_text()))
    assert again.accuracy == result["accuracy"]
    with Image.open(tmp_path / "report/confusion.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.usefixtures("s3_environment")
def test_a_report_goes_to_a_bucket(bucket: str, features: Features, head: Any) -> None:
    uri = f"s3://{bucket}/report"
    assert main(["evaluate", head.uri, features.plan.output, "--report", uri]) == 0
    assert main(["evaluate", head.uri, features.plan.output, "--report", uri]) == 0  # again, in place of the first
    assert [entry.key for entry in open_store(uri).list()] == ["confusion.png", "evaluation.json", "report.html"]


def test_features_of_another_kind_are_refused(
    features: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features_ND, labels_N = features.arrays()
    saved_head(tmp_path / "head", features_ND, labels_N, spec(resize="crop"))
    assert main(["evaluate", str(tmp_path / "head"), features.plan.output]) == 4
    assert "resize: head crop, features squash" in capsys.readouterr().err


def test_unfinished_features_are_taken_only_where_allowed(
    features: Features, head: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(features.plan.output, tmp_path / "features")
    next((tmp_path / "features/data").iterdir()).unlink()
    assert main(["evaluate", head.uri, str(tmp_path / "features")]) == 3
    assert main(["--json", "evaluate", head.uri, str(tmp_path / "features"), "--allow-incomplete"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] < 57


def test_pictures_come_from_the_source_and_their_absence_is_said(features: Features, tmp_path: Path) -> None:
    keys = [image.key for image in features.plan.images()][:6]
    found = thumbnails_of(features.plan, keys)
    assert sorted(found.images) == sorted(keys)
    assert not found.missing
    assert all(data.startswith(b"\xff\xd8") and len(data) < 12_000 for data in found.images.values())

    source = Path(features.plan.source)
    moved = source.rename(source.with_name("moved"))
    try:
        found = thumbnails_of(features.plan, keys)
    finally:
        moved.rename(source)
    assert not found.images
    assert "6 of 6 pictures missing" in found.missing
    page = report_html("x", evaluation_of(3, 50), None, {}, found, {})
    assert "6 of 6 pictures missing" in page


def test_whatever_keeps_pictures_away_is_said(features: Features) -> None:
    keys = [image.key for image in features.plan.images()][:2]
    for source, words in (("nofs://x/y", "nofs"), ("gone.csv", "gone.csv")):
        plan = replace(features.plan, source=source, reading=Reading(source_format="list"))
        found = thumbnails_of(plan, keys)
        assert not found.images
        assert words in found.missing


def test_a_place_that_takes_no_report_is_told_before_the_work(
    features: Features, head: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.evaluate.evaluate_head", lambda *_: pytest.fail("was evaluated"))
    (tmp_path / "file").write_text("in the way")
    assert main(["evaluate", head.uri, features.plan.output, "--report", str(tmp_path / "file")]) == 5
    assert "A part of the path is a file" in capsys.readouterr().err


def test_a_picture_that_has_changed_since_is_not_shown(features: Features) -> None:
    keys = [image.key for image in features.plan.images()][:2]
    path = Path(features.plan.source) / keys[0]
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(jpeg(999))
    try:
        found = thumbnails_of(features.plan, keys)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(found.images) == [keys[1]]
    assert "1 of 2" in found.missing


def test_the_material_says_how_everything_was_made(features: Features, head: Head) -> None:
    material = report_of_features(features, head, evaluation_of(3, 50))
    assert material["details"]["Features"]["source"] == features.plan.source
    assert material["details"]["Made with"]["device"] == "none"
    assert material["details"]["Head"]["kind"] == "logistic"
    keys = {image.key for image in features.plan.images()}
    assert material["rejected"]["truncated"].images == 3
    assert set(material["rejected"]["truncated"].keys) <= keys


def test_rejected_images_of_unfinished_features_are_counted_from_the_rows(features: Features, tmp_path: Path) -> None:
    shutil.copytree(features.plan.output, tmp_path / "features")
    (tmp_path / "features" / features.files[0]).unlink()
    rest = open_features(str(tmp_path / "features"), allow_incomplete=True)
    whole, part = rejections_of(features), rejections_of(rest)
    assert (whole["truncated"].images, part["truncated"].images) == (3, 2)
    assert set(part["truncated"].keys) < set(whole["truncated"].keys)


class Outside(HTMLParser):
    """Collects every attribute through which a page can ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in ("src", "srcset", "href", "action", "data", "poster"):
                self.asked.append(value or "")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    names = [f"{HOSTILE}{n}" for n in range(4)] + ["\u05d0\u05d1\u05d2", "日本語", "a" * 200]
    evaluation = evaluation_of(7, 200, names)
    write_report(
        str(folder),
        HOSTILE,
        evaluation,
        grid=GRID,
        details={HOSTILE: {HOSTILE: HOSTILE}},
        thumbnails=Thumbnails(pictures_of(evaluation).images, HOSTILE),
        rejected={HOSTILE: Rejections(30, (HOSTILE,))},
        notes=[HOSTILE],
        label_issues=LabelIssues(30, tuple(issue_of(mistake.key) for mistake in evaluation.mistakes)),
    )
    return folder / "report.html"


def test_text_never_becomes_markup(hostile_page: Path, tmp_path: Path) -> None:
    text = hostile_page.read_text()
    assert "<script>document.title" not in text
    assert text.count("<script>") == 1
    parser = Outside()
    parser.feed(text)
    assert parser.tags.count("script") == 1
    assert ask(hostile_page, tmp_path, "document.title.startsWith('<script>')") == ["true"]


def test_nothing_is_asked_of_anyone(hostile_page: Path) -> None:
    text = hostile_page.read_text()
    parser = Outside()
    parser.feed(text)
    assert parser.asked
    assert all(one.startswith(("data:", "#")) for one in parser.asked)
    assert "default-src 'none'; img-src data:;" in text
    assert "url(" not in text
    assert "@import" not in text


FLOWERS = ["bluebell", "colts_foot", "dandelion", "fritillary", "lily_valley", "snowdrop", "sunflower", "windflower"]
CUT = """(() => {
    const wrong = new Set(), width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) wrong.add("the page is wider than the window");
    const clips = node => getComputedStyle(node).overflowX !== "visible";
    const shown = [...document.images, ...document.querySelectorAll(".sortable tr > *, caption span")];
    for (const one of shown) {
        const box = one.getBoundingClientRect();
        for (let node = one.parentElement; node !== document.body; node = node.parentElement)
            if (clips(node) && box.right > node.getBoundingClientRect().right + 1)
                wrong.add("cut on the right: " + (one.alt || one.textContent));
        if (!box.width || box.right > width + 1) wrong.add("out of the window: " + (one.alt || one.textContent));
    }
    for (const one of document.querySelectorAll(".scroll"))
        if (one.scrollWidth > one.clientWidth + 1 && !one.parentElement.classList.contains("more"))
            wrong.add("columns are hidden without a cue: " + one.ariaLabel);
    for (const one of document.querySelectorAll(".thumb"))
        if (!one.alt && !one.textContent.trim()) wrong.add("a blank frame");
    for (const name of document.querySelectorAll("bdi"))
        for (const part of name.childNodes) {
            const range = document.createRange();
            range.selectNodeContents(part);
            const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
            if (part.length <= 11 && lines.size > 1) wrong.add("broken in mid-word: " + part.data);
        }
    return JSON.stringify([...wrong].slice(0, 9));
})()"""


def test_any_number_of_classes_fits_on_any_screen(tmp_path: Path) -> None:
    pages, widths = [], (320, 375, 500, 1200)
    for num_classes in (2, 17, 24, 102, 1000):
        names = (FLOWERS + [f"purple_coneflower_{n}" for n in range(num_classes)])[:num_classes]
        evaluation = evaluation_of(num_classes, min(20 * num_classes, 3000), names)
        pictures = pictures_of(evaluation)
        assert len(pictures.images) <= MAX_THUMBNAILS
        rejected = {"truncated": Rejections(1, ("a/very/long/key/" + "x" * 300 + ".jpg",))}
        pages.append(tmp_path / f"{num_classes}.html")
        pages[-1].write_text(report_html("A report", evaluation, GRID, {}, pictures, rejected))
        assert pages[-1].stat().st_size < 1_800_000
    found = ask_all(pages, tmp_path, CUT, *widths)
    cases = [f"{page.stem} classes, {width} px" for page in pages for width in widths]
    assert {case: json.loads(one) for case, one in zip(cases, found, strict=True) if one != "[]"} == {}
    for width, options in ((1280, ()), (390, ()), (1280, (DARK,))):
        with Image.open(screenshot(pages[-1], width, 1600, tmp_path, *options)) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 50, "blank"
        is_dark = pixels_HWC[5, 5].mean() < 100
        assert is_dark == bool(options)


def test_what_has_no_picture_says_why() -> None:
    evaluation = evaluation_of(1000, 3000)
    pair = next(one for one in evaluation.confused if not {one.label, one.predicted} <= evaluation.examples.keys())
    without = {key: data for key, data in pictures_of(evaluation).images.items() if key not in pair.keys}
    html = report_html("x", evaluation, None, {}, Thumbnails(without), {})
    assert ">none was recognised</div>" in html
    assert ">no picture</div>" in html


def test_a_click_enlarges_a_picture(hostile_page: Path, tmp_path: Path) -> None:
    click = """(() => {
        const dialog = document.querySelector("dialog"), told = [dialog.open];
        for (const small of document.querySelectorAll(".gallery .open, .open.picture")) {
            const before = small.querySelector("img").getBoundingClientRect().width;
            small.click();
            const large = dialog.querySelector("img"), button = dialog.querySelector("button");
            told.push(dialog.open && large.alt === small.querySelector("img").alt && large.src.startsWith("data:"));
            const wanted = small.matches(".picture") ? 380 : Math.max(before + 1, 300);  // of 375 px
            told.push(large.getBoundingClientRect().width >= wanted || small.matches("#calibration *, #coverage *"));
            button.click();
            told.push(!dialog.open);
        }
        return told.length + " " + told.indexOf(false, 1) + " " + told[0];
    })()"""
    [told] = ask(hostile_page, tmp_path, click, 375)
    number, wrong, was_open = told.split()
    assert (int(wrong), was_open) == (-1, "false")
    assert int(number) > 10


def test_the_table_is_sorted_by_its_headings(hostile_page: Path, tmp_path: Path) -> None:
    click = (
        "(() => { const table = document.querySelector('table.sortable'), head = table.tHead.rows[0].cells[4];"
        "head.querySelector('button').click();"
        "return head.ariaSort + [...table.tBodies[0].rows].map(row => ' ' + row.cells[4].textContent).join('') })()"
    )
    direction, *counts = ask(hostile_page, tmp_path, click)[0].split()
    assert direction == "descending"
    assert [int(one) for one in counts] == sorted((int(one) for one in counts), reverse=True)


def test_the_page_can_be_read_without_seeing_and_without_a_mouse(hostile_page: Path, tmp_path: Path) -> None:
    text = hostile_page.read_text()
    assert '<html lang="en">' in text
    assert text.index('class="skip"') < text.index("<header>")
    assert all(f"<{landmark}" in text for landmark in ("header", "nav", "main", "footer"))
    assert len(re.findall(r"<table", text)) == len(re.findall(r"<caption>", text)) == 3
    assert 'scope="col"' in text
    assert 'scope="row"' in text
    unnamed = "[...document.images].filter(image => !image.alt).length"
    # What scrolls inside the page can be reached by keyboard.
    scrolls = "[...document.querySelectorAll('.scroll')].filter(one => one.tabIndex !== 0).length"
    assert ask(hostile_page, tmp_path, f"{unnamed} + ' ' + {scrolls}") == ["0 0"]


def test_the_best_c_is_marked(hostile_page: Path) -> None:
    row = re.search(r'<tr class="best">(.*?)</tr>', hostile_page.read_text())
    assert row
    assert "1 (best)" in row[1]


def test_drawings_bear_any_labels_and_sizes() -> None:
    for num_classes in (2, 41, 251):
        evaluation = evaluation_of(num_classes, 300)
        png = draw_confusion(evaluation, "png", LIGHT)
        assert png.startswith(b"\x89PNG")
        assert draw_confusion(evaluation, "png", LIGHT) == png
    svg = draw_calibration(evaluation_of(3, 50), "svg", LIGHT)
    assert b"<svg" in svg


def test_likely_mislabelled_images_are_shown_where_there_are_folds_to_find_them(hostile_page: Path) -> None:
    assert "30 images look like another class than the label's" in hostile_page.read_text()
    assert "the likeliest are shown, and all are in label-issues.parquet" in hostile_page.read_text()
    assert "score 0.988" in hostile_page.read_text()
    evaluation = evaluation_of(3, 50)
    assert "Likely mislabelled" not in report_html("x", evaluation, None, {}, Thumbnails(), {})
    none = report_html("x", evaluation, None, {}, Thumbnails(), {}, label_issues=LabelIssues(0))
    assert "None: no image looks like one of another class" in none


def test_the_accuracy_of_a_share_of_the_images_is_told_and_drawn(
    features: Features, head: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--threshold", "0.7", "--report", str(tmp_path / "report")]
    assert main(["--json", "evaluate", head.uri, features.plan.output, *options]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    features_ND, labels_N = features.arrays()
    sure_N = head.predict_proba(features_ND).max(axis=1) >= 0.7
    right_N = head.predict(features_ND) == labels_N
    assert 0 < sure_N.sum() < len(sure_N)
    assert (result["threshold"], result["coverage"]) == (0.7, sure_N.mean())
    assert result["accuracy_answered"] == right_N[sure_N].mean()
    share, sure = f"{100 * sure_N.mean():.2f} %", f"{100 * right_N[sure_N].mean():.2f} %"
    assert f"probability of 0.7 or more: {share} of the images, {sure} of them rightly" in shown.err
    text = (tmp_path / "report/report.html").read_text()
    assert f"At a threshold of 0.7 it answers {sure_N.mean():.2%} of the images" in text
    assert f"<td>{right_N.mean():.2%}</td>" in text
    assert f"log loss {result['log_loss']:.3f}, Brier score {result['brier_score']:.3f}" in shown.err
    assert f"<dd>{result['log_loss']:.3f}" in text
    assert f"<dd>{result['brier_score']:.3f}" in text
    svgs = [draw_coverage(evaluation_of(num_classes, 60), "svg", LIGHT) for num_classes in (2, 30)]
    assert all(b"<svg" in svg for svg in svgs)


def test_a_threshold_that_is_no_probability_is_refused_before_the_work(
    features: Features, head: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", head.uri, features.plan.output, "--threshold", "90"]) == 2
    assert "--threshold takes a probability from 0 to 1. Received: 90." in capsys.readouterr().err


def test_a_perfect_head_has_a_report_too() -> None:
    head = head_of(3)
    labels_N = head.classes_[[0, 1, 2, 0]]
    scores_NK = 9 * np.eye(3)[[0, 1, 2, 0]]
    evaluation = evaluated(head, ["a", "b", "c", "d"], labels_N, scores_NK).result()
    page = report_html("x", evaluation, None, {}, Thumbnails(), {})
    assert "every image was recognised" in page
    assert "None: every planned image has features" in page


def test_drawing_is_loaded_only_to_draw() -> None:
    code = "import bottleneck.inspect.report, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
