"""Files for schedulers without Ray: what can be checked without them, and two runs of their very command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny
import yaml

from bottleneck import errors
from jobs import extract
from jobs.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
PERMANENT = {1, 2, 4, 6, 70}
"""Exit codes after which trying again only costs."""
SHELLS = ("slurm.sbatch", "slurm-ray.sbatch")
SCRIPTS = (*SHELLS, "until-done")


def kubernetes_job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "kubernetes-job.yaml").read_text())
    return found


def aws_batch() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CLUSTER / "aws-batch.json").read_text())
    return found


def commands() -> dict[str, list[str]]:
    """The command that each file starts."""
    values = {"SOURCE": "s3://a/b", "OUTPUT": "s3://c/d", "SLURM_NNODES": "4"}
    found = {
        "aws-batch.json": aws_batch()["containerProperties"]["command"],
        "kubernetes-job.yaml": kubernetes_job()["spec"]["template"]["spec"]["containers"][0]["args"],
        "skypilot.yaml": shlex.split(yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())["run"]),
    }
    for name in SHELLS:
        text = (CLUSTER / name).read_text().replace("\\\n", " ")
        [line] = [line for line in text.splitlines() if "bottleneck extract" in line]
        found[name] = shlex.split(line[line.index("bottleneck extract") :].partition("||")[0])
    for words in found.values():
        for at, word in enumerate(words):
            words[at] = values.get(word.removeprefix("$"), word.replace("Ref::", "s3://bucket/"))
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_is_one_that_the_job_takes(name: str) -> None:
    program, job, *arguments = commands()[name]
    assert (program, job) == ("bottleneck", "extract")
    config = parse(extract, arguments)
    assert config.local == (name != "slurm-ray.sbatch")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shells_parse_and_lint(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    subprocess.run(["shellcheck", CLUSTER / name], check=True)


def test_aws_accepts_the_job_definition() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    operation = session.get_service_model("batch").operation_model("RegisterJobDefinition")
    report = ParamValidator().validate(aws_batch(), operation.input_shape)
    assert not report.has_errors(), report.generate_report()


def test_what_a_new_try_cannot_mend_is_not_tried_again() -> None:
    codes = {one.exit_code for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")}
    assert {3, 5} <= codes <= PERMANENT | {3, 5}
    on_exit = aws_batch()["retryStrategy"]["evaluateOnExit"]
    assert {int(rule["onExitCode"]) for rule in on_exit} == PERMANENT
    assert {rule["action"] for rule in on_exit} == {"EXIT"}
    fail, ignore = kubernetes_job()["spec"]["podFailurePolicy"]["rules"]
    assert (fail["action"], set(fail["onExitCodes"]["values"])) == ("FailJob", PERMANENT)
    assert ignore["action"] == "Ignore"
    assert kubernetes_job()["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # which these rules need


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment with stand-ins for `srun`, which runs its command, and `scontrol`, which writes down its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": 'while [[ $1 == -* ]]; do shift; done\nexec "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol.log',
        "bottleneck": f'exec {sys.executable} -m jobs "$@"',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SOURCE": str(tmp_path / "photos"),
        "OUTPUT": str(tmp_path / "features"),
        "BOTTLENECK_BASE": "stub",
        "BOTTLENECK_WEIGHTS": "random:0",
        "SLURM_ARRAY_JOB_ID": "7",
    }


def test_the_tasks_of_an_array_share_one_output(tmp_path: Path, slurm: dict[str, str]) -> None:
    tiny.photos(tmp_path / "photos", 120)
    runs = [
        subprocess.Popen(["bash", CLUSTER / "slurm.sbatch"], cwd=ROOT, env={**slurm, "SLURM_ARRAY_TASK_ID": str(task)})
        for task in range(2)
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    keys = [path.relative_to(tmp_path / "photos").as_posix() for path in (tmp_path / "photos").rglob("*.jpg")]
    oracle.check(slurm["OUTPUT"], dict.fromkeys(keys, "ok"))
    assert not (tmp_path / "scontrol.log").exists()


def test_a_task_is_requeued_where_that_may_help_and_not_for_ever(tmp_path: Path, slurm: dict[str, str]) -> None:
    program = tmp_path / "bin/bottleneck"
    for code, restarts, is_requeued in (
        (3, "0", True),
        (5, "4", True),
        (3, "5", False),
        (2, "0", False),
        (4, "0", False),
    ):
        program.write_text(f"#!/bin/bash\nexit {code}\n")
        environment = {**slurm, "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": restarts}
        assert subprocess.run(["bash", CLUSTER / "slurm.sbatch"], cwd=ROOT, env=environment).returncode == code
        log = tmp_path / "scontrol.log"
        assert log.exists() == is_requeued, (code, restarts)
        if is_requeued:
            assert log.read_text() == "requeue 7_1\n"
            log.unlink()
