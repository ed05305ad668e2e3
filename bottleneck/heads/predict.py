"""Predict the classes of images or of stored features, as an output of their own.

The second needs neither network nor Ray: shard by shard, the plan of the features becomes the plan of the predictions.

Legend: N images, D features of a layer.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bottleneck.console import Progress
from bottleneck.dataset.extend import Extended
from bottleneck.dataset.features import Features, side_by_side
from bottleneck.dataset.footer import revision_in
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import Shard, read_images
from bottleneck.dataset.schema import IMAGE_FIELDS, data_schema, ok_mask
from bottleneck.dataset.write import Receipt, write_shard
from bottleneck.errors import CorruptError, FingerprintError, IncompleteError
from bottleneck.extract.summary import Summary, Tally, pending_shards, summarize
from bottleneck.extract.work import Work
from bottleneck.spec import PredictionSpec, layers_in
from bottleneck.storage.store import open_store
from bottleneck.text import counted

if TYPE_CHECKING:  # scikit-learn takes a second to import, which workers that only extract can do without
    from bottleneck.heads.head import Head
from bottleneck.heads.prediction_plan import revision_of

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
        return self.columns(self.head.origin.taken(features), is_ok)

    def columns(self, features_ND: np.ndarray, is_ok: np.ndarray) -> list[pa.Array]:
        """Ask the head.

        Args:
            features_ND: of the ok rows, in the head's layer.
            is_ok: mask of the shard's rows.

        Returns:
            The columns `schema.prediction_fields`, null for the rows that are not ok.
        """
        # All rows of a shard at once, so that the same features give the same bytes wherever they come from.
        answers = self.head.predictions(features_ND, self.spec.top, self.spec.proba).combine_chunks()
        row_of_answer = pa.array(np.cumsum(is_ok) - 1, pa.int64(), mask=~is_ok)
        return [column.combine_chunks() for column in answers.take(row_of_answer).columns]


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
    if newer := [shard for shard in missing if revision_of(features.plan, shard.number) > shard.revision]:
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


def _predict_shard(plan: Plan, features: Features, predictor: Predictor, run_id: str, shard: Shard) -> Receipt:
    store, name = open_store(plan.output), plan.data_name(shard.number)
    if Work.of(plan).is_committed(shard):
        return Receipt(shard.number, {}, 0, created=False)
    source_name = features.plan.data_name(shard.number)
    layers = layers_in(predictor.layer)
    table = features.table(source_name, [*(field.name for field in IMAGE_FIELDS), *layers])
    rows = table.drop_columns(layers)
    is_ok = ok_mask(rows)
    has_values = np.all([table.column(one).is_valid().to_numpy() for one in layers], axis=0)
    images = read_images(store, shard)
    same = rows.column("key").to_pylist() == [image.key for image in images]
    if same and shard.number in features.plan.revised:  # ... and the file was not replaced a moment ago
        etags = zip(images, rows.column("etag").to_pylist(), is_ok, strict=True)
        same = all(image.etag == etag for image, etag, ok in etags if ok)
    if not same or not np.array_equal(is_ok, has_values):
        raise CorruptError(
            f"{source_name} of {features.plan.output} does not have the rows that its plan says. Look at it with "
            "`bottleneck verify`; delete it to have it extracted again."
        )
    columns = predictor.columns(side_by_side(table, predictor.layer), is_ok)
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
