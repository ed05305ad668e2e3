"""What a job's --help says, defaults from the environment, and tab completion."""

import importlib
import json
import logging
import re
import shutil
import subprocess

import pytest

from jobs.__main__ import JOBS, main
from jobs.command_line import docs_of, options, parse, with_environment
from jobs.extract import Config
from jobs.submit import written_out

FIRST_TO_LAST = ("--base", "--weights", "--layers", "--roots", "--num-actors")


def help_of(job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int = 100) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as end:
        main([job, "--help"])
    assert not end.value.code
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("job", JOBS)
def test_help_shows_types_defaults_and_exit_codes(
    job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(job, capsys, monkeypatch)
    assert "None" not in text
    assert "(default: )" not in text
    assert "(default: False)" not in text
    assert "\n    3   incomplete: run the same command again\n" in text
    for option in options(importlib.import_module(f"jobs.{job}").Config, named=True):
        assert f"--{option.replace('_', '-')}" in text
    assert not re.search(r"images? (a|per) second|\\d s on two cores", text), "rates belong in the benchmarks"


def test_what_matters_first_is_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of("extract", capsys, monkeypatch)
    places = [re.search(rf"^\W*{option} ", text, re.M) for option in FIRST_TO_LAST]
    order = [place.start() for place in places if place]
    assert len(order) == len(FIRST_TO_LAST)
    assert order == sorted(order)
    assert "--max-rejected FLOAT" in text
    assert "(default: 0.05)" in text
    assert re.search(r"--shard-size INT +Images", text)


@pytest.mark.parametrize("job", JOBS)
def test_every_option_says_what_it_means(job: str) -> None:
    config = importlib.import_module(f"jobs.{job}").Config
    docs = docs_of(config)
    for name in config.__dataclass_fields__:
        kind = config.__dataclass_fields__[name].type
        assert docs.get(name) or hasattr(kind, "__dataclass_fields__"), name


def test_network_and_weights_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BOTTLENECK_BASE", "resnet50")
    monkeypatch.setenv("BOTTLENECK_WEIGHTS", "random:7")
    job = importlib.import_module("jobs.extract")
    with caplog.at_level(logging.INFO, "jobs"):
        config: Config = parse(job, with_environment(job, ["photos", "features"]))
    assert (config.features.base, config.features.weights) == ("resnet50", "random:7")
    assert "--base resnet50, from BOTTLENECK_BASE" in caplog.text
    given = parse(job, with_environment(job, ["photos", "features", "--base", "vgg19", "--weights=random:0"]))
    assert (given.features.base, given.features.weights) == ("vgg19", "random:0")
    same = parse(job, ["photos", "features", "--base", "resnet50", "--weights", "random:7"])
    assert same == config, "so the fingerprint is that of the same options typed"


def test_a_job_that_is_sent_has_the_choice_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOTTLENECK_BASE", "resnet50")
    words = ("extract", "s3://b/photos", "s3://b/features")
    assert written_out(words) == (*words, "--base", "resnet50")
    assert written_out(("verify", "s3://b/features")) == ("verify", "s3://b/features")


@pytest.mark.parametrize(
    "words",
    [["fit", "features", "head"], ["predict", "photos", "head", "out"], ["classify", "a", "--head", "b"]],
)
def test_jobs_that_know_their_network_ignore_the_environment(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOTTLENECK_BASE", "resnet50")
    monkeypatch.setenv("BOTTLENECK_WEIGHTS", "random:7")
    job = importlib.import_module(f"jobs.{words[0]}")
    assert with_environment(job, words[1:]) == words[1:]


def test_a_plan_of_another_network_says_where_the_value_came_from(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import tiny

    from bottleneck.dataset.make_plan import make_plan

    folder = tmp_path_factory.mktemp("planned")
    photos = tiny.photos(folder / "photos", 2)
    make_plan(str(photos), str(folder / "features"), tiny.spec())
    monkeypatch.setenv("BOTTLENECK_BASE", "resnet50")
    with caplog.at_level(logging.INFO, "jobs"):
        code = main(["--json", "plan", str(photos), str(folder / "features")])
    assert code == 4
    assert "base" in json.loads(capsys.readouterr().out)["message"]
    assert "from BOTTLENECK_BASE" in caplog.text


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_jobs_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    function = re.search(r"complete .*-F (\S+) bottleneck", script)
    assert function, script[-500:]

    def completed(*words: str) -> str:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; {function[1]}; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True).stdout

    assert "extract" in completed("bottleneck", "ext")
    assert "--max-rejected" in completed("bottleneck", "extract", "--max-r")
    assert "logistic" in completed("bottleneck", "fit", "--kind", "lo")


def test_an_unknown_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "powershell"]) == 2
    assert "Expected bash, zsh, tcsh, fish after --completion" in capsys.readouterr().err
