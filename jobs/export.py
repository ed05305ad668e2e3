"""Export features, their network, or a head together with its network, as a single file for other programs.

    bottleneck export features/ flowers.h5
    bottleneck export features/ s3://bucket/flowers.tfrecord --layer block5_pool:avg
    bottleneck export features/ network.onnx
    bottleneck export head/ flowers.keras

The suffix of FILE selects the format. Features: .h5, .hdf5, .npz, .npy, .tfrecord, .parquet, .csv, .mat or .lance, the
ok rows in shuffled order. Networks: .keras or .onnx, from uint8 images to features, or with a head to class
probabilities, with a description in FILE.json. The file appears when it is complete; an existing file is never
replaced.
"""

import logging
import time
from dataclasses import dataclass
from typing import Annotated, cast

import tyro

from bottleneck.choices import check_choices
from bottleneck.console import Display, Progress, duration
from bottleneck.dataset.contents import ExportOrder
from bottleneck.dataset.export import export_features, suffix_of
from bottleneck.dataset.export_formats import WRITERS
from bottleneck.dataset.features import open_features
from bottleneck.errors import UsageError
from bottleneck.heads.request import HEAD_JSON
from bottleneck.storage.store import open_store, place_of
from bottleneck.text import counted, size
from jobs.results import answer, show

log = logging.getLogger(__name__)

OF_MODELS = (".keras", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES|HEAD")]
    """An output of `bottleneck extract`, or a head written by `bottleneck fit`: a folder or s3:// prefix."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A new file or s3:// URI, ending in .h5, .hdf5, .npz, .npy, .tfrecord, .tfrecords, .parquet, .csv, .mat or .lance
    for features, .keras or .onnx for their network or a head."""
    layer: str | None = None
    """Column of the features. Required if there are several."""
    order: ExportOrder = "shuffled"
    """Features: `shuffled`, in the same order each time, so that any slice is a random sample of all classes, or
    `plan`, where the images of a class are adjacent."""
    flat: bool = False
    """Features: write LAYER:none as one vector per image instead of a map (H x W x C)."""
    weights: str | None = None
    """Networks and heads: weights of the network, if they have moved; their sha256 must be the same."""
    allow_incomplete: bool = False
    """Also export unfinished features, with the shards that exist."""

    def __post_init__(self) -> None:
        check_choices(self)


def main(config: Config) -> int:
    suffix = suffix_of(config.file)
    if suffix not in OF_MODELS and suffix not in WRITERS:
        raise UsageError(
            f"Expected a file ending in {', '.join(WRITERS)} (of features), or in {' or '.join(OF_MODELS)} (of their "
            "network or a head). "
            f"Received: {config.file}."
        )
    return of_model(config) if suffix in OF_MODELS else of_features(config)


def of_features(config: Config) -> int:
    if config.weights:
        raise UsageError("--weights is of networks and heads: stored features need none. Leave it out.")
    if open_store(config.source).exists(HEAD_JSON):
        raise UsageError(
            f"{config.source} is a head. Expected a file ending in {' or '.join(OF_MODELS)} for it, or an output of "
            f"`bottleneck extract`. Received: {config.file}."
        )
    features = open_features(config.source, allow_incomplete=config.allow_incomplete)
    started = time.monotonic()
    with Display("export") as display:
        facts = export_features(
            features,
            config.file,
            config.layer,
            lambda images: display.show(Progress(images, features.plan.num_images, 0, "")),
            order=config.order,
            flat=config.flat,
        )
    values = " x ".join(f"{side:,}" for side in facts["shape"][1:])
    show(
        f"{config.file}: {counted(facts['images'], 'image')} of {values} values of {facts['layer']}, "
        f"{'shuffled' if config.order == 'shuffled' else 'in the order of the plan'}, "
        f"{size(facts['bytes'])}, in {duration(time.monotonic() - started)}"
    )
    answer({"file": config.file, **facts})
    return 0


def of_model(config: Config) -> int:
    """Export a head with its network, or the network of features alone."""
    is_network = open_store(config.source).exists("plan.json")
    if config.flat or config.order != "shuffled" or config.allow_incomplete:
        raise UsageError("--order, --flat and --allow-incomplete are of features. Leave them out.")
    if config.layer and not is_network:
        raise UsageError("--layer is of features and their network; a head has its layer. Leave it out.")
    store, name = place_of(config.file)
    if store.exists(name):  # before the seconds that importing and building take
        raise UsageError(f"{config.file} is there already. Give another name, or remove it.")
    from bottleneck.heads.export import ModelFormat, export_head, export_network
    from bottleneck.heads.export_facts import facts_etag, facts_file
    from bottleneck.heads.head import Head

    file_format = cast(ModelFormat, suffix_of(config.file).removeprefix("."))
    if is_network:
        features = open_features(config.source, allow_incomplete=True)
        layer = features.column(config.layer)
        etag = facts_etag(store, f"{name}.json", features.spec.fingerprint, None)
        store.try_writing(create_only=True)
        data, facts = export_network(features.spec, layer, file_format, config.weights)
    else:
        head = Head.load(config.source)
        etag = facts_etag(store, f"{name}.json", head.origin.spec.fingerprint, getattr(head, "sha256_", None))
        store.try_writing(create_only=True)
        data, facts = export_head(head, file_format, config.weights)
    # The facts come first: a job killed between the two leaves no file, and so is run again, which writes both.
    beside = f"{name}.json"
    is_written = store.replace(beside, facts_file(facts), etag) if etag else store.create(beside, facts_file(facts))
    if not is_written or not store.create(name, data):
        raise UsageError(f"Another job wrote {config.file} at the same time. Give another name.")
    if is_network:
        values = f"{facts['output']['shape'][1]:,} values of {facts['layer']}"
        show(f"{config.file}: {size(len(data))}, {values}, as {file_format}")
        show(f"its features differ from the network's by {facts['max_difference']:.1e} of the largest value at most")
    else:
        classes = counted(len(facts["classes"]), "class", "classes")
        show(f"{config.file}: {size(len(data))}, {classes}, as {file_format}")
        show(f"its probabilities differ from the head's by {facts['max_difference']:.1e} at most")
    answer({"file": config.file, "bytes": len(data), **facts})
    return 0
