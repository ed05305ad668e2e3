"""Reprocess images that were rejected, or that have changed since they were planned.

    bottleneck requeue features/ --reason missing truncated
    bottleneck requeue features/ --changed
    bottleneck requeue features/ --reason too_many_bytes --max-bytes 500000000

Only plans: `bottleneck extract` (or `predict`) then reprocesses these images and replaces each of their data files in
one write. All other rows stay as they are. The last line printed is the command to run.
"""

import logging
import shlex
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import tyro

from bottleneck.choices import check_choices
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.requeue import Requeued, requeue_plan
from bottleneck.errors import UsageError
from bottleneck.networks.resolve import requested_layers
from bottleneck.sources.reading import ImageFormat, Limits, Reading
from bottleneck.spec import FeatureRequest
from bottleneck.text import counted
from jobs.results import answer, show

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """An output of `bottleneck extract`, or of `bottleneck predict` on images."""
    reason: tuple[str, ...] = ()
    """Reprocess images that were rejected for these reasons."""
    changed: bool = False
    """Reprocess images whose size or etag in the source has changed since they were planned."""
    max_bytes: int | None = None
    """Raise this limit of the plan, together with --reason too_many_bytes."""
    max_pixels: int | None = None
    """Raise this limit of the plan, together with --reason too_many_pixels."""
    formats: tuple[ImageFormat, ...] = ()
    """Accept these formats from now on, together with --reason unsupported_format."""

    def __post_init__(self) -> None:
        check_choices(self)


def main(config: Config) -> int:
    plan = load_plan(config.output)
    if plan is None:
        raise UsageError(f"{config.output} has no plan.json. Expected an output of `bottleneck extract` or `predict`.")
    limits = Limits(
        max_bytes=plan.limits.max_bytes if config.max_bytes is None else config.max_bytes,
        max_pixels=plan.limits.max_pixels if config.max_pixels is None else config.max_pixels,
        formats=(*plan.limits.formats, *config.formats),
    )
    plan, requeued = requeue_plan(plan, config.reason, changed=config.changed, limits=limits)
    again = command(plan) if requeued.shards else None
    tell(requeued, again)
    answer({"output": plan.output, **asdict(requeued), "command": again})
    return 0


def tell(requeued: Requeued, again: str | None) -> None:
    if requeued.gone:
        more = ", ..." if requeued.gone > len(requeued.gone_keys) else ""
        keys = ", ".join(requeued.gone_keys)
        log.warning("%s gone from the source: %s%s", counted(requeued.gone, "planned image"), keys, more)
    if again is None:
        show("nothing to requeue")
        return
    show(f"to be reprocessed: {counted(requeued.images, 'image')} in {counted(requeued.shards, 'shard')}")
    for reason, count in sorted(requeued.rejected.items(), key=lambda pair: -pair[1]):
        show(f"  rejected: {count:,} x {reason}")
    if requeued.changed:
        more = ", ..." if requeued.changed > len(requeued.changed_keys) else ""
        show(f"  changed: {requeued.changed:,}: {', '.join(requeued.changed_keys)}{more}")
    show(f"now run: {again}")


def command(plan: Plan) -> str:
    """The command that continues a plan, with its non-default options."""
    words = ["bottleneck", "extract", plan.source, plan.output]
    if plan.predictions:
        words = ["bottleneck", "predict", plan.source, plan.predictions.head, plan.output]
        words += ["--top", str(plan.predictions.top)]
        words += ["--proba", "all"] if plan.predictions.proba == "all" else []
    else:
        request = plan.spec.request
        words += _options(request, FeatureRequest(base=request.base), leave_out=("base", "layers", "precision"))
        words += ["--base", request.base] if request.base != FeatureRequest().base else []
        if request.layers != tuple(requested_layers(FeatureRequest(base=request.base))):
            words += ["--layers", *request.layers]
    words += _options(plan.reading, Reading(), leave_out=("source_format",))
    words += _options(plan.limits, Limits())
    return shlex.join(words)


def _options(value: Any, default: Any, leave_out: tuple[str, ...] = ()) -> list[str]:
    words: list[str] = []
    for name in (field.name for field in fields(value) if field.name not in leave_out):
        given = getattr(value, name)
        if given == getattr(default, name):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if given is not True:
            words += map(str, given) if isinstance(given, tuple) else [str(given)]
    return words
