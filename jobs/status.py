"""Show how far an output is.

    bottleneck status s3://bucket/features
    bottleneck status features/ --watch 10

Reads only the output's store, so it works for a run on any machine. Exit code 0 if the output is finished, 3 if not.
"""

import logging
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from bottleneck.console import duration, start_live
from bottleneck.errors import IncompleteError, UsageError
from bottleneck.inspect.status import Status, look
from bottleneck.storage.store import check_output_uri
from bottleneck.text import counted
from jobs.results import answer, show

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """An output of `bottleneck extract` or `bottleneck predict`."""
    watch: float = 0
    """Repeat every N seconds until the output is finished; 0 shows it once."""


def main(config: Config) -> int:
    if config.watch < 0:
        raise UsageError(f"--watch takes seconds, more than 0. Received: {config.watch:g}.")
    check_output_uri(config.output)
    status = watch(config) if config.watch else look(config.output)
    for line in lines(status):
        show(line)
    exit_code = 0 if status.state == "finished" else IncompleteError.exit_code
    answer({**asdict(status), "exit_code": exit_code})
    return exit_code


def watch(config: Config) -> Status:
    """Repeat until the output is finished, or until Ctrl-C, and return the last state."""
    status = look(config.output)
    live: Any = start_live()
    try:
        while True:
            if live is None:
                log.info("status: %s", line(status))
            else:
                live.update(line(status), refresh=True)
            if status.state == "finished":
                return status
            time.sleep(config.watch)
            status = look(config.output)
    except KeyboardInterrupt:
        return status
    finally:
        if live is not None:
            live.stop()


def lines(status: Status) -> list[str]:
    """The state as lines, the most important first."""
    told = [f"{status.output}: {line(status)}"]
    if status.shards_again:
        told.append(f"  requeued for some of their images: {counted(status.shards_again, 'shard')}")
    for reason, count in sorted(status.rejected.items(), key=lambda pair: -pair[1]):
        told.append(f"  rejected: {'about ' if status.rejected_are_estimated else ''}{count:,} x {reason}")
    if status.rejected_are_estimated:
        of_shards = f"{status.sampled_shards} of {counted(status.shards_with_file, 'shard')}"
        told.append(f"  rejected images are an estimate from {of_shards}")
    if status.state in ("standing still", "planned"):
        told.append("  to go on, run the command that made it again; what is done is kept")
    return told


def line(status: Status) -> str:
    """One line of words and numbers."""
    ago = f"{duration(status.idle_seconds)} ago"
    parts = [
        {
            "standing still": f"standing still, last shard {ago}",
            "planned": f"planned {ago}, nothing done {'since' if status.shards_done else 'yet'}",
        }.get(status.state, status.state),
        f"{status.images_done:,} of {counted(status.images, 'image')}",
        f"{status.shards_done:,} of {counted(status.shards, 'shard')}",
    ]
    recent, overall = status.images_per_second, status.images_per_second_overall
    if recent is not None and status.state == "running":
        parts.append(f"{recent:.1f} images/s")
    if overall is not None and (overall != recent or status.state != "running"):
        parts.append(f"{overall:.1f} images/s overall")
    if status.eta_seconds is not None:
        parts.append(f"ETA {duration(status.eta_seconds)}" if status.eta_seconds else "finishing")
    if status.state == "running":
        parts.append(f"last shard {ago}")
    if rejected := sum(status.rejected.values()):
        parts.append(f"{'about ' if status.rejected_are_estimated else ''}{rejected:,} rejected")
    return " · ".join(parts)
