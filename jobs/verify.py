"""Check an output against its plan, with a reader that shares no code with the writer.

    bottleneck verify features/
    bottleneck verify features/ --full --recompute 20

Reads the footer of every data file. Names every object that is missing, foreign or corrupt. Exit code 0 if all is well,
3 if shards are missing, 1 if anything is corrupt or foreign.
"""

import contextlib
from dataclasses import dataclass
from typing import Annotated

import tyro

from bottleneck.audit.verify import verify
from bottleneck.errors import CorruptError, UsageError
from bottleneck.inspect.recompute import check_recomputable, recompute
from bottleneck.text import counted
from jobs.results import answer, show


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """An output of `bottleneck extract` or `bottleneck predict`."""
    full: bool = False
    """Read every row, value and byte, not only the footers."""
    recompute: int = 0
    """Extract N random images of the source again and compare their features."""


def main(config: Config) -> int:
    if config.recompute < 0:
        raise UsageError(f"--recompute takes a number of images from 0 up. Received: {config.recompute}.")
    if config.recompute:
        with contextlib.suppress(CorruptError):  # which verifying tells in full
            check_recomputable(config.output)
    report = verify(config.output, full=config.full)
    result = report.to_json()
    exit_code = report.exit_code
    for name, problem in report.corrupt:
        show(f"corrupt: {name}: {problem}")
    for name in report.foreign:
        show(f"foreign: {name} does not belong here")
    if report.missing:
        show(f"missing: {counted(report.missing, 'image')} of shards not done; run the same extract command again")
    if cut := report.skipped.get("(cut)"):
        show(f"cut: {counted(cut, 'tar')} cut off when planned; images that were lost with it are in no count here")
    if config.recompute and exit_code != CorruptError.exit_code:
        compared = recompute(config.output, config.recompute)
        result["recomputed"] = compared.num_images
        result["recompute_min_cosine"] = compared.min_cosine
        for key, cosine in compared.different:
            show(f"different: {key} has a cosine of {cosine:.6f} to its features computed again")
        for key in compared.unreadable:
            show(f"not compared: {key} has changed or gone in the source")
        if compared.different:
            exit_code = CorruptError.exit_code
    if report.unfinished:
        show(f"unfinished: {report.unfinished}")
    for reason, count in sorted(report.rejected.items(), key=lambda pair: -pair[1]):
        show(f"rejected: {count:,} x {reason}")
    verdict = {0: "good", 1: "CORRUPT", 3: "incomplete"}[exit_code]
    rejected = sum(report.rejected.values())
    show(
        f"{config.output}: {counted(report.planned, 'image')}, {report.ok:,} ok, {rejected:,} rejected, "
        f"{report.missing:,} missing: {verdict}"
    )
    answer({**result, "exit_code": exit_code})
    return exit_code
