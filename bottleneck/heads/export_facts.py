"""What a program must know of an exported model, as a file beside it."""

import json
from typing import Any

from bottleneck.errors import UsageError
from bottleneck.heads.export_onnx import OUTPUT
from bottleneck.heads.head import Head
from bottleneck.networks.prepared import BATCH_AXIS, PIXELS
from bottleneck.spec import FeatureSpec
from bottleneck.storage.store import ObjectChangedError, ObjectGoneError, Store, Wanted

INPUT = PIXELS
"""Name of the input in the model file."""


def head_facts(head: Head) -> dict[str, Any]:
    """What a program that uses a head's model must know."""
    return {
        "classes": [str(label) for label in head.classes_],
        **({"thresholds": head.thresholds_.tolist()} if head.multi_label else {}),
        **input_facts(head.origin.spec, head.origin.layer),
        "output": {"name": OUTPUT, "shape": [BATCH_AXIS, len(head.classes_)], "dtype": "float32"},
        "head_sha256": getattr(head, "sha256_", None),
    }


def input_facts(spec: FeatureSpec, layer: str) -> dict[str, Any]:
    """What a program must know of a network's input."""
    return {
        "input": {
            "name": INPUT,
            "shape": [BATCH_AXIS, spec.image_size_px, spec.image_size_px, 3],
            "dtype": "uint8",
            "channels": "RGB",
        },
        "image_size_px": spec.image_size_px,
        "resize": spec.resize,
        "interpolation": spec.interpolation,
        "exif": spec.exif,
        "decode": spec.decode,
        "base": spec.base,
        "layer": layer,
        "fingerprint": spec.fingerprint,
    }


def facts_etag(store: Store, name: str, fingerprint: str, head_sha256: str | None) -> str:
    """The etag of a file with facts that the same export left when it was killed; empty where there is no file.

    Args:
        fingerprint: of the features.
        head_sha256: None for a network without a head.

    Raises:
        UsageError: if anything else has this name.
    """
    entry = store.stat(name)
    if entry is None and not store.exists(name):
        return ""
    try:
        facts = json.loads(store.get(Wanted(name, 0, entry.etag))) if entry else None
    except (ObjectGoneError, ObjectChangedError, ValueError, RecursionError):
        facts = None
    ours = (fingerprint, head_sha256)
    is_ours = isinstance(facts, dict) and (facts.get("fingerprint"), facts.get("head_sha256")) == ours
    if entry is None or not is_ours:
        raise UsageError(
            f"{store.uri}/{name} is there already and does not describe the same export. It would be written "
            "beside the model. Give another name, or remove it."
        )
    return entry.etag


def facts_file(facts: dict[str, Any]) -> bytes:
    """What stands beside a model file, for people and programs."""
    return json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n"
