"""Read, check and write the files of a head; nothing in them is executed."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.dataset.plan import versions
from bottleneck.errors import CorruptError, UsageError
from bottleneck.heads.origin import Origin
from bottleneck.heads.request import HEAD_JSON as HEAD_JSON
from bottleneck.heads.request import NETWORK, check_network, check_parameters, plain_network
from bottleneck.spec import FeatureSpec, sha256_json
from bottleneck.storage.store import ObjectError, Store, Wanted, open_store

if TYPE_CHECKING:  # it imports this module
    from bottleneck.heads.head import Head

FORMAT = 1


HEAD_TENSORS = "head.safetensors"


MAX_JSON_BYTES = 64_000_000
"""A head of 1,000 classes has some 100 kB."""


MAX_HEADER_BYTES = 100_000
"""Of the tensors' file, before its values; ours take some 500."""


def read_head(uri: str) -> tuple[dict[str, Any], bytes]:
    """The two files of a head, checked against each other and themselves."""
    store = open_store(uri)
    text = _read_up_to(store, HEAD_JSON, MAX_JSON_BYTES)
    if text is None:
        raise UsageError(f"{store.uri} holds no head: it has no {HEAD_JSON}. Fit one with `bottleneck fit`.")
    mend = "Restore it, or fit the head again."
    try:
        document = json.loads(text)
        digest = document.pop("sha256")
        unchanged = digest == sha256_json(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{store.uri}/{HEAD_JSON} is truncated or no head: {error!r}. {mend}") from error
    if document.get("format") != FORMAT:
        raise UsageError(f"{store.uri} has format {document.get('format')}; this version reads format {FORMAT}.")
    if not unchanged:
        raise CorruptError(f"{store.uri}/{HEAD_JSON} was changed after it was written: its sha256 differs. {mend}")
    try:
        # Heads of an earlier version had no other network than the usual one.
        document = {**{name: usual for name, (_, _, usual) in NETWORK.items()}, **document}
        _check_types(document)
        most_bytes = _most_bytes(document)
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{store.uri} is no readable head: {error!r}. {mend}") from error
    data = _read_up_to(store, HEAD_TENSORS, most_bytes)
    if data is None:
        raise CorruptError(f"{store.uri}/{HEAD_TENSORS} is gone. {mend}")
    if hashlib.sha256(data).hexdigest() != document.get("tensors_sha256"):
        raise CorruptError(f"{store.uri}/{HEAD_TENSORS} is not the file {HEAD_JSON} speaks of: damaged. {mend}")
    return {**document, "sha256": digest}, data


def _read_up_to(store: Store, name: str, most_bytes: int) -> bytes | None:
    """A file of a head, unless it is larger than it can be; None where there is none."""
    entry = store.stat(name)
    if entry is None:
        return None
    if entry.size > most_bytes:
        raise CorruptError(
            f"{store.uri}/{name} has {entry.size:,} bytes, expected at most {most_bytes:,}. Restore it, or fit the "
            "head again."
        )
    try:
        return store.get(Wanted(name, entry.size, entry.etag))
    except ObjectError:
        raise CorruptError(f"{store.uri}/{name} changed while it was read. Try again.") from None


def _most_bytes(document: dict[str, Any]) -> int:
    """How large the tensors of a head can be by what its JSON says of it: float64 values behind a header."""
    dim: int = document["dim"]
    num_classes = len(document["classes"])
    hidden: int = document["hidden_size"]
    num_values = (dim + 1) * (num_classes + hidden) + (hidden + 1) * num_classes + 2 * dim + 1
    return 8 * num_values + MAX_HEADER_BYTES


def _check_types(document: dict[str, Any]) -> None:
    """Raise ValueError where a field of a head's JSON is of another kind than those that are written."""
    kinds: dict[str, type] = {"details": dict, "dim": int, "classes": list}
    of_origin = {"layer": str, "features": str, "plan_sha256": str, "spec": dict}
    if any(document[name] is not None for name in of_origin):  # all of them are null for a head fitted on arrays
        kinds |= of_origin
    for name, kind in kinds.items():
        if type(document[name]) is not kind:
            raise ValueError(f"{name} is {type(document[name]).__name__}, expected {kind.__name__}")
    names = document.get("feature_names")
    if names is not None and not (
        type(names) is list and len(names) == document["dim"] and all(type(name) is str for name in names)
    ):
        raise ValueError("feature_names are not one string for each feature")
    classes = document["classes"]
    if len(class_array(classes)) < 2 or len(set(classes)) < len(classes):
        raise ValueError("classes are not two or more different ones")
    check_network("mlp", *(document[name] for name in NETWORK))  # before its size decides how much is read


def plain_classes(classes_K: np.ndarray) -> list[str] | list[int] | list[bool]:
    """Classes as JSON keeps them. Raises UsageError for those that it does not."""
    plain: list[Any] = [label.item() if isinstance(label, np.generic) else label for label in classes_K.tolist()]
    try:
        class_array(plain)
    except ValueError as error:
        raise UsageError(
            f"A head is saved with classes that are all strings, all integers or all booleans. Received: {error}. "
            "Convert the labels before the fit, for example with y.astype(int) or y.astype(str)."
        ) from None
    return plain


def class_array(classes: list[Any]) -> np.ndarray:
    """Classes [K] such that they equal the labels of the fit. Raises ValueError for those that JSON does not keep."""
    types = {type(label) for label in classes}
    odd = [label for label in classes if type(label) not in (str, int, bool)]
    if odd or len(types) > 1:
        shown = odd[0] if odd else classes
        raise ValueError(f"{shown!r} ({', '.join(sorted(kind.__name__ for kind in types))})")
    classes_K = np.array(classes, dtype=object if types == {str} else None)
    if types == {int} and classes_K.dtype.kind not in "iu":
        raise ValueError("integers beyond 64 bits")
    return classes_K


def plain_weights(class_weight: Any) -> Any:
    """A class weight as JSON keeps it."""
    if not isinstance(class_weight, dict):
        return class_weight
    return {str(label): float(weight) for label, weight in class_weight.items()}


def restored(head_class: Any, document: dict[str, Any]) -> Any:
    """A head that has everything but its arrays. Raises ValueError and others where the document is of no such head."""
    network = {name: document[name] for name in NETWORK}
    several = bool(document.get("multi_label"))  # heads of earlier versions have no such field
    network |= {"multi_label": several}
    head = head_class(document["kind"], document["C"], document["scale"], document["class_weight"], **network)
    head.classes_ = class_array(document["classes"])
    if isinstance(head.class_weight, dict):
        label_of = dict(zip(head.class_names, head.classes_.tolist(), strict=True))
        head.class_weight = {label_of.get(name, name): value for name, value in head.class_weight.items()}
    check_parameters(head.kind, head.C, head.scale, head.class_weight, head.multi_label)
    head.n_features_in_ = document["dim"]
    if names := document.get("feature_names"):  # heads of earlier versions have no such field
        head.feature_names_in_ = np.array(names, dtype=object)
    if document["spec"] is not None:
        spec = FeatureSpec.from_json(document["spec"])
        others = ("layer", "features", "plan_sha256", "details")
        head.origin_ = Origin(spec=spec, **{name: document[name] for name in others})
    head.sha256_ = str(document["sha256"])
    return head


def checked_tensors(data: bytes, uri: str, head: "Head") -> dict[str, np.ndarray]:
    """The arrays of a head that has everything but these. Raises ValueError where they are not those of such a head."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, np.ndarray] = load(data)
    except SafetensorError as error:
        raise CorruptError(f"{uri}/{HEAD_TENSORS} is no safetensors file: {error}. Fit the head again.") from error
    dim, num_classes, width = head.n_features_in_, len(head.classes_), head.n_features_in_
    expected: dict[str, tuple[int, ...]] = {}
    if head.kind == "mlp":
        width = head.hidden_size
        expected |= {"hidden_coef": (width, dim), "hidden_intercept": (width,)}
    if head.scale == "standard":
        expected |= {"mean": (dim,), "scale": (dim,)}
    if head.kind == "svm" or (head.kind == "logistic" and "temperature" in tensors):
        expected["temperature"] = (1,)
    rows = 1 if num_classes == 2 and not head.multi_label else num_classes
    if head.multi_label:
        expected["thresholds"] = (num_classes,)
    expected |= {"coef": (rows, width), "intercept": (rows,)}
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected:
        raise ValueError(f"expected arrays {expected}, found {found}")
    for name, value in tensors.items():
        if value.dtype != np.float64 or not np.isfinite(value).all():
            raise ValueError(f"{name} is not all finite float64")
        if name == "thresholds" and not ((value >= 0) & (value <= 1)).all():
            raise ValueError("thresholds are not all from 0 to 1")
        if name in ("scale", "temperature") and not (value > 0).all():
            raise ValueError(f"{name} is not all above 0")
    return tensors


def _tensors(head: "Head") -> dict[str, np.ndarray]:
    tensors = {"coef": head.coef_, "intercept": head.intercept_}
    if head.scale == "standard":
        tensors |= {"mean": head.mean_, "scale": head.scale_}
    if head.kind == "svm" or head.temperature_ != 1.0:
        tensors["temperature"] = np.array([head.temperature_])
    if head.multi_label:
        tensors["thresholds"] = head.thresholds_
    if head.kind == "mlp":
        tensors |= {"hidden_coef": head.hidden_coef_, "hidden_intercept": head.hidden_intercept_}
    return tensors


def write_head(uri: str, head: "Head", origin: Origin | None) -> None:
    """Write `head.safetensors`, then `head.json` with its format and digests.

    Args:
        origin: where the features come from, if that is known.

    Raises:
        UsageError: if there is a head already, or the classes are neither strings nor integers nor booleans.
    """
    from safetensors.numpy import save

    document: dict[str, Any] = {
        "format": FORMAT,
        "kind": head.kind,
        "C": head.C,
        "scale": head.scale,
        "class_weight": plain_weights(head.class_weight),
        **plain_network(head),
        **({"multi_label": True} if head.multi_label else {}),
        "classes": plain_classes(head.classes_),
        "dim": head.n_features_in_,
        "feature_names": list(getattr(head, "feature_names_in_", ())) or None,
        "layer": origin and origin.layer,
        "fingerprint": origin and origin.spec.fingerprint,
        "spec": origin and origin.spec.to_json(),
        "features": origin and origin.features,
        "plan_sha256": origin and origin.plan_sha256,
        "details": origin.details if origin else {"versions": versions()},
    }
    store = open_store(uri)
    if store.exists(HEAD_JSON):
        raise UsageError(f"{store.uri} holds a head already. Give a new place.")
    data = save({name: np.ascontiguousarray(value) for name, value in _tensors(head).items()})
    document["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    store.replace(HEAD_TENSORS, data)
    text = json.dumps({**document, "sha256": sha256_json(document)}, indent=1, ensure_ascii=False)
    if not store.create(HEAD_JSON, text.encode() + b"\n"):
        raise UsageError(f"Another job wrote a head to {store.uri} at the same time. Fit again, to a new place.")
