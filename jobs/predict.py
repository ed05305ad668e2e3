"""Predict the class of every image of a source with a head, into a Parquet dataset.

    bottleneck predict new-photos/ head/ predictions/
    bottleneck predict features/ head/ predictions/

The source holds images, or is an output of `bottleneck extract`, whose stored features need no network and no Ray. Kill
it anywhere and run the same command again. Prints the number of images of each class, and the accuracy if images have
labels.
"""

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import tyro

from bottleneck.choices import check_choices
from bottleneck.console import Display
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import open_features, read_table
from bottleneck.dataset.make_plan import MAX_REJECTED, check_max_rejected, survey
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.distributed.ray_resources import check_use_gpu
from bottleneck.distributed.ray_session import cluster_address
from bottleneck.distributed.run import Run
from bottleneck.distributed.run_options import RunOptions
from bottleneck.errors import UsageError, WeightsError
from bottleneck.extract.summary import Summary, Tally, summarize
from bottleneck.heads.predict import Predictor, predict_features
from bottleneck.heads.predicted import count_predicted
from bottleneck.heads.prediction_plan import check_predictions, plan_like, prediction_spec, tell_newer
from bottleneck.networks.prepare import resolve_apart
from bottleneck.networks.weights import check_weights
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import PredictionSpec, Proba
from bottleneck.storage.store import check_output_uri, open_store
from bottleneck.text import counted
from jobs.extract import report, tell_extended, tell_plan
from jobs.results import answer, show
from jobs.table_file import check_table_file, write_table_file

if TYPE_CHECKING:
    from bottleneck.heads.head import Head

log = logging.getLogger(__name__)

TABLE = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("label", pa.string()),
        pa.field("status", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float32()),
    ]
)
NUM_SHOWN = 20
"""Number of most frequent classes to show."""


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images, as for `bottleneck extract`, or its output."""
    head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")]
    """A folder or s3:// prefix with a head, which records the features it needs."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """A folder or s3://bucket/prefix for the predictions."""
    top: int = 5
    """Classes per row, the most probable first."""
    proba: Proba = "top"
    """`all` also writes the probability of every class, as the column `probabilities`, whose order is `classes` of
    `predictions` in plan.json and in every data file's footer."""
    table: str | None = None
    """Also write the finished predictions to this new file or s3:// URI ending in .csv or .parquet, a row per image."""
    weights: str | None = None
    """Weights of the base, if they have moved since the fit; their sha256 must be the same."""
    allow_incomplete: bool = False
    """Predict the available part of unfinished features; the predictions remain unfinished, too."""
    reading: Reading = field(default_factory=Reading)
    shard_size: int | None = None
    """Images per shard of a new plan, the unit of work and of loss. Default: 16 to 512, so that there are at least 20
    shards; stored features keep theirs."""
    limits: Limits = field(default_factory=Limits)
    extend: bool = False
    """List the source again and add the images that the plan does not have; for features, also reprocessed shards."""
    max_rejected: float = MAX_REJECTED
    """Share of the planned images that may be rejected before the run stops."""
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_choices(self)


def main(config: Config) -> int:
    check_table_file(config.table)
    summary = predict(config)
    report(summary)
    if config.table and (plan := load_plan(config.output)) is not None:
        store, columns = open_store(config.output), TABLE.names
        files = (plan.data_name(shard) for shard in range(plan.num_shards))
        write_table_file(config.table, TABLE, (read_table(store, name, columns).cast(TABLE) for name in files))
    answer({**asdict(summary), **told(config.output), "table": config.table})
    return 0


def told(output: str) -> dict[str, Any]:
    """Show the predicted classes, and return them as JSON values."""
    plan = load_plan(output)
    found = count_predicted(plan) if plan is not None else None
    if found is None:
        return {"predicted": None, "labelled": None, "accuracy": None}
    shown = list(found.classes.items())[:NUM_SHOWN]
    for label, count in shown:
        show(f"{count:>11,}  {label}")
    if more := len(found.classes) - len(shown):
        rest = sum(found.classes.values()) - sum(count for _, count in shown)
        show(f"{rest:>11,}  in {counted(more, 'other class', 'other classes')}")
    if found.accuracy is not None:
        show(f"accuracy {100 * found.accuracy:.2f} % on {counted(found.labelled, 'labelled image')}")
    return {"predicted": found.classes, "labelled": found.labelled, "accuracy": found.accuracy}


def predict(config: Config) -> Summary:
    """Run the job without printing the result."""
    from bottleneck.heads.head import Head

    check_output_uri(config.output)
    check_max_rejected(config.max_rejected)
    head = Head.load(config.head)
    plan = load_plan(config.output)
    spec = prediction_spec(head, config.head, config.top, config.source, plan, config.proba)
    if spec.made_of == "features":
        return _from_features(config, spec, head, plan)
    return _from_images(config, spec, head, plan)


def _from_features(config: Config, spec: PredictionSpec, head: "Head", plan: Plan | None) -> Summary:
    started, done = time.monotonic(), None
    if (config.reading, config.shard_size, config.limits) != (Reading(), None, Limits()):
        raise UsageError(
            f"{config.source} holds features, whose labels, shards and limits are those of their plan. Leave "
            "out --labels, --shard-size, and all options that say how images are read or which are accepted."
        )
    if plan is not None:
        check_predictions(plan, config.source, spec)
        done = plan.committed()
        if len(done) == plan.num_shards and not config.extend:
            tell_plan(plan)
            if (newest := load_plan(config.source)) is not None:  # a finished output needs no features
                tell_newer(plan, newest)
            return summarize(plan, Tally(plan, config.max_rejected), done, started)
    features = open_features(config.source, allow_incomplete=config.allow_incomplete)
    head.check_fits(features.spec)
    plan, extended = plan_like(features.plan, config.output, spec, plan, extend=config.extend)
    if extended:
        tell_extended(extended)
    tell_plan(plan)
    with Display("predict") as display:
        return predict_features(
            plan,
            features,
            Predictor(spec, head),
            config.max_rejected,
            display.show,
            extended,
            None if extended else done,
        )


def _from_images(config: Config, spec: PredictionSpec, head: "Head", plan: Plan | None) -> Summary:
    started = time.monotonic()
    check_use_gpu(config.run.use_gpu)
    request, extended, done = spec.features.request, None, None
    if config.weights is not None:
        request = replace(request, weights=config.weights)
    if plan is not None:
        check_predictions(
            plan, config.source, spec, limits=config.limits, reading=config.reading, shard_size=config.shard_size
        )
        if config.extend:
            plan, extended = extend_plan(plan, config.max_rejected)
            tell_extended(extended)
        done = plan.committed()
        if len(done) == plan.num_shards:  # nothing to predict, so nothing to start
            tell_plan(plan)
            return summarize(plan, Tally(plan, config.max_rejected), done, started, extended)
    if not cluster_address():  # where the workers are other machines, only they can tell
        try:
            check_weights(request.weights)
        except WeightsError as error:
            hint = "The head was fitted with these; say by --weights where they are now, their sha256 is compared."
            raise WeightsError(f"{error} {hint}" if config.weights is None else str(error)) from None
    if plan is None:  # before Ray: it stays if that does not start
        found = survey(
            config.source,
            config.output,
            reading=config.reading,
            shard_size=config.shard_size,
            max_rejected=config.max_rejected,
        )
        if config.weights is not None and not cluster_address():  # else the workers look
            head.check_fits(resolve_apart(request, spec.features.precision))
        plan = found.make_plan(spec, config.limits)
    tell_plan(plan)
    with (
        Run(request, spec.features.precision, config.run, plan.largest_shard, plan.num_images) as run,
        Display("predict") as display,
    ):
        # The workers load the head from where it is now, whatever it was called when the plan was made.
        plan = replace(plan, predictions=spec)
        return run.extract(plan, config.max_rejected, display.show, extended, started, done)
