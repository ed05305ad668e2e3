"""A head's predictions as an output of their own: of images (a stage of `stages`), or here of features that are stored.

The second needs neither network nor Ray: shard by shard, the plan of the features becomes the plan of the predictions.

Legend: N images, D features of a layer.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.console import Progress
from bottleneck.dataset.extend import Extended, append
from bottleneck.dataset.features import Features, read_table
from bottleneck.dataset.footer import revision_in
from bottleneck.dataset.make_plan import check_output, commit_plan
from bottleneck.dataset.plan import Plan, differences, load_plan
from bottleneck.dataset.plan_parts import Revision, Shard, copy, read_images
from bottleneck.dataset.schema import IMAGE_FIELDS, data_schema
from bottleneck.dataset.write import Receipt, write_shard
from bottleneck.errors import CorruptError, FingerprintError, IncompleteError, UsageError
from bottleneck.extract.prepare import Work
from bottleneck.extract.shard import ok_mask
from bottleneck.extract.summary import Summary, Tally, pending_shards, summarize
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import PredictionSpec
from bottleneck.storage.store import normal_uri, open_store
from bottleneck.text import counted

if TYPE_CHECKING:  # scikit-learn takes a second to import, which workers that only extract can do without
    from bottleneck.heads.head import Head

log = logging.getLogger(__name__)

MOST_COUNTED = 20_000
"""Shards that are read again to count predictions: ten million rows of a hundred bytes, a few minutes from S3."""
NUM_READERS = 16
NUM_THREADS = 4
"""Shards at once: enough to hide a store's delays; 512 rows of 25,088 values take 0.2 GB while a head looks at them."""


class Predictor:
    """A head, loaded where it is used: makes the columns of its predictions of a shard's features."""

    def __init__(self, spec: PredictionSpec, head: "Head | None" = None) -> None:
        """Load the head.

        Args:
            spec: whose predictions are wanted; the head found must have its sha256.
            head: the head itself, if it is loaded already.

        Raises:
            FingerprintError: if the head is not the planned one.
            UsageError, CorruptError: if there is none, or it is damaged.
        """
        from bottleneck.heads.head import Head

        self.spec = spec
        self.head = head or Head.load(spec.head)
        if self.head.sha256_ != spec.head_sha256:
            raise FingerprintError(
                f"The head in {spec.head} is not the planned one. Differing: head_sha256: planned {spec.head_sha256}, "
                f"found {self.head.sha256_}. Bring the old head back, or give another output."
            )
        self.head.check_fits(spec.features)
        self.layer = self.head.origin.layer

    def __call__(self, features: list[np.ndarray], is_ok: np.ndarray) -> list[pa.Array]:
        """What `extract.Columns` asks for."""
        return self.columns(features[self.spec.features.layers.index(self.layer)], is_ok)

    def columns(self, features_ND: np.ndarray, is_ok: np.ndarray) -> list[pa.Array]:
        """Ask the head.

        Args:
            features_ND: of the ok rows, in the head's layer.
            is_ok: mask of the shard's rows.

        Returns:
            The columns `rows.PREDICTION_FIELDS`, null for the rows that are not ok.
        """
        # All rows of a shard at once, so that the same features give the same bytes wherever they come from.
        answers = self.head.predictions(features_ND, self.spec.top).combine_chunks()
        row_of_answer = pa.array(np.cumsum(is_ok) - 1, pa.int64(), mask=~is_ok)
        return [column.combine_chunks() for column in answers.take(row_of_answer).columns]


def prediction_spec(head: "Head", uri: str, top: int, source: str, plan: Plan | None) -> PredictionSpec:
    """What an output of a head's predictions holds.

    Args:
        uri: where the head is.
        plan: the output's, if it has one: it knows what it was made of, also where the source has gone.
    """
    if plan is not None and plan.predictions:
        made_of = plan.predictions.made_of
    else:
        made_of = "images" if load_plan(source) is None else "features"
    return PredictionSpec(
        features=head.origin.spec, head=normal_uri(uri), head_sha256=head.sha256_, top=top, made_of=made_of
    )


def check_predictions(plan: Plan, source: str, spec: PredictionSpec, **asked: Limits | Reading | int | None) -> None:
    """Raise FingerprintError, naming each differing field, unless a plan is one of these predictions.

    Args:
        asked: further fields of the plan by name; None asks for nothing.

    Raises:
        UsageError: if it is a plan of features.
    """
    if plan.predictions is None:
        raise UsageError(
            f"{plan.output} is an output of features. Give another output for predictions; to predict from these "
            f"features, `bottleneck predict {plan.output} HEAD OUTPUT`."
        )
    requested: dict[str, Any] = {
        "spec": spec.features.to_json(),
        "predictions": spec.to_json(),
        "source": normal_uri(source),
    }
    for name, value in asked.items():
        if value is not None:
            if isinstance(value, Reading):
                requested[name] = value.asked()
            else:
                requested[name] = value.to_json() if isinstance(value, Limits) else value
    if message := differences(plan, requested):
        raise FingerprintError(message)


def plan_like(
    features: Plan, output: str, spec: PredictionSpec, plan: Plan | None, *, extend: bool
) -> tuple[Plan, Extended | None]:
    """The plan of predictions from features: the same shards, in copies of the same parts.

    Args:
        plan: the output's, if it has one.
        extend: add what the features have been extended by since that was made, and have those shards predicted again
            that were requeued.

    Raises:
        FingerprintError: if the features are of other images than those the plan was copied from.
        UsageError: if the output holds something else.
    """
    source_store, store = open_store(features.output), open_store(output)
    extended = Extended(0, 0, 0) if plan is not None and extend else None
    if plan is None:
        extend = True  # all there is, as when images are listed
        check_output(output)
        listing = copy(features.listings[0], source_store, store, spec)
        limits, reading = features.limits, features.reading
        plan = commit_plan(features.output, output, spec, limits, reading, features.shard_size, listing)
    _check_same_images(plan, features)
    while extend and len(plan.listings) < len(features.listings):
        listing = copy(features.listings[len(plan.listings)], source_store, store, spec)
        plan, created = append(plan, listing)
        _check_same_images(plan, features)
        if extended and created and not isinstance(listing, Revision):
            extended = replace(extended, added=extended.added + listing.images)
    tell_newer(plan, features)
    return plan, extended


def tell_newer(plan: Plan, features: Plan) -> None:
    """Say what the features have been extended by, or requeued, since a plan was made from them."""
    if more := features.num_images - plan.num_images:
        log.info("the features have %s that this plan has not; `extend` adds what is new", counted(more, "image"))
    newer = [shard for shard in plan.shards() if _revision(features, shard.number) > shard.revision]
    if newer:
        shards = counted(len(newer), "shard")
        log.info("requeued since, and predicted again with `extend`: %s of the features", shards)


def _revision(plan: Plan, number: int) -> int:
    return plan.revised[number].revision if number in plan.revised else 0


def predict_features(
    plan: Plan,
    features: Features,
    predictor: Predictor,
    max_rejected: float,
    on_progress: Callable[[Progress], None],
    extended: Extended | None = None,
    done: dict[int, int] | None = None,
) -> Summary:
    """Predict the shards of a plan that are missing from features that are stored, and finish the output.

    Args:
        done: `plan.committed()`, if it is known. Default: `data/` is listed.

    Raises:
        IncompleteError: if there are no features yet of some shards, when all others are predicted.
        TooManyRejectedError, CorruptError, StoreError: the run stops; nothing is lost.
    """
    started = time.monotonic()
    done, there = plan.committed() if done is None else done, features.entries
    tally = Tally(plan, max_rejected)
    images_before = sum(plan.images_in(shard) for shard in done)
    predict = partial(_predict_shard, plan, features, predictor, tally.run_id)
    source_store = open_store(features.plan.output)
    with ThreadPoolExecutor(NUM_THREADS) as pool:

        def has_features(shard: Shard) -> bool:
            """Of just the images this plan has: neither from before a revision of theirs, nor from after one."""
            entry = there.get(shard.number)
            if entry is None or shard.number not in features.plan.revised:
                return entry is not None
            return revision_in(source_store, entry) == shard.revision

        shards = pending_shards(plan, done)
        pending = dict(zip(shards, pool.map(has_features, shards), strict=True))
        for receipt in pool.map(predict, [shard for shard, has in pending.items() if has]):
            tally.add(receipt)
            on_progress(Progress(images_before + tally.images, plan.num_images, tally.rejected, "read"))
    missing = [shard for shard, has in pending.items() if not has]
    if newer := [shard for shard in missing if _revision(features.plan, shard.number) > shard.revision]:
        raise IncompleteError(
            f"The features of {counted(len(newer), 'shard')} were requeued after this output was planned, so these "
            "cannot be predicted as planned; all others are predicted that have features. Run the same command with "
            "`extend`."
        )
    if missing:
        first = min(shard.number for shard in missing)
        raise IncompleteError(
            f"No features yet for {len(missing):,} of {counted(plan.num_shards, 'shard')}, the first of them {first}; "
            "all others are predicted. Extract the rest and run the same command again: it does only that."
        )
    return summarize(plan, tally, done, started, extended)


@dataclass(frozen=True)
class Predicted:
    """What the rows of a finished output of predictions say."""

    classes: dict[str, int]
    """Images by the class they were given, the most frequent first."""
    labelled: int
    """Of these images, how many have a label."""
    correct: int
    """Of the labelled ones, how many were given their label."""

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.labelled if self.labelled else None


def count_predicted(plan: Plan) -> Predicted | None:
    """Count the rows of an output by class; None where that would be a second job, of more than MOST_COUNTED shards."""
    if plan.num_shards > MOST_COUNTED:
        return None
    store = open_store(plan.output)

    def count(shard: int) -> tuple[Counter[str], int, int]:
        table = read_table(store, plan.data_name(shard), ["label", "predicted"])
        label, predicted = (table.column(name).cast(pa.string()) for name in ("label", "predicted"))
        is_right = pc.equal(label, predicted)  # null without a label or a prediction
        right = pc.sum(is_right).as_py() or 0
        found = Counter(one for one in predicted.to_pylist() if one is not None)
        return found, len(is_right) - is_right.null_count, right

    with ThreadPoolExecutor(NUM_READERS) as pool:
        counts = list(pool.map(count, range(plan.num_shards)))
    classes = sum((found for found, _, _ in counts), Counter[str]())
    by_size = sorted(classes.items(), key=lambda pair: (-pair[1], pair[0]))
    return Predicted(dict(by_size), sum(one for _, one, _ in counts), sum(one for _, _, one in counts))


def _check_same_images(plan: Plan, features: Plan) -> None:
    """The plan's parts are copies of the first parts of the features', unless those were made anew."""
    mine = [part.sha256 for part in plan.parts]
    theirs = [part.sha256 for part in features.parts]
    if mine != theirs[: len(mine)]:
        raise FingerprintError(
            f"{features.output} has other images than when {plan.output} was planned from it. Differing: "
            f"listing_sha256: planned {plan.listings[0].listing_sha256}, found {features.listings[0].listing_sha256}. "
            "Give another output."
        )


def _predict_shard(plan: Plan, features: Features, predictor: Predictor, run_id: str, shard: Shard) -> Receipt:
    store, name = open_store(plan.output), plan.data_name(shard.number)
    if Work.of(plan).is_committed(shard):
        return Receipt(shard.number, {}, 0, created=False)
    source_name = features.plan.data_name(shard.number)
    table = features.table(source_name, [*(field.name for field in IMAGE_FIELDS), predictor.layer])
    rows, values = table.drop_columns(predictor.layer), table.column(predictor.layer).combine_chunks()
    is_ok = ok_mask(rows)
    has_values = values.is_valid().to_numpy(zero_copy_only=False)
    images = read_images(store, shard)
    same = rows.column("key").to_pylist() == [image.key for image in images]
    if same and shard.number in features.plan.revised:  # ... and the file was not replaced a moment ago
        etags = zip(images, rows.column("etag").to_pylist(), is_ok, strict=True)
        same = all(image.etag == etag for image, etag, ok in etags if ok)
    if not same or not np.array_equal(is_ok, has_values):
        raise CorruptError(
            f"{source_name} of {features.plan.output} does not have the rows that its plan says. Look at it with "
            "`bottleneck verify`; delete it to have it done again."
        )
    features_ND = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
    columns = predictor.columns(features_ND, is_ok)
    answered = pa.table([*rows.columns, *columns], schema=data_schema(plan.holds))
    return write_shard(
        store,
        name,
        plan.holds,
        shard.number,
        answered,
        run_id=run_id,
        device=f"numpy {np.__version__} cpu",
        revision=shard.revision,
    )
