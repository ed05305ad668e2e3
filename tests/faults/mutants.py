"""Broken images without end: each number gives, with a seed, one mutant of real images, the same on every machine.

PYTHONPATH=.:tests:tests/faults python -m mutants SEED NUMBER FILE     writes a mutant to look at
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from ctypes import c_int64
from pathlib import Path
from typing import Any, get_args

import tiny
from assets import find_asset

from bottleneck.dataset.schema import Reason
from bottleneck.extract.decode import Decoded, decode
from bottleneck.sources.reading import Limits

LIMITS = Limits(max_pixels=1_000_000, formats=("tiff", "jpeg2000", "heic"))
"""A mutant that says it is larger is not decoded: 200,000 of them are to be, in minutes."""
MEMORY_BYTES = 1_000_000_000
"""Of a process that decodes, beyond what its imports take: a decode that wants more is a defect."""
DECODE_SECONDS = 30.0
NUM_FLOWERS = 60
ODD_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF]
PNG = b"\x89PNG\r\n\x1a\n"

Mutation = Callable[[bytes, bytes, random.Random], bytes]


def corpus() -> list[bytes]:
    """Tiny pictures in every format, and where there are any, odd images of other projects and photos of flowers."""
    from test_decode import SMALL

    found = [*SMALL.values(), *(tiny.jpeg(n) for n in range(4))]
    for name, limit in (("oddimages", None), ("flowers17", NUM_FLOWERS)):
        if folder := find_asset(name):
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 400_000)
            found += [path.read_bytes() for path in files[:: max(1, len(files) // limit) if limit else 1]]
    return [data for data in found if len(data) > 16]


def mutant(files: list[bytes], seed: int, number: int) -> bytes:
    """The mutant of this number."""
    rng = random.Random(f"{seed} {number}")
    data, other = rng.choice(files), rng.choice(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(MUTATIONS)(data, other, rng)
    return _with_checksums(data) if data.startswith(PNG) and rng.random() < 0.7 else data


def _flip_bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another, or of itself."""
    end = rng.choice((data, other))
    return data[: rng.randrange(len(data) + 1)] + end[rng.randrange(len(end) + 1) :]


def _edit_header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A number that is the least, the largest or on an edge, where sizes, counts and offsets stand."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        number = struct.pack(rng.choice("<>") + "I", rng.choice(ODD_NUMBERS))
        number = number[: rng.choice((1, 2, 4))] if rng.random() < 0.5 else number[-rng.choice((1, 2, 4)) :]
        place = rng.randrange(min(len(changed), rng.choice((64, 512))) + 1)
        changed[place : place + len(number)] = number
    return bytes(changed)


def _repeat(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A piece once more, or a hundred times."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 8, 64, 1024))]
    return data[:start] + piece * rng.choice((2, 3, 100)) + data[start + len(piece) :]


def _repeat_chunk(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A whole chunk, segment or block, as its format counts them: once more, elsewhere, or left out."""
    pieces = _pieces(data)
    if len(pieces) < 2:
        return _repeat(data, other, rng)
    chosen = rng.randrange(len(pieces))
    if rng.random() < 0.3:
        del pieces[chosen]
    else:
        pieces.insert(rng.randrange(len(pieces) + 1), pieces[chosen])
    return b"".join(pieces)


def _overwrite(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A piece of zeros, ones, noise or of another file over what was there."""
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 32, 512))
    there = rng.randrange(len(other))
    new = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length), other[there : there + length]))
    return data[:start] + new + data[start + length :]


MUTATIONS: list[Mutation] = [
    _flip_bits,
    _truncate,
    _splice,
    _edit_header,
    _edit_header,
    _repeat,
    _repeat_chunk,
    _overwrite,
]


def _pieces(data: bytes) -> list[bytes]:
    """A file cut where its format's chunks begin, as far as they can be followed; one piece where they cannot."""
    if data.startswith(PNG):
        start, length_at, order, extra = 8, 0, ">I", 12
    elif data.startswith(b"RIFF"):
        start, length_at, order, extra = 12, 4, "<I", 8
    elif data.startswith(b"\xff\xd8"):
        start, length_at, order, extra = 2, 2, ">H", 2
    elif data[4:8] in (b"ftyp", b"jP  "):
        start, length_at, order, extra = 0, 0, ">I", 0
    else:
        return [data]
    cuts = [0]
    while start + length_at + 4 <= len(data) and len(cuts) < 1000:
        cuts.append(start)
        start += struct.unpack_from(order, data, start + length_at)[0] + extra
    return [data[begin:end] for begin, end in zip(cuts, [*cuts[1:], None], strict=True)]


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, without which most mutants end at the first damage."""
    fixed, position = bytearray(data), 8
    while position + 12 <= len(fixed):
        end = position + 8 + int.from_bytes(fixed[position : position + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(fixed)


def judge(data: bytes, spec: Any) -> str:
    """What becomes of a mutant: `ok` or its reason. Raises AssertionError for what may not become of any."""
    started = time.monotonic()
    result = decode(data, spec, LIMITS)
    seconds = time.monotonic() - started
    assert seconds < DECODE_SECONDS, f"took {seconds:.0f} s"
    if isinstance(result, Decoded):
        assert result.pixels_HWC.shape == (spec.image_size_px, spec.image_size_px, 3), result.pixels_HWC.shape
        assert str(result.pixels_HWC.dtype) == "uint8"
        assert 0 < result.width * result.height <= LIMITS.max_pixels
        return "ok"
    assert result.reason in get_args(Reason), result
    return str(result.reason)


def decode_mutants(seed: int, first: int, end: int, at: c_int64, pipe: Any) -> None:
    """Decode mutants in a process of its own, which one of them may end: `at` says which.

    Sends the counts of outcomes, and (number, words) for each that ended in no outcome.
    """
    files, spec = corpus(), tiny.spec(image_size_px=32)
    judge(files[0], spec)  # what loads at the first decode is not the first mutant's
    with open("/proc/self/statm") as file:
        here = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY_BYTES, here + MEMORY_BYTES))
    outcomes, failures = Counter[str](), []
    slowest = 0.0
    for number in range(first, end):
        at.value = number
        started = time.monotonic()
        try:
            outcomes[judge(mutant(files, seed, number), spec)] += 1
        except BaseException as error:
            failures.append((number, f"{type(error).__name__}: {error}"))
        slowest = max(slowest, time.monotonic() - started)
    pipe.send((outcomes, failures, slowest))


if __name__ == "__main__":
    Path(sys.argv[3]).write_bytes(mutant(corpus(), int(sys.argv[1]), int(sys.argv[2])))
