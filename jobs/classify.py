"""Classify a few images, without Ray and without an output.

    bottleneck classify daisy.jpg s3://bucket/photos/tulip.jpg --head head/
    bottleneck classify daisy.jpg --base mobilenet_0.75 --top 3

Prints the most probable classes of each image: the head's, or without a head the 1,000 ImageNet classes of the network.
A head of several labels an image marks those above their thresholds with *. An image that cannot be decoded gets a line
with the reason; the others are classified, and the exit code is 6.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro

from bottleneck.catalog import ONNX_BASE, base_named, find_network
from bottleneck.errors import TooManyRejectedError, UsageError
from bottleneck.extract.decode import Decoded, Rejected, decode
from bottleneck.heads.label_sets import names_in
from bottleneck.networks.base import Base
from bottleneck.networks.class_names import class_names
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureRequest
from bottleneck.storage.store import ObjectError, place_of
from bottleneck.text import printable
from jobs.results import answer, show
from jobs.table_file import check_table_file, write_table_file

log = logging.getLogger(__name__)

TABLE = pa.schema(
    [
        pa.field("image", pa.string()),
        pa.field("rank", pa.int64()),
        pa.field("class", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("predicted", pa.bool_()),
        pa.field("reason", pa.string()),
    ]
)
BATCH_SIZE = 32
NUM_CLASSES = 1000
"""The ImageNet classes of a whole network."""


@dataclass(frozen=True, kw_only=True)
class Config:
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Files or s3:// URIs."""
    head: str | None = None
    """Head to classify with: a folder or s3:// prefix. Default: the network's own classes."""
    base: str | None = None
    """Network to classify with if there is no head; `bottleneck describe` lists the names. Default: vgg16."""
    weights: str | None = None
    """Weights of the network, with its top if there is no head. Default: the head's, else `imagenet`."""
    names: str | None = None
    """Class names if there is no head: Keras' imagenet_class_index.json, or a text file with one name per line.
    Default: the file in Keras' cache."""
    top: int = 5
    """Classes to show per image."""
    table: str | None = None
    """Also write the result to this new file or s3:// URI ending in .csv or .parquet, a row for each class shown."""


def main(config: Config) -> int:
    if not config.images:
        raise UsageError("Expected at least one image: a file or s3:// URI.")
    if config.top < 1:
        raise UsageError(f"--top takes a number of classes from 1 up. Received: {config.top}.")
    check_table_file(config.table)
    classifier = HeadClassifier(config) if config.head else NetworkClassifier(config)
    results: list[dict[str, Any]] = []
    for start in range(0, len(config.images), BATCH_SIZE):
        for result in classify(config.images[start : start + BATCH_SIZE], classifier, config.top):
            _tell(result)
            results.append(result)
    write_table_file(config.table, TABLE, map(_rows, results))
    num_rejected = sum("reason" in result for result in results)
    exit_code = TooManyRejectedError.exit_code if num_rejected else 0
    answer({"images": results, "rejected": num_rejected, "exit_code": exit_code})
    return exit_code


class HeadClassifier:
    """A head on the network its features came from."""

    def __init__(self, config: Config) -> None:
        if config.base or config.names:
            raise UsageError("A head brings its base and its classes: leave --base and --names out.")
        from bottleneck.heads.head import Head

        self.head = Head.load(str(config.head))
        spec = self.head.origin.spec
        self.base = Base(replace(spec, weights=config.weights or spec.weights), _batch_size(config))

    def __call__(self, pixels_NHWC: np.ndarray, top: int) -> list[list[dict[str, Any]]]:
        table = self.head.predictions(self.head.origin.taken(self.base(pixels_NHWC)), top)
        columns = (table.column(name).to_pylist() for name in ("top_labels", "top_probabilities", "predicted"))
        return [self._answers(*row) for row in zip(*columns, strict=True)]

    def _answers(self, labels: list[str], values: list[float], predicted: str) -> list[dict[str, Any]]:
        answers = [_answer(label, value) for label, value in zip(labels, values, strict=True)]
        if self.head.multi_label:
            given = names_in(predicted)
            answers = [{**one, "predicted": one["class"] in given} for one in answers]
        return answers


class NetworkClassifier:
    """A network with its top."""

    def __init__(self, config: Config) -> None:
        base = base_named(config.base or "vgg16")
        if base == ONNX_BASE:
            raise UsageError(
                "The classes of an ONNX file's network are not known: give --head HEAD fitted on its features."
            )
        request = FeatureRequest(
            base=base,
            weights=config.weights or "imagenet",
            layers=(find_network(base)[0].classifier,),
            precision="float32",
            dtype="float32",
        )
        if request.weights.startswith("random:"):
            log.warning("The weights are %s, not trained ones: the answers mean nothing.", request.weights)
        self.names = class_names(NUM_CLASSES, config.names)  # before the seconds that loading takes
        self.base = Base.of(request, "float32", _batch_size(config))

    def __call__(self, pixels_NHWC: np.ndarray, top: int) -> list[list[dict[str, Any]]]:
        probabilities_NK = self.base(pixels_NHWC)[0]
        best_NT = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :top]
        return [
            [_answer(self.names[k], float(row_K[k])) for k in best_T]
            for row_K, best_T in zip(probabilities_NK, best_NT, strict=True)
        ]


def classify(
    images: tuple[str, ...], classifier: HeadClassifier | NetworkClassifier, top: int
) -> Iterator[dict[str, Any]]:
    """Classify images, one JSON object each, in order: `image` with `classes` (for a head of several labels an image
    with whether each is `predicted`), or with the `reason` of its rejection."""
    decoded = [_decoded(image, classifier.base) for image in images]
    pixels = [one.pixels_HWC for one in decoded if isinstance(one, Decoded)]
    answers = iter(classifier(np.stack(pixels), top) if pixels else [])
    for image, one in zip(images, decoded, strict=True):
        if isinstance(one, Rejected):
            yield {"image": image, "reason": one.reason}
        else:
            yield {"image": image, "classes": next(answers)}


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table, of a rejected image one with the reason."""
    if "reason" in result:
        return [result]
    return [{"image": result["image"], "rank": rank, **one} for rank, one in enumerate(result["classes"], 1)]


def _answer(label: str, probability: float) -> dict[str, Any]:
    return {"class": label, "probability": round(probability, 6)}


def _decoded(image: str, base: Base) -> Decoded | Rejected:
    store, name = place_of(image)
    try:
        data = store.read(name)
    except ObjectError as error:
        return Rejected(error.reason)
    return decode(data, base.spec, Limits())


def _batch_size(config: Config) -> int:
    return min(BATCH_SIZE, len(config.images))


def _tell(result: dict[str, Any]) -> None:
    if "reason" in result:
        show(f"{result['image']}: {result['reason']}")
        return
    show(result["image"])
    labels = [printable(one["class"]) for one in result["classes"]]
    width = max(map(len, labels))
    for label, one in zip(labels, result["classes"], strict=True):
        mark = "  *" if one.get("predicted") else ""
        show(f"  {label:{width}}  {one['probability']:8.2%}{mark}")
