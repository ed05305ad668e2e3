"""Check that everything a run needs is available: this machine, a cluster, a source and an output.

    bottleneck doctor
    bottleneck doctor s3://bucket/photos s3://bucket/features
    bottleneck doctor photos/ features/ --address http://127.0.0.1:8265

Prints a line for each check: ok, a warning, or a failure with its remedy. Every check has a time limit. Exit code 0 if
nothing failed, else 5.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from bottleneck.distributed.ray_session import cluster_address
from bottleneck.doctor.checks import Check, Finding, examine, is_examining
from bottleneck.doctor.cluster import checks_of_cluster
from bottleneck.doctor.machine import checks_of_machine
from bottleneck.errors import BottleneckError
from jobs.results import answer, flush, has_terminal, show

WORDS = {"ok": ("ok  ", "32"), "warning": ("warn", "33"), "failure": ("FAIL", "31")}
"""What a line begins with, and its colour on a terminal."""


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE]")] = ""
    """A source, as for `extract`: it is listed, and one image is read."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[OUTPUT]")] = ""
    """An output, as for `extract`: a small object is created, and in a folder removed again."""
    address: str = ""
    """HOST:PORT of a Ray cluster to join, or http(s)://... of its dashboard. Default: RAY_ADDRESS."""


def main(config: Config) -> int:
    findings = []
    for check in checks_of(config):
        for finding in examine(check):
            findings.append(finding)
            show(f"  {finding.name}: {finding.message}", lead=lead(finding))
    counts = {state: sum(finding.state == state for finding in findings) for state in WORDS}
    exit_code = BottleneckError.exit_code if counts["failure"] else 0
    show(f"ok: {counts['ok']}, warnings: {counts['warning']}, failures: {counts['failure']}")
    answer({"checks": [asdict(finding) for finding in findings], **counts, "exit_code": exit_code})
    if is_examining():  # a check that hangs in threads that Python's own end would wait for
        flush()
        os._exit(exit_code)
    return exit_code


def checks_of(config: Config) -> list[Check]:
    """Every check that was asked for, the cheapest first."""
    address = config.address or cluster_address()
    cluster = checks_of_cluster(address) if address else []
    source = [Check("source", lambda: _try_source(config.source))] if config.source else []
    output = [Check("output", lambda: _try_output(config.output))] if config.output else []
    return [*checks_of_machine(), *source, *output, *cluster]


# Imported only then: where a package is broken, the checks before still say which.
def _try_source(uri: str) -> Iterator[Finding]:
    from bottleneck.doctor.storage import try_source

    return try_source(uri)


def _try_output(uri: str) -> Iterator[Finding]:
    from bottleneck.doctor.storage import try_output

    return try_output(uri)


def lead(finding: Finding) -> str:
    """The word that a finding's line begins with."""
    word, colour = WORDS[finding.state]
    return f"\033[{colour}m{word}\033[0m" if has_terminal() and "NO_COLOR" not in os.environ else word
