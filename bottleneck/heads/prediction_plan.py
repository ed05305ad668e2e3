"""Plan predictions, and check that an output was planned for the same ones."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bottleneck.dataset.differences import differences
from bottleneck.dataset.extend import Extended, append
from bottleneck.dataset.make_plan import check_output, commit_plan
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import Revision, copy
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import PredictionSpec, Proba
from bottleneck.storage.store import normal_uri, open_store
from bottleneck.text import counted

if TYPE_CHECKING:  # scikit-learn takes a second to import, which workers that only extract can do without
    from bottleneck.heads.head import Head

log = logging.getLogger(__name__)


def prediction_spec(
    head: "Head", uri: str, top: int, source: str, plan: Plan | None, proba: Proba = "top"
) -> PredictionSpec:
    """The spec of predictions by a head.

    Args:
        uri: where the head is.
        plan: the output's, if it has one: it knows what it was made of, also where the source has gone.
    """
    if plan is not None and plan.predictions:
        made_of = plan.predictions.made_of
    else:
        made_of = "images" if load_plan(source) is None else "features"
    return PredictionSpec(
        features=head.origin.spec,
        head=normal_uri(uri),
        head_sha256=head.sha256_,
        top=top,
        made_of=made_of,
        proba=proba,
        classes=tuple(head.class_names) if proba == "all" else (),
        multi_label=head.multi_label,
    )


def check_predictions(plan: Plan, source: str, spec: PredictionSpec, **asked: Limits | Reading | int | None) -> None:
    """Raise FingerprintError, naming each differing field, unless a plan is of these predictions.

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
        "predictions": {name: value for name, value in spec.to_json().items() if name != "classes"},  # the head's
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
    """Plan predictions from features: the same shards, in copies of their parts.

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
    """Log extensions and revisions of the features since the predictions were planned."""
    if more := features.num_images - plan.num_images:
        log.info("the features have %s that this plan has not; `extend` adds what is new", counted(more, "image"))
    newer = [shard for shard in plan.shards() if revision_of(features, shard.number) > shard.revision]
    if newer:
        shards = counted(len(newer), "shard")
        log.info("requeued since, and predicted again with `extend`: %s of the features", shards)


def revision_of(plan: Plan, number: int) -> int:
    return plan.revised[number].revision if number in plan.revised else 0


def _check_same_images(plan: Plan, features: Plan) -> None:
    """Raise unless the plan's parts are copies of the features' first parts."""
    mine = [part.sha256 for part in plan.parts]
    theirs = [part.sha256 for part in features.parts]
    if mine != theirs[: len(mine)]:
        raise FingerprintError(
            f"{features.output} has other images than when {plan.output} was planned from it. Differing: "
            f"listing_sha256: planned {plan.listings[0].listing_sha256}, found {features.listings[0].listing_sha256}. "
            "Give another output."
        )
