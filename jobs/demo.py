"""Run the main job on images that come with scikit-learn: handwritten digits.

    bottleneck demo

Writes 400 digits as image files, extracts VGG16 features, verifies them, fits a head and writes its report. Uses
ImageNet weights if they are cached or can be downloaded, else random ones.
"""

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bottleneck.audit.verify import verify
from bottleneck.errors import WeightsError
from bottleneck.extract.summary import Summary
from bottleneck.heads.request import HeadRequest
from bottleneck.spec import FeatureRequest
from bottleneck.text import counted
from jobs import extract, fit
from jobs.results import answer, show

log = logging.getLogger(__name__)

IMAGES_PER_CLASS = 40
SIDE_PX = 64
IMAGENET_HOST = "storage.googleapis.com"
"""Where Keras downloads its weights from."""


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: str = "bottleneck-demo"
    """Folder for images and features."""


def main(config: Config) -> int:
    folder = Path(config.folder)
    images = folder / "images"
    log.info("1/4 images: %s handwritten digits -> %s", f"{write_digits(images):,}", images)
    log.info("2/4 extract: every image through VGG16")
    summary = extract_with_any_weights(images, folder)
    extract.report(summary)
    report = verify(summary.output, full=True)
    good = "good" if report.exit_code == 0 else "BAD"
    show(f"3/4 verify: {counted(report.planned, 'image')}, {report.ok:,} ok, {good}")
    log.info("4/4 fit: logistic regression on 3/4 of them, evaluated on the other 1/4")
    head = head_of(summary.output)
    fitted = fit.fit(fit.Config(features=summary.output, head=head, request=HeadRequest(c=(0.01, 0.1, 1.0))))
    show(f"open {head}/report.html; features are in {summary.output}")
    result = {"accuracy": fitted["accuracy"], "images": summary.images, "features": summary.output}
    answer({**result, "head": head, "source": str(images)})
    return report.exit_code


def head_of(features: str) -> str:
    """The head's folder for a features folder: `demo/features-random` -> `demo/head-random`."""
    path = Path(features)
    return str(path.with_name(path.name.replace("features", "head", 1)))


def write_digits(folder: Path) -> int:
    """Write the digits as PNG files, one folder per class, unless they exist. Returns their number."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        os.makedirs(folder / str(digit), exist_ok=True)
        for index in np.flatnonzero(digits.target == digit)[:IMAGES_PER_CLASS]:
            path = folder / str(digit) / f"{index:04d}.png"
            if not path.exists():
                pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path)
    return 10 * IMAGES_PER_CLASS


def extract_with_any_weights(images: Path, folder: Path) -> Summary:
    """Extract with ImageNet weights if they are available, else with random ones."""
    if imagenet_is_at_hand():
        try:
            return _extract(images, folder / "features-imagenet", "imagenet")
        except WeightsError as error:
            log.debug("%s", error)
    log.warning(
        "VGG16's ImageNet weights are neither cached nor reachable from here, so the demo uses random ones: everything "
        "runs as it would, but the features know nothing of photos, and accuracy on real ones would be poor."
    )
    return _extract(images, folder / "features-random", "random:0")


def imagenet_is_at_hand() -> bool:
    """Whether Keras has the weights in its cache, or can download them."""
    cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    if any(cache.glob("vgg16_weights_*_notop.h5")):
        return True
    try:
        socket.create_connection((IMAGENET_HOST, 443), timeout=3).close()
    except OSError:
        return False
    return True


def _extract(images: Path, output: Path, weights: str) -> Summary:
    request = FeatureRequest(base="vgg16", weights=weights)
    return extract.extract(extract.Config(source=str(images), output=str(output), features=request))
