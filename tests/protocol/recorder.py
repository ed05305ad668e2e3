"""Real jobs on a real folder, with every call of its store written down in the words of the model.

Objects are what the model keeps of them: the keys and revision of a data file, the shards of a document, the plan that
`_SUCCESS.json` speaks of. Reads of the plan's parts are left out, as of other caches: they never change.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
from model import SUCCESS, DataFile, Document, Success, data_name, document_name
from model_store import CHANGED

from bottleneck.spec import sha256_json
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Entry, ObjectChangedError, ObjectGoneError, Wanted


@dataclass(frozen=True)
class Event:
    """One call and its answer."""

    run: str
    verb: str
    name: str
    value: Any = None
    etag: Any = None
    answer: Any = None


@dataclass
class Recorder:
    """The calls on one output, in order, and what the ETags that were seen stand for."""

    output: str
    _run: str = ""
    events: list[Event] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda verb, name: None
    """Called before each call: here another job may run."""
    seen: dict[tuple[str, str], Any] = field(default_factory=dict)
    documents: dict[int, tuple[Document, str, str]] = field(default_factory=dict)
    """By number, with the fingerprint and the digest of the part."""
    _runs: weakref.WeakKeyDictionary[threading.Thread, str] = field(default_factory=weakref.WeakKeyDictionary)

    @property
    def run(self) -> str:
        """The run that this thread works for; a new thread works for the one that was begun last."""
        thread = threading.current_thread()
        if thread not in self._runs:
            self._runs[thread] = self._run
        return self._runs[thread]

    @contextlib.contextmanager
    def recording(self, run: str) -> Iterator[None]:
        """Count what this thread does, and those that it starts, for a run."""
        thread = threading.current_thread()
        before = self._run, self.run
        self._run = self._runs[thread] = run
        try:
            yield
        finally:
            self._run, self._runs[thread] = before

    def of(self, run: str) -> list[Event]:
        return [event for event in self.events if event.run == run]

    def name(self, key: str) -> str:
        """The model's name of an object."""
        if match := re.fullmatch(r"plan/extension-(\d+)\.json", key):
            return document_name(int(match[1]))
        if match := re.fullmatch(r"data/s(\d+)-.*", key):
            return data_name(int(match[1]))
        if key.endswith(".parquet"):
            return self.value(key, Path(self.output, key).read_bytes())
        return key

    def value(self, key: str, data: bytes) -> Any:
        """What the model keeps of an object."""
        if key == SUCCESS:
            return Success(self._plan_of(json.loads(data)["plan_sha256"]))
        if key.endswith(".json"):
            return self._document(key, json.loads(data))
        table = pq.read_table(io.BytesIO(data))
        keys = table.column("key").to_pylist()
        if key.startswith("plan/"):
            return f"plan/part-{table.column('shard')[0].as_py()}-{'-'.join(keys)}"
        footer = json.loads(pq.read_metadata(io.BytesIO(data)).metadata[b"bottleneck"])
        return DataFile(tuple(keys), footer["revision"], footer["run_id"])

    def _document(self, key: str, document: dict[str, Any]) -> Document:
        [part] = document["parts"]
        table = pq.read_table(Path(self.output, part["name"]))
        rows = zip(table.column("shard").to_pylist(), table.column("key").to_pylist(), strict=True)
        shards = tuple((shard, (image,)) for shard, image in rows)
        found = Document(shards, self.name(part["name"]), "revised" in document)
        self.documents[document.get("extension", 0)] = found, document["fingerprint"], part["sha256"]
        return found

    def _plan_of(self, sha256: str) -> tuple[Document, ...]:
        documents = [self.documents[number] for number in sorted(self.documents)]
        for end in range(1, len(documents) + 1):
            digests = {"fingerprint": documents[0][1], "parts": [part for _, _, part in documents[:end]]}
            if sha256_json(digests) == sha256:
                return tuple(document for document, _, _ in documents[:end])
        raise AssertionError("_SUCCESS.json speaks of no plan that was seen")


class RecordedFolder(FolderStore):
    """A folder that tells a recorder what is asked of it, if that is its output."""

    recorder: ClassVar[Recorder | None] = None
    _inside = threading.local()

    def _call(self, verb: str, key: str, ask: Callable[[], Any], **words: Any) -> Any:
        recorder = self.recorder
        if recorder is None or recorder.output != self.uri or getattr(self._inside, "call", False):
            return ask()
        run = recorder.run  # before another job may take this thread
        recorder.before(verb, key)
        self._inside.call = True
        try:
            answer = ask()
        except (ObjectGoneError, ObjectChangedError) as error:
            answer = error
        finally:
            self._inside.call = False
        self._tell(recorder, run, verb, key, answer, **words)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _tell(
        self, recorder: Recorder, run: str, verb: str, key: str, answer: Any, data: bytes | None = None, etag: str = ""
    ) -> None:
        if verb in ("list", "sweep"):
            entries = answer or []
            files = tuple((recorder.name(entry.key), self._value(recorder, entry)) for entry in entries if key)
            recorder.events.append(Event(run, verb, key, answer=files))
            return
        if key.startswith("plan/") and key.endswith(".parquet") and verb == "read":
            return
        value = None if data is None else recorder.value(key, data)
        name = value if isinstance(value, str) else recorder.name(key)
        meant = recorder.seen[key, etag] if etag else None
        match answer:
            case ObjectGoneError():
                told: Any = None
            case ObjectChangedError():
                told = CHANGED
            case Entry():
                told = self._value(recorder, answer)
            case bytes():
                whole = answer if verb == "read" else Path(self.uri, key).read_bytes()
                told = recorder.value(key, whole)
            case _:
                told = answer
        recorder.events.append(Event(run, verb, name, value, meant, told))

    def _value(self, recorder: Recorder, entry: Entry) -> Any:
        value = recorder.value(entry.key, Path(self.uri, entry.key).read_bytes())
        recorder.seen[entry.key, entry.etag] = value
        return value

    def list(self, prefix: str = "") -> Iterator[Entry]:
        listed: list[Entry] = self._call("list", prefix, lambda: [*FolderStore.list(self, prefix)])
        return iter(listed)

    def read(self, key: str) -> bytes:
        data: bytes = self._call("read", key, lambda: super(RecordedFolder, self).read(key))
        return data

    def get(self, wanted: Wanted) -> bytes:
        data: bytes = self._call("get", wanted.key, lambda: super(RecordedFolder, self).get(wanted), etag=wanted.etag)
        return data

    def stat(self, key: str) -> Entry | None:
        found: Entry | None = self._call("stat", key, lambda: super(RecordedFolder, self).stat(key))
        return found

    def exists(self, key: str) -> bool:
        return bool(self._call("exists", key, lambda: super(RecordedFolder, self).exists(key)))

    def create(self, key: str, data: bytes) -> bool:
        return bool(self._call("create", key, lambda: super(RecordedFolder, self).create(key, data), data=data))

    def creates_once(self, key: str, data: bytes) -> bool:
        return bool(self._call("creates_once", key, lambda: super(RecordedFolder, self).creates_once(key, data)))

    def replace(self, key: str, data: bytes, etag: str = "") -> bool:
        ask = lambda: super(RecordedFolder, self).replace(key, data, etag)  # noqa: E731
        return bool(self._call("replace", key, ask, data=data, etag=etag))

    def sweep(self) -> None:
        self._call("sweep", "", lambda: super(RecordedFolder, self).sweep())
