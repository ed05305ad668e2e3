"""Compare `bottleneck extract` with the tutorials' loop, other programs and the machine's limits, on your own images.

    bottleneck benchmark photos/
    bottleneck benchmark photos/ --num-images 2048 --rounds 3
    bottleneck benchmark photos/ --what peers
    bottleneck benchmark --what runtimes --bases vgg16 resnet50 mobilenet_0.75
    bottleneck benchmark photos/ --what s3 --bucket s3://bucket/prefix
    bottleneck benchmark photos/ --what faults --bucket s3://bucket/prefix
    bottleneck benchmark --what growth --num-images 1000000
    bottleneck benchmark features/ --what head
    bottleneck benchmark --what head-growth --num-workers 2 --limit-seconds 300
    bottleneck benchmark --what similar --num-images 1000000 --dim 512
    bottleneck benchmark --what predict --num-images 1000000 --dim 512 --classes 100

By default, four measurements on the same images, each in fresh processes: the command `bottleneck extract`; the
tutorials' loop (load_img, preprocess_input, model.predict in float32 on batches of 32, HDF5); the network alone on
random pixels; decoding alone. The last two give the ceiling: cores / (core-seconds per image of both). Rates
leave out start-up. With --json the result holds all figures; jobs/benchmark/README.md explains the other measurements.
"""

import importlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from bottleneck.choices import check_choices
from bottleneck.errors import UsageError
from bottleneck.spec import FeatureRequest

MADE_UP = ("growth", "head-growth", "predict", "similar", "runtimes")
"""What is measured on made-up images or features, and so takes no source."""
IN_BUCKET = ("s3", "faults")


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = ""
    """A folder or s3://bucket/prefix with images, which are copied to a temporary folder first. For `head`, an output
    of `bottleneck extract`."""
    what: Literal[
        "extract", "peers", "runtimes", "s3", "faults", "growth", "head", "head-growth", "predict", "similar"
    ] = "extract"
    """`extract`: the command beside the tutorials' loop. `peers`: beside other programs. `runtimes`: networks on
    everything that can execute them here. `s3`, `faults`: from and to a
    bucket, without and with faults. `growth`: with growing numbers of images. `head`, `head-growth`: fits. `predict`:
    predictions of stored features. `similar`: searches."""
    num_images: int | None = None
    """Images to take evenly from the source; a smaller source is repeated. Default: 256; 1,000,000 for
    `growth`, `head-growth` (after 10,000 and 100,000), `predict` and `similar`; all for `head`."""
    rounds: int = 1
    """Repetitions; the figures are medians."""
    bucket: str = ""
    """`s3`, `faults`: s3://bucket/prefix for a temporary copy of the images."""
    features: FeatureRequest = field(default_factory=lambda: FeatureRequest(weights="random:0"))
    bases: tuple[str, ...] = ()
    """`runtimes`: networks to compare. Default: that of --base."""
    layer: str | None = None
    """`head`: column to fit on. Required if there are several."""
    limit_seconds: float = 30.0
    """`head`, `head-growth`: time limit of scikit-learn at this project's precision, for each value of C."""
    dim: int = 512
    """Dimensions of synthetic features."""
    classes: int = 100
    """Classes of synthetic features."""
    num_workers: int = 1
    """Workers of `bottleneck fit`; `head-growth` measures one worker, too."""

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
