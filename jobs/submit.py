"""Submit a job to a Ray cluster, through the cluster's dashboard.

    bottleneck submit --address http://127.0.0.1:8265 -- extract s3://bucket/photos s3://bucket/features
    bottleneck submit --address https://ray.example.com --wait -- verify s3://bucket/features --full

Everything after `--` is the job with its arguments, which are checked first. With --wait, the job's log, JSON object
and exit code become those of this command; Ctrl-C then stops the waiting, not the job.
"""

import contextlib
import importlib
import logging
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tenacity
import tyro

import bottleneck
import jobs
from bottleneck import __version__
from bottleneck.distributed.dashboard import Dashboard, LostError, NoAgentError, check_address, connect
from bottleneck.distributed.job_log import Transcript, follow
from bottleneck.errors import ClusterError, IncompleteError, UsageError
from bottleneck.text import counted
from jobs.__main__ import EXPECT_VERSION, JSON
from jobs.command_line import with_environment
from jobs.results import answer, show
from jobs.submit_checks import check_job

log = logging.getLogger(__name__)

AGENT_SECONDS = 60
"""How long to wait for the agents of a new cluster, which start after its dashboard."""
NOT_FOUND = 127
"""A shell's exit code for an unknown command."""


@dataclass(frozen=True, kw_only=True)
class Config:
    job: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="-- JOB ...")]
    """The job's name and arguments, as after `bottleneck`."""
    address: str
    """URL of the cluster's dashboard. On another machine it needs https:// or a token (RAY_AUTH_MODE=token)."""
    wait: bool = False
    """Show the job's log until it ends, and exit with its exit code."""
    with_code: bool = False
    """Send the code of this installation along, instead of using the cluster's."""
    ca_file: str | None = None
    """Certificates to trust for https://, a PEM file or a folder. Default: the system's."""


@dataclass(frozen=True)
class Sent:
    """A submitted job."""

    name: str
    submission_id: str
    logs: str
    """The shell command that shows its log."""
    stop: str
    """The shell command that stops it."""

    def tell(self, show: Callable[[str], None]) -> None:
        show(f"sent: {self.submission_id}")
        show(f"its log:     {self.logs}")
        show(f"to stop it:  {self.stop}")

    def to_json(self) -> dict[str, str]:
        return {"submission_id": self.submission_id, "job": self.name, "logs": self.logs, "stop": self.stop}


def check_arguments(arguments: list[str]) -> None:
    """Require the `--`, without which the job's options would be parsed as ours."""
    if not {"--", "--help", "-h"} & set(arguments):
        raise UsageError(
            "Expected `--` between the options of submit and the job, as in: bottleneck submit --address "
            "http://127.0.0.1:8265 --wait -- extract s3://bucket/photos s3://bucket/features"
        )


def main(config: Config) -> int:
    dashboard = check_address(config.address, config.ca_file)
    if not dashboard.is_private:
        log.warning(
            "The token and the job go to %s without encryption: right within a private network only. Otherwise use "
            "https:// or an ssh tunnel.",
            dashboard.url,
        )
    check_job(config.job, dashboard.is_loopback)
    config = replace(config, job=written_out(config.job))
    client = connect(dashboard)
    sent = send(client, dashboard, config)
    if config.wait:
        sent.tell(log.info)
        return wait(client, sent)
    sent.tell(show)
    answer(sent.to_json())
    return 0


def written_out(words: tuple[str, ...]) -> tuple[str, ...]:
    """Write out what the environment chooses for a job, as no variable of this machine is sent along."""
    job = importlib.import_module(f"jobs.{words[0]}")
    return (words[0], *with_environment(job, list(words[1:])))


def send(client: Any, dashboard: Dashboard, config: Config) -> Sent:
    """Submit the job."""
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    submission_id = f"{config.job[0]}-{started}-{secrets.token_hex(2)}"
    sent = Sent(
        config.job[0],
        submission_id,
        dashboard.command("logs", submission_id, "--follow"),
        dashboard.command("stop", submission_id),
    )
    # Never env_vars: Ray shows a runtime_env to everybody and writes it into logs.
    with code_folder() if config.with_code else contextlib.nullcontext() as folder:
        submit = patient(client.submit_job)
        try:
            submit(
                entrypoint=entrypoint(config.job, with_code=config.with_code),
                submission_id=submission_id,
                runtime_env={"working_dir": str(folder)} if folder else None,
                metadata={"job_name": submission_id, "bottleneck": __version__},
            )
        except NoAgentError as error:
            raise ClusterError(f"{error} For {AGENT_SECONDS} s now; nothing was sent.") from None
        except LostError as error:
            raise ClusterError(f"{error} The job may have been sent all the same; see: {sent.logs}") from None
        except KeyboardInterrupt:
            raise IncompleteError(
                f"Interrupted while sending; the job may run all the same; see: {sent.logs}"
            ) from None
    return sent


def patient(submit: Callable[..., Any], pause_seconds: float = 2.0) -> Callable[..., Any]:
    """Retry for a minute while there is no agent to start jobs."""
    return tenacity.retry(
        retry=tenacity.retry_if_exception_type(NoAgentError),
        stop=tenacity.stop_after_delay(AGENT_SECONDS),
        wait=tenacity.wait_fixed(pause_seconds),
        before_sleep=_tell_waiting,
        reraise=True,
    )(submit)


def _tell_waiting(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1:
        log.info("the cluster has nothing yet that starts jobs; trying again for up to %d s", AGENT_SECONDS)


def entrypoint(words: tuple[str, ...], *, with_code: bool) -> str:
    """The command line that the cluster's head runs."""
    # With the code sent along, the image need not have the command at all.
    start = ("python", "-m", "jobs") if with_code else ("bottleneck",)
    return shlex.join([*start, EXPECT_VERSION, __version__, JSON, *words])


CODE = (".py", ".j2", ".css", ".js")
"""Suffixes of the files of an installation that are sent."""


@contextlib.contextmanager
def code_folder() -> Iterator[Path]:
    """A temporary folder with this installation's code and nothing else."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-code-") as name:
        num_files = num_bytes = 0
        for package in (bottleneck, jobs):
            folder = Path(str(package.__file__)).parent
            for file in sorted(path for path in folder.rglob("*") if path.suffix in CODE):
                copy = Path(name) / folder.name / file.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                num_files, num_bytes = num_files + 1, num_bytes + file.stat().st_size
        files = counted(num_files, "file")
        log.info("with the code of version %s: %s, %.1f MB", __version__, files, num_bytes / 1e6)
        yield Path(name)


def wait(client: Any, sent: Sent) -> int:
    """Show the job's log, which holds its result, pass its JSON object on, and return its exit code."""
    transcript = Transcript(show)
    try:
        ended = follow(client, sent.submission_id, transcript)
    except KeyboardInterrupt:
        log.warning("no longer waiting: %s goes on.", sent.submission_id)
        sent.tell(log.info)
        told = {"error": "Interrupted", "message": "no longer waiting; the job goes on", "exit_code": 3}
        answer(told | sent.to_json())
        return 3
    except ClusterError as error:
        raise ClusterError(f"{error} See: {sent.logs}") from None
    exit_code, problem = outcome(ended, transcript.result)
    if problem:
        log.error("%s", problem)
    if transcript.result is not None:
        answer(transcript.result)
    else:
        told = {"error": "JobFailed", "message": problem} if problem or exit_code else {}
        answer(told | sent.to_json() | {"exit_code": exit_code})
    return exit_code


def outcome(ended: Any, result: dict[str, Any] | None) -> tuple[int, str]:
    """The exit code of an ended job, and a message if the job did not cause it."""
    code: int | None = ended.driver_exit_code
    own = (result or {}).get("exit_code")
    if ended.status.name == "STOPPED":
        return own or IncompleteError.exit_code, "stopped: what is done is kept; send the same job again to go on."
    if code is None:
        return (
            own or ClusterError.exit_code,
            f"The cluster could not run the job: {(ended.message or '').strip()[-2000:]}",
        )
    if code == NOT_FOUND and result is None:
        return ClusterError.exit_code, (
            "The cluster's head has no such command. Expected an image with this package and its environment on the "
            "PATH (cluster/README.md); --with-code needs only the environment."
        )
    if code < 0 or code > 128:
        signal_number = -code if code < 0 else code - 128
        return 128 + signal_number, (
            f"The job was killed by signal {signal_number} (9: often for want of memory on the head); what is done is "
            "kept, send it again to go on."
        )
    return code, ""
