"""Bottleneck features from a bucket of images: the library.

    bottleneck.extract_images("photos", "features")
    features = bottleneck.open_features("features")
    head = bottleneck.fit_head(features, c=(0.1, 1, 10))

Importing it loads nothing heavy: each public name is imported when it is first used.
"""

# First of all: pandas looks for pydata's package of this name and reads __version__. Without one, or with 1.5.0 and
# up, importing pandas (and so ray.data) breaks; below, pandas warns in every process, which the filter silences.
__version__ = "0.1.0"

import warnings

warnings.filterwarnings("ignore", message="Pandas requires version .* of .bottleneck.")

from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from bottleneck import errors as errors
    from bottleneck.audit.verify import verify as verify_output
    from bottleneck.dataset.features import open_features
    from bottleneck.distributed.fit import fit_head
    from bottleneck.extract.local import extract_images
    from bottleneck.heads.head import Head
    from bottleneck.heads.request import HeadRequest
    from bottleneck.sources.selection import Selection
    from bottleneck.spec import FeatureRequest

__all__ = [
    "FeatureRequest",
    "Head",
    "HeadRequest",
    "Selection",
    "errors",
    "extract_images",
    "fit_head",
    "open_features",
    "verify_output",
]

# No name here may equal a folder's: importing the folder would overwrite it.
_PLACES = {
    "FeatureRequest": ("bottleneck.spec", "FeatureRequest"),
    "Head": ("bottleneck.heads.head", "Head"),
    "HeadRequest": ("bottleneck.heads.request", "HeadRequest"),
    "Selection": ("bottleneck.sources.selection", "Selection"),
    "extract_images": ("bottleneck.extract.local", "extract_images"),
    "fit_head": ("bottleneck.distributed.fit", "fit_head"),
    "open_features": ("bottleneck.dataset.features", "open_features"),
    "verify_output": ("bottleneck.audit.verify", "verify"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("bottleneck.errors")
    if name in _PLACES:
        module, attribute = _PLACES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'bottleneck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
