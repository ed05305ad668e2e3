"""Try a source and an output: decode an image, create an object, refuse its second write."""

import contextlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator

from bottleneck.dataset.make_plan import check_output
from bottleneck.dataset.plan import load_plan
from bottleneck.doctor.checks import Finding
from bottleneck.extract.decode import Rejected, decode
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureSpec
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import NOT_ONCE, ObjectError, Store, check_output_uri, normal_uri, open_store
from bottleneck.text import counted

PROBE = "plan/d0c70000-00000000-00000000.parquet"
"""What is written. By its name it is a part of a plan that was never finished, the one kind of object that may lie in
an output without belonging to it; always the same, as a run's role has no right to delete it."""
CLOCK_SECONDS = 60.0
"""S3 rejects requests dated more than 15 minutes off its own time."""

_SPEC = FeatureSpec(
    base="vgg16",
    weights="",
    weights_sha256="",
    layers=("block5_pool:avg",),
    dims=(512,),
    image_size_px=224,
    resize="squash",
    interpolation="bilinear",
    exif="apply",
    decode="exact",
    precision="float32",
    dtype="float16",
)
"""The default spec, for decoding."""


def try_source(uri: str) -> Iterator[Finding]:
    """List a source, read an image and decode it."""
    name, skipped = normal_uri(uri), Counter[str]()
    reading = resolve_reading(uri, Reading())
    source = open_source(uri, reading)
    image = source.first(skipped)
    if image is None:
        others = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(skipped.items()))
        told = f"holds no images, only {others}" if skipped else "is empty or does not exist"
        yield Finding("source", "failure", f"{name} {told}. Expected a folder or prefix with images")
        return
    yield Finding("source", "ok", f"{name} can be listed ({reading.source_format})")
    [data] = source.read([image])
    if isinstance(data, ObjectError):
        told = f"{image.key!r} would be rejected as {data.reason}: is the source being written, or moved to an archive?"
        yield Finding("image", "warning", told)
        return
    decoded = decode(data, _SPEC, Limits())
    if isinstance(decoded, Rejected):
        told = f"{image.key!r} would be rejected as {decoded.reason}; one rejected image does not stop a run, many do"
        yield Finding("image", "warning", told)
    else:
        told = f"{image.key!r} was read and decoded: {decoded.width} x {decoded.height}, {len(data):,} bytes"
        yield Finding("image", "ok", told)


def try_output(uri: str) -> Iterator[Finding]:
    """List an output, check that nothing foreign is in it, and write."""
    check_output_uri(uri)
    check_output(uri)
    store, plan = open_store(uri), load_plan(uri)
    held = f"holds a plan of {counted(plan.num_images, 'image')}" if plan else "is free"
    yield Finding("output", "ok", f"{store.uri} can be listed and {held}")
    yield from try_writing(store)


def try_writing(store: Store) -> Iterator[Finding]:
    """Create an object, try to create it again, and read it."""
    there = _existing_folder(store)
    written = f"Written by `bottleneck doctor`; may be deleted. {uuid.uuid4()}\n".encode()
    try:
        created = store.create(PROBE, written)
        data = store.read(PROBE)
        creates_once = store.creates_once(PROBE, data)
        before = time.time()
        dates = {entry.key: when for entry, when in store.list_dated(PROBE)}
        then = dates[PROBE] if created else store.clock()
        ahead = then - (before + time.time()) / 2
    finally:
        _remove(store, there)
    stays = "" if isinstance(store, FolderStore) else f"; it stays, as {PROBE}, and is known to be harmless"
    if created and data != written:
        yield Finding("writing", "failure", "what was written is read back as something else: the store cannot be used")
        return
    told = "an object was created and read back" if created else "an object of an earlier check is there"
    yield Finding("writing", "ok", told + stays)
    if creates_once:
        yield Finding("create-only writes", "ok", "the second write of the same name was refused")
    else:
        yield Finding("create-only writes", "failure", NOT_ONCE)
    if abs(ahead) > CLOCK_SECONDS:
        told = f"the store's is {abs(ahead):,.0f} s {'ahead' if ahead > 0 else 'behind'}: set this machine's by NTP"
        yield Finding("clock", "warning", told)
    else:
        yield Finding("clock", "ok", f"the store's and this machine's are at most {abs(ahead) + 1:.0f} s apart")


def _existing_folder(store: Store) -> str:
    """The lowest existing folder above the probe; empty for a bucket."""
    if not isinstance(store, FolderStore):
        return ""
    folder = os.path.dirname(os.path.join(store.uri, PROBE))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder


def _remove(store: Store, there: str) -> None:
    """Restore a folder; in a bucket there may be no right to delete."""
    if isinstance(store, FolderStore):
        path = os.path.join(store.uri, PROBE)
        with contextlib.suppress(OSError):
            os.unlink(path)
        with contextlib.suppress(OSError):  # not empty: a run has begun to write there
            while (path := os.path.dirname(path)) != there:
                os.rmdir(path)
