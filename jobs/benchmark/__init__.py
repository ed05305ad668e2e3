"""Compare `extract` with the tutorials' loop, and with the most this machine can do, on your own images.

    bottleneck benchmark photos/
    bottleneck benchmark photos/ --num-images 2048 --rounds 3
    bottleneck benchmark photos/ --what peers
    bottleneck benchmark photos/ --what s3 --bucket s3://bucket/prefix
    bottleneck benchmark photos/ --what faults --bucket s3://bucket/prefix
    bottleneck benchmark --what growth --num-images 1000000
    bottleneck benchmark features/ --what head
    bottleneck benchmark --what head-growth --num-images 200000 --dim 512 --classes 100 --num-workers 2
    bottleneck benchmark --what similar --num-images 1000000 --dim 512

Four measurements on the same images, one after the other, each in fresh processes: the command `bottleneck extract`;
the loop of the tutorials (load_img, preprocess_input, model.predict in float32 on batches of 32, HDF5); the network
alone on random pixels; decoding alone. The last two give the ceiling: cores / (core-seconds an image of network +
decode). Rates leave out start-up, and so the shards the job decodes before its first batch: give fast machines more
images. 256 images and VGG16 take 2 minutes on two idle cores with AVX512-BF16. The JSON line holds all figures.

`--what peers` takes the same images through Ray Data as its documentation writes it and through PyTorch, `--what s3`
through a bucket and a disk. `--what growth` takes no source: it plans, extracts, resumes and verifies made-up images, a
thousand to a million.

`--what head` compares fitting with scikit-learn's instead, on the features of an output of `extract`. `--what
head-growth` takes no source: it fits on made-up features, few and many, and says what more of them cost. `--what
similar` takes none either: it searches made-up features for those most like one.
"""

import importlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from bottleneck.choices import check_choices
from bottleneck.errors import UsageError
from bottleneck.spec import FeatureRequest

MADE_UP = ("growth", "head-growth", "similar")
"""What is measured on made-up images or features, and so takes no source."""
IN_BUCKET = ("s3", "faults")


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = ""
    """A folder or s3://bucket/prefix with images; copied to a temporary folder before anything is measured. For `head`
    an output of `bottleneck extract`."""
    what: Literal["extract", "peers", "s3", "faults", "growth", "head", "head-growth", "similar"] = "extract"
    """What is measured: extraction, beside other programs, from S3, from S3 with faults, as images grow in number;
    fitting beside scikit-learn, as images grow in number; or searching."""
    num_images: int | None = None
    """Taken evenly from the whole source; one with fewer is gone through again. 256 unless given; the made-up images of
    `head-growth` are 200,000 unless given, those of `growth` and `similar` 1,000,000. `head` takes all."""
    rounds: int = 1
    """Times everything is measured; the figures are medians."""
    bucket: str = ""
    """s3://bucket/prefix below which a copy of the images is put, and removed in the end. Of `s3` and `faults`."""
    features: FeatureRequest = field(default_factory=lambda: FeatureRequest(weights="random:0"))
    layer: str | None = None
    """Column to fit on; may be left out where there is only one. Of `head`."""
    limit_seconds: float = 30.0
    """For scikit-learn at this project's precision, each value of C. Of `head`."""
    dim: int = 512
    """Dimensions of made-up features."""
    classes: int = 100
    """Classes of made-up features."""
    num_workers: int = 1
    """Of `bottleneck fit`."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("num_images", "rounds", "dim", "num_workers"):
            _check_from(1, name, getattr(self, name))
        _check_from(2, "classes", self.classes)
        if not self.limit_seconds > 0:
            raise UsageError(f"--limit-seconds takes a number above 0. Received: {self.limit_seconds}.")
        if (self.what in MADE_UP) == bool(self.source):
            raise UsageError(
                f"--what {self.what} takes {'no source' if self.source else 'a source'}. Received: {self.source!r}."
            )
        if self.what in IN_BUCKET and not self.bucket.startswith("s3://"):
            raise UsageError(f"--what {self.what} takes --bucket s3://BUCKET/PREFIX. Received: {self.bucket!r}.")
        if self.what not in IN_BUCKET and self.bucket:
            raise UsageError(f"--what {self.what} takes no --bucket. Received: {self.bucket!r}.")


def _check_from(lowest: int, name: str, value: int | None) -> None:
    if value is not None and value < lowest:
        raise UsageError(f"--{name.replace('_', '-')} takes a number from {lowest} up. Received: {value}.")


def main(config: Config) -> int:
    measurement = importlib.import_module(f"jobs.benchmark.{config.what.replace('-', '_')}")
    return int(measurement.main(config))
