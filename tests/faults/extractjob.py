"""A job as a real process, to be killed: in a session of its own, by which its Ray processes are found.

    with Job(photos, output, environment=photos.environment) as job:
        job.wait_for_shards(3)
        job.kill9()
    assert Job.run(photos, output).code == 0

A session is what every process of a run shares and nothing else does: Ray's daemons, workers (which have process groups
of their own) and orphans stay in the session of the driver that started them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
ASKED = ("--base", "mobilenet_0.25", "--weights", "random:0", "--dtype", "float32", "--batch-size", "8")
SHARD_SIZE = 8
RUN_SECONDS = 240
"""A run takes 20 to 40 s on two cores; only a hang takes longer, except where a fault says so."""
GONE_SECONDS = 45
"""Until a killed driver's workers have noticed: about 3 s, but half a minute for one that was just starting."""
WAITING_SECONDS = 90
"""Until those have that try for a minute to reach a server that died as well: Ray's two agents, and a worker that never
had anything to do. None of them does any work."""

# Titles of Ray's workers, as regular expressions.
EMITTING = r"MapBatches\(_emit\)"
PREPARING = r"MapBatches\(prepare_stage\)"
EXTRACTING_STARTS = r"MapWorker\(MapBatches\(ExtractFeatures\)\)\.__init__"
EXTRACTING = r"MapWorker\(MapBatches\(ExtractFeatures\)\)(?!\.__init__)"
COUNTING = r"Live"
WAITING = r"DashboardAgent|RuntimeEnvAgent|IDLE"


@dataclass(frozen=True)
class Ended:
    """What became of a job."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    """From the start."""

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        value = json.loads(self.stdout.splitlines()[-1])
        assert isinstance(value, dict), self
        return value

    @property
    def error(self) -> str:
        """The one line on stderr that says what happened."""
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self
        return errors[0]

    def succeeded(self) -> dict[str, Any]:
        """The result, of a job that must have ended well."""
        assert self.code == 0, f"exit code {self.code} after {self.seconds:.0f} s\n{self.stdout}\n{self.stderr}"
        return self.result


class AnyJob:
    """A running job; leaving the context kills what is left of it."""

    def __init__(
        self, output: str | Path, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a job that fills an output, by all of its arguments."""
        self.output = str(output)
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "--json", *map(str, arguments)],
            cwd=REPOSITORY,
            env=clean_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
        )

    @classmethod
    def run(cls, *arguments: Any, seconds: float = RUN_SECONDS, **keywords: Any) -> Ended:
        """Start a job and wait for its end."""
        with cls(*arguments, **keywords) as job:
            return job.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill9_everything()
        self._stdout.close()
        self._stderr.close()

    def wait(self, seconds: float = RUN_SECONDS) -> Ended:
        """Wait for the end of the driver; a job that takes longer fails the test."""
        try:
            code = self.process.wait(max(0.0, self.started + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {seconds:.0f} s; {self.processes()}\n{self.stderr()}") from None
        self._stdout.seek(0)
        stdout = self._stdout.read().decode()
        return Ended(code, stdout, self.stderr(), time.monotonic() - self.started)

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def runs(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Every process of the job but the driver, orphans included."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.process.pid != pid:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray's worker processes whose title (`ray::...`) matches a regular expression."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if re.match(rf"ray::({title})", " ".join(process.cmdline())):
                    found.append(process)
        return found

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float = 120) -> bool:
        """Wait until something is so; False if the job ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.runs():
                return False
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}\n{self.stderr()}"
            time.sleep(0.01)
        return True

    def wait_for_shards(self, count: int) -> bool:
        """Wait until the output (a folder) has so many data files; False if the job ended before."""
        return self.wait_for(f"{count} data files", lambda: num_data_files(self.output) >= count)

    def signal(self, number: signal.Signals) -> None:
        """To the driver alone, as `kill` does."""
        self.process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """To the driver's process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def kill9(self) -> None:
        """The driver alone."""
        self.process.kill()
        self.process.wait()

    def kill9_everything(self) -> None:
        """The driver and all of Ray at once, as when the machine goes."""
        if self.runs():
            self.process.send_signal(signal.SIGSTOP)  # so that it starts and tells nobody meanwhile
        while self.runs() or self.processes():
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()

    def orphans(self, seconds: float = GONE_SECONDS, *, waiting: bool = True) -> list[str]:
        """What still runs so many seconds after the driver has ended, with or without what only waits for Ray."""
        deadline = time.monotonic() + seconds
        while True:
            left = [_title(process) for process in self.processes()]
            if not waiting:
                left = [title for title in left if not re.search(rf"^\d+ ray::({WAITING})", title)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.1)


class Job(AnyJob):
    """A running extract job."""

    def __init__(
        self,
        source: str | Path,
        output: str | Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        asked: tuple[str, ...] = (*ASKED, "--shard-size", str(SHARD_SIZE)),
    ) -> None:
        super().__init__(output, "extract", source, output, *asked, *options, environment=environment)


class PredictJob(AnyJob):
    """A running predict job."""

    def __init__(self, source: str | Path, head: str | Path, output: str | Path, *options: str) -> None:
        super().__init__(output, "predict", source, head, output, *options)


@dataclass(frozen=True)
class Photos:
    """A source with its truth table."""

    folder: Path
    truth: dict[str, str]
    """key -> "ok" or the reason it must be rejected for."""

    @property
    def num_shards(self) -> int:
        return -(-len(self.truth) // SHARD_SIZE)


class Seen:
    """What the processes of jobs did with files, told by an audit hook of Python's own (see watch/sitecustomize.py)."""

    def __init__(self, source: Path, output: Path, log: Path) -> None:
        self._log = log
        log.touch()
        self.environment = {
            "PYTHONPATH": str(Path(__file__).parent / "watch"),
            "SEEN_SOURCE": f"{source}/",
            "SEEN_OUTPUT": f"{output}/",
            "SEEN_LOG": str(log),
        }

    def forget(self) -> None:
        os.truncate(self._log, 0)

    @property
    def images_read(self) -> Counter[str]:
        """key -> how often its file was opened."""
        return self._lines("read ")

    @property
    def writes(self) -> Counter[str]:
        """Name of an object -> how often some process was about to link its file in."""
        return self._lines("write ")

    def _lines(self, verb: str) -> Counter[str]:
        lines = self._log.read_text().splitlines()
        return Counter(line.removeprefix(verb) for line in lines if line.startswith(verb))


def clean_environment() -> dict[str, str]:
    """Ours, without what would send a job to a cluster or an account of the user's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "SEEN_"))}


def num_data_files(output: str) -> int:
    try:
        return len(os.listdir(f"{output}/data"))
    except FileNotFoundError:
        return 0


def _title(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline()).strip()[:150]}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone now)"
