"""Keep the results of an unfinished fit in the place of its head, for the next run.

One small object a result, written once; a step of a fit that takes minutes is written again every minute. Nothing in
them is executed, and what is damaged is left aside: the fit is done again from there.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bottleneck.dataset.features import Features
from bottleneck.dataset.plan import versions
from bottleneck.errors import StoreError
from bottleneck.heads.solver.gram import Path
from bottleneck.heads.solver.label_counts import LabelCounts
from bottleneck.heads.solver.metrics import Counts
from bottleneck.spec import sha256_json
from bottleneck.storage.store import ObjectError, Store
from bottleneck.text import counted

log = logging.getLogger(__name__)

SUFFIX = ".partial"
STEP_SECONDS = 60.0
"""How often the steps of a long fit are kept, which all have one name: the most that a killed fit loses."""
_NAME = re.compile(r"fit-[0-9a-f]{16}-[0-9a-f]{16}\.partial")
"""Narrow, as these files are removed, and others in the place may be the user's."""
_DIGEST_BYTES = 32


class Pace:
    """Tells what is worth keeping now: finished folds at once, steps of the solver from time to time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def is_due(self, name: str, value: Any) -> bool:
        if isinstance(value, Path):
            return True
        now = self._clock()
        if now - self._since.setdefault(name, now) < STEP_SECONDS:
            return False
        self._since[name] = now
        return True


class PartialResults:
    """Results beside a head that does not exist yet."""

    def __init__(self, store: Store, fit: dict[str, Any]) -> None:
        """Args: fit: all that the results depend on, as JSON values."""
        self.store = store
        self._prefix = f"fit-{sha256_json(fit)[:16]}-"
        self._may_write = True

    def read(self) -> dict[str, Any]:
        """The results by name; those of other fits and damaged ones are left out."""
        found = {}
        try:
            for entry in list(self.store.list(self._prefix)):
                if not entry.key.endswith(SUFFIX):
                    continue
                try:
                    name, value = _decoded(self.store.read(entry.key))
                except (ObjectError, ValueError, KeyError, TypeError, IndexError) as error:
                    log.warning("%s/%s is damaged and left aside: %s", self.store.uri, entry.key, error)
                    continue
                found[name] = value
        except StoreError as error:  # of a user who may not list, say
            log.info("results of an earlier run are not looked for: %s", error)
        if found:
            log.info("goes on with %s of an earlier run", counted(len(found), "result"))
        return found

    def keep(self, name: str, value: Any) -> None:
        """Write a result. A store that refuses it costs no fit: it is said once, and no more is kept."""
        if not self._may_write:
            return
        key = f"{self._prefix}{hashlib.sha256(name.encode()).hexdigest()[:16]}{SUFFIX}"
        try:
            self.store.replace(key, _encoded(name, value))
        except StoreError as error:
            self._may_write = False
            log.warning("results are not kept for a next run: %s", error)

    def sweep(self) -> None:
        """Remove the results of all fits in this place, which has its head."""
        try:
            for entry in list(self.store.list("fit-")):
                if _NAME.fullmatch(entry.key):
                    self.store.remove(entry.key)
        except StoreError as error:
            log.info("files named fit-*%s in %s can be removed: %s", SUFFIX, self.store.uri, error)


def partial_results(store: Store, features: Features, request: dict[str, Any]) -> PartialResults:
    """Where the results of a fit are kept: in the place of its head, under a digest of all that they depend on.

    Args:
        request: all options of the fit, as JSON values.
    """
    files = [list(entry) for _, entry in sorted(features.entries.items())]
    fit = {"request": request, "plan": features.plan.sha256, "files": files, "versions": versions()}
    return PartialResults(store, fit)


def _encoded(name: str, value: Path | np.ndarray) -> bytes:
    from safetensors.numpy import save

    about: dict[str, Any] = {"name": name}
    if isinstance(value, Path):
        about["path"] = {
            "left_out": value.left_out,
            "c": value.c,
            "values": value.values,
            "gaps": value.gaps,
            "seconds": value.seconds,
            "log_losses": [counts.log_loss for counts in value.counts],
        }
        arrays = {"scores": np.stack(value.scores)}
        if value.counts:
            fields = _COUNTED[type(value.counts[0])]
            arrays |= {f: np.stack([getattr(counts, f) for counts in value.counts]) for f in fields}
        if value.left_out < 0:  # of a cross-validation nobody asks for the weights
            arrays |= {"weights": value.weights[-1], "intercepts": value.intercepts[-1]}
    else:
        arrays = {"value": value}
    text = json.dumps(about).encode()
    contiguous = {one: np.ascontiguousarray(array) for one, array in arrays.items()}
    data: bytes = save({"about": np.frombuffer(text, np.uint8), **contiguous})
    return hashlib.sha256(data).digest() + data


_COUNTED = {
    Counts: ("right_K", "images_K", "predicted_K"),
    LabelCounts: ("with_LB", "without_LB", "images"),
}
"""What each counts besides the log loss, in the order of its fields."""


def _decoded(data: bytes) -> tuple[str, Any]:
    from safetensors.numpy import load

    digest, data = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise ValueError("its digest differs")
    arrays = load(data)
    about = json.loads(arrays["about"].tobytes())
    if "path" not in about:
        return about["name"], arrays["value"]
    log_losses = about["path"].pop("log_losses")
    path = Path(**about["path"], scores=list(arrays["scores"]))
    if path.left_out < 0:
        path.weights, path.intercepts = [arrays["weights"]], [arrays["intercepts"]]
    for kind, fields in _COUNTED.items():
        if log_losses and set(fields) <= arrays.keys():
            path.counts = [kind(*one) for one in zip(*(arrays[f] for f in fields), log_losses, strict=True)]
    return about["name"], path
