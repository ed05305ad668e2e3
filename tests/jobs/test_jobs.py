"""The command line: options are a decision, help works, results are one JSON line, errors have their exit codes."""

import importlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import digits_folder, jpeg, photos, write_files

from bottleneck.console import duration
from jobs import results
from jobs.__main__ import JOBS, main
from jobs.command_line import options
from jobs.demo import head_of

FEATURES = ["base", "weights", "layers", "resize", "interpolation", "exif", "decode", "precision", "dtype"]
FEATURES += ["pixels", "channels", "scale", "mean", "std", "image_size"]
LIMITS = ["max_bytes", "max_pixels", "formats"]
READING = ["labels", "source_format", "image_column", "label_column", "label_names", "roots", "follow_links"]
READING += ["accept_cut"]
SELECTION = ["include", "exclude", "limit", "sample", "seed"]
OPTIONS = {
    "extract": [
        *[
            "source",
            "output",
            *FEATURES,
            *READING,
            *SELECTION,
            "shard_size",
            *LIMITS,
        ],
        *["extend", "max_rejected", "local", "num_actors", "use_gpu", "batch_size", "runtime"],
    ],
    "plan": [
        "source",
        "output",
        *FEATURES,
        *READING,
        *SELECTION,
        "shard_size",
        *LIMITS,
        "max_rejected",
        "use_gpu",
        "no_estimate",
        "price_per_hour",
    ],
    "requeue": ["output", "reason", "changed", "max_bytes", "max_pixels", "formats"],
    "status": ["output", "watch"],
    "verify": ["output", "full", "recompute"],
    "predict": [
        *[
            "source",
            "head",
            "output",
            "top",
            "proba",
            "table",
            "weights",
            "allow_incomplete",
            *READING,
            "shard_size",
            *LIMITS,
        ],
        *["extend", "max_rejected", "num_actors", "use_gpu", "batch_size", "runtime"],
    ],
    "fit": [
        *["features", "head", "kind", "layer", "c", "multi_label", "folds", "metric", "test_fraction", "test_keys"],
        *["group_by", "scale", "class_weight", "hidden_size", "epochs", "seed", "test"],
        *["num_workers", "use_gpu", "allow_incomplete"],
    ],
    "evaluate": ["head", "features", "held_out", "allow_incomplete", "threshold", "report"],
    "classify": ["images", "head", "base", "weights", "names", "top", "table"],
    "similar": ["places", "top", "exclude_copies", "layer", "sheet", "table", "weights", "allow_incomplete"],
    "duplicates": ["features", "file", "min_cosine", "layer", "sheet", "allow_incomplete"],
    "report": ["features", "file", "layer", "allow_incomplete"],
    "describe": ["base", "weights", "image_size", "plot"],
    "export": ["source", "file", "layer", "order", "flat", "weights", "allow_incomplete"],
    "diff": ["a", "b", "top", "min_cosine", "allow_incomplete"],
    "doctor": ["source", "output", "address"],
    "demo": ["folder"],
    "submit": ["job", "address", "wait", "with_code", "ca_file"],
}


def run(*arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """A job in a process of its own: exit code, the JSON of its last line, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


@pytest.mark.parametrize("job", OPTIONS)
def test_a_new_option_is_a_decision(job: str) -> None:
    assert options(importlib.import_module(f"jobs.{job}").Config) == OPTIONS[job]


@pytest.mark.parametrize("job", JOBS)
def test_every_job_says_what_it_does(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([job, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "Exit codes" in shown
    assert f"bottleneck {job}" in shown


def test_without_a_job_the_jobs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert all(job in shown for job in JOBS)


def test_the_demo_puts_its_head_beside_its_features() -> None:
    assert head_of("/data/features/demo/features-random") == "/data/features/demo/head-random"


def test_plan_extract_verify(tmp_path: Path) -> None:
    source, output = str(tmp_path / "photos"), str(tmp_path / "features")
    digits_folder(tmp_path / "photos", per_class=4)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    features = ["--base", "mobilenet_0.25", "--weights", "random:0"]

    code, planned, told = run("plan", source, output, *features, "--shard-size", "16", "--no-estimate")
    assert (code, planned["images"], planned["shards"], planned["labels"]) == (0, 40, 3, 10)
    assert "1 x .txt" in told
    assert planned["skipped"] == {".txt": 1}
    assert planned["estimate"] is None
    assert "estimate " not in told

    code, planned, told = run("plan", source, output, *features)  # the same plan
    assert code == 0, told
    estimate = planned["estimate"]
    assert (estimate["images"], estimate["sampled"]) == (40, 30)  # 11, 11 and all 8 of its shards
    line = re.search(r"^estimate +([\d.,]+) images/s on this machine, limited by (\w+): about", told, re.M)
    assert line is not None, told
    assert float(line[1].replace(",", "")) == pytest.approx(estimate["images_per_second"], abs=0.06)
    assert line[2] == estimate["limiting"]

    code, summary, told = run("extract", source, output, *features)
    assert code == 0, told
    assert (summary["ok"], summary["done_now"], summary["done_before"]) == (40, 3, 0)
    assert summary["skipped"] == {".txt": 1}
    assert 0 < summary["details"]["first_batch_seconds"] < summary["seconds"]  # of one clock
    assert f"done by this run in {duration(summary['seconds'])}, " in told
    assert "40 of 40" in told
    sizes = [path.stat().st_size for path in (tmp_path / "features" / "data").iterdir()]
    assert estimate["output_bytes"] == pytest.approx(sum(sizes), rel=0.1)

    code, again, _ = run("extract", source, output, *features, RAY_ADDRESS="127.0.0.1:1")  # needs no Ray at all
    assert (code, again["done_now"], again["done_before"]) == (0, 0, 3)

    code, report, _ = run("verify", output, "--full", "--recompute", "5")
    assert (code, report["ok"], report["recomputed"]) == (0, 40, 5)
    assert report["recompute_min_cosine"] > 0.9999

    (tmp_path / "photos" / "3" / "added.jpg").write_bytes((tmp_path / "photos" / "3" / "0000.jpg").read_bytes())
    (tmp_path / "photos" / "4" / "0000.jpg").unlink()
    os.utime(tmp_path / "photos" / "5" / "0000.jpg", ns=(1, 1))
    code, extended, told = run("extract", source, output, *features, "--extend")
    assert code == 0, told
    assert (extended["images"], extended["done_now"]) == (41, 1)
    assert extended["extended"] == {
        "added": 1,
        "changed": 1,
        "gone": 1,
        "changed_keys": ["5/0000.jpg"],
        "gone_keys": ["4/0000.jpg"],
    }
    assert "4/0000.jpg" in told
    assert run("verify", output, "--full")[0] == 0


def test_a_plan_counts_requests_and_tells_a_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.photos(tmp_path / "photos", 40)
    arguments = [
        "plan",
        str(tmp_path / "photos"),
        str(tmp_path / "features"),
        "--base",
        "stub",
        "--weights",
        "random:0",
    ]
    assert main(["--json", *arguments, "--shard-size", "8", "--price-per-hour", "3600"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["requests"] == {
        "get": 41,
        "put": 6,
        "list": 1,
    }  # 40 images and one part; five data files and _SUCCESS
    assert result["price"] == pytest.approx(result["estimate"]["hours"] * 3600, abs=0.5)
    for given, told in (
        (["--price-per-hour", "-1"], "a number from 0 up"),
        (["--price-per-hour", "1"], "Leave one of"),
    ):
        assert main([*arguments, "--no-estimate", *given]) == 2
        assert told in capsys.readouterr().err


def test_the_librarys_parameters_are_options_on_the_command_line() -> None:
    message = "`test_fraction` takes a share. Received: 2. Run `bottleneck fit` without `c`; `head` stays."
    expected = "--test-fraction takes a share. Received: 2. Run `bottleneck fit` without --c; `head` stays."
    with results.answering(as_json=False):
        assert results.with_options(message) == message
        results.speak_of(options(importlib.import_module("jobs.fit").Config, named=True))
        assert results.with_options(message) == expected
        record = logging.LogRecord("jobs", logging.INFO, "", 0, message, (), None)
        assert results.LineFormatter().format(record) == expected


def test_requeue_names_the_command_that_goes_on(tmp_path: Path) -> None:
    from bottleneck.extract.local import extract_images
    from bottleneck.sources.reading import Limits, Reading
    from bottleneck.spec import FeatureRequest

    source, output = digits_folder(tmp_path / "my photos", per_class=1), str(tmp_path / "features")
    request = FeatureRequest(base="mobilenet_0.25", weights="random:0", layers=("conv_pw_1_relu:max",), exif="ignore")
    given: dict[str, Any] = {"limits": Limits(max_bytes=4000), "reading": Reading(labels="none"), "shard_size": 4}
    write_files(source, {"0/broken.jpg": b"no image", "1/large.jpg": jpeg(1, (400, 300))})
    extract_images(str(source), output, request, **given, max_rejected=1.0)

    code, nothing, told = run("requeue", output, "--changed", "--reason", "empty")
    assert (code, nothing["shards"], nothing["command"]) == (0, 0, None)
    assert "nothing to requeue" in told

    write_files(source, {"0/broken.jpg": jpeg(2)})
    code, requeued, told = run(
        *["requeue", output, "--reason", "not_an_image", "too_many_bytes", "--max-bytes", "900000"]
    )
    assert code == 0, told
    assert requeued["rejected"] == {"not_an_image": 1, "too_many_bytes": 1}
    assert "now run: bottleneck extract" in told
    job, *rest = shlex.split(requeued["command"])[1:]
    assert told.splitlines()[-1].endswith(requeued["command"])
    code, refused, _ = run("extract", str(source), output, *rest[2:-2])
    assert code == 4
    assert "max_bytes: planned 900000, requested 100000000" in refused["message"]
    code, summary, told = run(job, *rest)
    assert code == 0, told
    assert (summary["ok"], summary["done_before"], summary["done_now"]) == (12, 2, 1)
    assert run("verify", output, "--full", "--recompute", "3")[0] == 0


def test_recompute_notices_features_of_another_image(tmp_path: Path) -> None:
    from bottleneck.extract.local import extract_images
    from bottleneck.spec import FeatureRequest

    digits_folder(tmp_path / "photos", per_class=2)
    request = FeatureRequest(base="mobilenet_0.25", weights="random:0")
    extract_images(str(tmp_path / "photos"), str(tmp_path / "features"), request)
    # Another picture behind the table's back, with the size and time stamp of the old one.
    path, other = tmp_path / "photos" / "3" / "0000.jpg", tmp_path / "photos" / "4" / "0001.jpg"
    before = path.stat()
    path.write_bytes((other.read_bytes() + bytes(before.st_size))[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, report, told = run("verify", str(tmp_path / "features"), "--recompute", "20")
    assert code == 1, told
    assert "different: 3/0000.jpg" in told
    assert report["exit_code"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["extract", "{empty}", "{out}"], 2, "is empty or does not exist"),
        (["extract", "{missing}", "{out}"], 2, "is empty or does not exist"),
        (["extract", "{texts}", "{out}"], 2, "only other files: 1 x .txt"),
        (["extract", "{photos}", "{texts}"], 2, "holds something else: a.txt"),
        (["extract", "{photos}", "{out}", "--base", "vgg17"], 2, "Expected vgg19, vgg16, "),
        (["extract", "{photos}", "{out}", "--layers", "a:b"], 2, "avg, max or none"),
        (["extract", "{photos}", "{out}", "--num-actors", "0"], 2, "from 1 up"),
        (["extract", "{photos}", "gs://bucket/x"], 2, "Expected a folder"),
        (["extract", "{photos}", "s3://key:secret@bucket/x"], 2, "holds no credentials"),
        (["plan", "{photos}", "{out}", "--weights", "{missing}.h5", "--precision", "float32"], 5, "No such weights"),
        (["verify", "{empty}"], 2, "plan"),
        (["requeue", "{empty}", "--changed"], 2, "has no plan.json"),
        (["verify", "{photos}", "--recompute", "-1"], 2, "from 0 up"),
        (["evaluate", "{empty}", "{photos}"], 2, "holds no head"),
        (["export", "{empty}", "{out}"], 2, ".keras or .onnx"),
        (["export", "{empty}", "{out}/x.h5"], 2, "no plan.json"),
        (["similar", "{photos}/a.jpg", "{empty}"], 2, "no plan.json"),
        (["diff", "{empty}", "{photos}"], 2, "no plan.json"),
    ],
)
def test_wrong_arguments_have_one_clear_error(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: str(tmp_path / name) for name in ("empty", "missing", "texts", "photos", "out")}
    for name in ("empty", "texts", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "photos" / "a.jpg").write_bytes(b"an image, by its name")
    assert main(["--json", *[argument.format(**places) for argument in arguments]]) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert json.loads(shown.out.splitlines()[-1])["exit_code"] == code
    assert not (tmp_path / "out").exists()


def test_pydatas_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "Bottleneck-1.6.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: Bottleneck\nVersion: 1.6.0\n"
    (tmp_path / "Bottleneck-1.6.0.dist-info" / "METADATA").write_text(metadata)
    code, _, told = run("verify", "anywhere", PYTHONPATH=str(tmp_path))
    assert code == 5
    assert "pip uninstall Bottleneck" in told


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "{folder}/none.h5"], 5, "No such weights"),
        (["--roots", "{folder}/none"], 2, "There is nothing in"),
        (["--base", "ResNet60"], 2, "Expected resnet50, "),
        (["--layers", "block5_pol:avg"], 2, "Expected one such as block5_pool, "),
    ],
)
def test_what_keras_is_not_needed_for_is_refused_before_it_starts(
    options: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_files(tmp_path / "photos", {"a.jpg": jpeg(1)})
    monkeypatch.setattr("bottleneck.extract.open_plan.resolve_apart", lambda *_: pytest.fail("Keras was started"))
    given = [option.format(folder=tmp_path) for option in options]
    assert main(["plan", str(tmp_path / "photos"), str(tmp_path / "out"), "--precision", "float32", *given]) == code
    assert words in capsys.readouterr().err


def test_a_local_run_needs_no_ray_and_others_go_on_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = photos(tmp_path / "photos", 6), tmp_path / "features"
    arguments = ["extract", str(source), str(output), "--base", "stub", "--weights", "random:0", "--local"]
    for option in (["--num-actors", "2"], ["--use-gpu"]):
        assert main([*arguments, *option]) == 2
        assert "--local" in capsys.readouterr().err
    assert not output.exists()
    script = f"import sys; from jobs.__main__ import main; print(main({arguments!r}), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
    photos(source, 3, first=100)
    assert main(["--json", *arguments, "--extend"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["ok"], result["extended"]["added"]) == (9, 9, 3)
    assert main(["verify", str(output), "--full"]) == 0
