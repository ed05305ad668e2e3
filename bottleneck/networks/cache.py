"""The user's cache of prepared networks and of the results of probes.

Below `BOTTLENECK_CACHE`, else `XDG_CACHE_HOME/bottleneck`, else `~/.cache/bottleneck`. Everything in it can be deleted
at any time. Files are written under a temporary name and renamed, so a reader sees a whole one or none; one that was
damaged later does not have the sha256 that stands beside it, and is made again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from typing import Any

from bottleneck.networks.prepared import PreparedNetwork

MAX_BYTES = 4_000_000_000
"""Of all graphs; those that were used least recently go first. VGG16 has 59 MB, with its top 553 MB."""
STALE_SECONDS = 3600.0
"""Age from which a temporary file is considered left by a killed process."""
TEMPORARY = ".tmp-"


def cache_folder() -> str:
    """Where the cache is, whether it exists or not."""
    if folder := os.environ.get("BOTTLENECK_CACHE"):
        return os.path.abspath(os.path.expanduser(folder))
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "bottleneck")


def load_network(key: str, folder: str | None = None) -> PreparedNetwork | None:
    """A prepared network; None if there is none, or if it is damaged."""
    folder = folder or cache_folder()
    record = _path(folder, key)
    try:
        with open(record, "rb") as file:
            value = json.load(file)
        graph = None
        if sha256 := value.pop("graph_sha256"):
            with open(_graph_path(folder, key, sha256), "rb") as file:
                graph = file.read()
            if hashlib.sha256(graph).hexdigest() != sha256:
                return None
        network = PreparedNetwork.from_json(value, graph)
        if network.key != key:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(record)  # what was used last is kept longest
    return network


def has_network(key: str) -> bool:
    """Whether a network is in the cache, by its name alone."""
    return os.path.exists(_path(cache_folder(), key))


def store_network(network: PreparedNetwork, folder: str | None = None) -> bool:
    """Keep a prepared network; False if the folder cannot be written."""
    folder = folder or cache_folder()
    graph = network.graph
    sha256 = hashlib.sha256(graph).hexdigest() if graph else ""
    try:
        if graph:
            _write(_graph_path(folder, network.key, sha256), graph)
        _write(_path(folder, network.key), json.dumps({**network.to_json(), "graph_sha256": sha256}).encode())
        _sweep(os.path.join(folder, "networks"))
    except OSError:
        return False
    return True


def load_probes() -> list[dict[str, Any]]:
    """Everything that was measured on this machine, for `doctor`."""
    folder = os.path.join(cache_folder(), "probes")
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if name.endswith(".json") and (one := load_probe(name.removesuffix(".json"))) is not None:
                found.append(one)
    return found


def load_probe(key: str) -> dict[str, Any] | None:
    """The result of a probe; None if there is none, or if it is damaged."""
    try:
        with open(os.path.join(cache_folder(), "probes", f"{key}.json"), "rb") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def store_probe(key: str, value: dict[str, Any]) -> None:
    """Keep the result of a probe, where the folder can be written."""
    with contextlib.suppress(OSError):
        _write(os.path.join(cache_folder(), "probes", f"{key}.json"), json.dumps(value, indent=1).encode())


def _path(folder: str, key: str) -> str:
    return os.path.join(folder, "networks", f"{key}.json")


def _graph_path(folder: str, key: str, sha256: str) -> str:
    # Of two processes that prepare a network at once, neither replaces the graph of the other's record.
    return os.path.join(folder, "networks", f"{key}-{sha256[:16]}.onnx")


def _write(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def _sweep(folder: str) -> None:
    """Remove the networks used least recently beyond MAX_BYTES, and temporary files of killed processes."""
    entries = {entry.name: entry.stat() for entry in os.scandir(folder)}
    for name, status in entries.items():
        if name.startswith(TEMPORARY) and time.time() - status.st_mtime > STALE_SECONDS:
            _remove(folder, name)
    keys = [name.removesuffix(".json") for name in entries if name.endswith(".json")]
    total = 0
    for number, key in enumerate(sorted(keys, key=lambda key: -entries[f"{key}.json"].st_mtime)):
        files = [name for name in entries if name.startswith(key)]
        total += sum(entries[name].st_size for name in files)
        if number and total > MAX_BYTES:
            for name in files:
                _remove(folder, name)


def _remove(folder: str, name: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(os.path.join(folder, name))
