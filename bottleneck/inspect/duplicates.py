"""Find the near-duplicates of a dataset: the exact cosine of every pair of images, in bounded memory.

A strip of the images is held, and compared with itself and with every data file behind it, so that each pair is met
once. Float32 products choose candidates only, with all that they can be wrong by; the cosine of a candidate is computed
again in float64 from the stored values, and decides. So the result does not depend on how images are cut into blocks.

The work is N^2 D operations: a million images of 512 dimensions take 5.1e14, 50 minutes at 175 GFLOP/s (computed).

Legend: N images, S rows of a strip, C rows of a chunk of it, B rows of a block of a data file, D features, P pairs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bottleneck.cores import count_cores
from bottleneck.dataset.features import Features, rows_of, vectors
from bottleneck.errors import CorruptError, UsageError
from bottleneck.inspect.similar import BUCKET_THREADS, FILES_AHEAD

STRIP_VALUES = 1 << 25
"""Held at once: 128 MB of float32 and the stored values, of a million images of 512 dimensions a sixteenth. Each strip
reads what is behind it once more, a hundredth of the time of the products."""
CHUNK_ROWS, BLOCK_ROWS = 4096, 512
"""Of one product, 8 MB in every thread: large enough for the full speed of BLAS."""
WIDE_VALUES = 1 << 18
"""Converted to float64 at once."""
MAX_PAIRS = 10_000_000
"""Held until their groups are known, 24 bytes each."""
DECIMALS = 9
"""Of a cosine: all that float16 can tell apart, and 1 for equal images."""


@dataclass(frozen=True)
class Pairs:
    """Near-duplicates in the order of the plan: images as their numbers, counting the ok ones from 0."""

    first_P: np.ndarray
    """int64, sorted."""
    second_P: np.ndarray
    """int64, above the first."""
    cosines_P: np.ndarray
    """float64, to DECIMALS digits."""
    starts: list[int]
    """The number of each data file's first image, and of all images."""
    num_zeros: int
    """Images whose features are all zeros: they have no direction, so they are in no pair."""

    @property
    def num_images(self) -> int:
        return self.starts[-1]


class _Rows(NamedTuple):
    """Consecutive images."""

    first: int
    """The number of the first."""
    values_ND: np.ndarray
    """As stored."""
    units_ND: np.ndarray
    """float32, of length 1; zeros stay zeros."""
    lengths_N: np.ndarray
    """float64."""

    def part(self, start: int, end: int) -> "_Rows":
        return _Rows(self.first + start, self.values_ND[start:end], self.units_ND[start:end], self.lengths_N[start:end])


_Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""first_P, second_P, cosines_P."""
_NONE: _Found = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def check_min_cosine(min_cosine: float) -> None:
    """Raise UsageError for what is no cosine that pairs can reach."""
    if not -1 < min_cosine <= 1:
        raise UsageError(f"`min_cosine` takes a number above -1, and 1 at most. Received: {min_cosine}.")


def near_duplicates(
    features: Features,
    min_cosine: float,
    layer: str | None = None,
    on_images: Callable[[int], None] = lambda images: None,
) -> Pairs:
    """Find all pairs of ok images whose features have at least a cosine.

    Memory holds a strip (0.2 to 0.3 GB), a data file for each thread, and the pairs found.

    Args:
        min_cosine: above -1, and 1 at most; compared with cosines that are rounded to DECIMALS digits.
        layer: as in the spec; may be left out where there is only one.
        on_images: told how far the work is, as a number of images.

    Raises:
        UsageError: for a cosine or layer that cannot be, or more than MAX_PAIRS pairs.
        CorruptError: if a data file is damaged, or has other rows than it should, or values that are not finite.
    """
    from threadpoolctl import threadpool_limits

    check_min_cosine(min_cosine)
    dataset = _Dataset(features, features.column(layer))
    in_bucket = features.plan.output.startswith("s3://")
    num_threads = max(count_cores(), BUCKET_THREADS if in_bucket else 1)
    # The threads read and look through products, too, so that each has a core and BLAS is not to share its own out.
    with threadpool_limits(1), ThreadPoolExecutor(num_threads) as pool:
        try:
            return _found_in(dataset, pool, min_cosine, on_images)
        except BaseException:  # hundreds of files may be waiting for a thread, seconds each
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _found_in(
    dataset: "_Dataset", pool: ThreadPoolExecutor, min_cosine: float, on_images: Callable[[int], None]
) -> Pairs:
    found: list[_Found] = [_NONE]
    num_zeros = num_pairs = num_compared = 0
    for files in dataset.strips():
        strip = dataset.joined(pool, files)
        num_zeros += int((strip.lengths_N == 0).sum())
        of_strip: list[_Found] = [_NONE]

        def compare(number: int, strip: _Rows = strip, files: range = files) -> _Found:
            start, end = dataset.starts[number] - strip.first, dataset.starts[number + 1] - strip.first
            rows = strip.part(start, end) if number in files else dataset.read(number)
            return _compared(strip, rows, min_cosine)

        for start in range(files.start, dataset.num_files, FILES_AHEAD):
            numbers = range(start, min(start + FILES_AHEAD, dataset.num_files))
            for number, pairs in zip(numbers, pool.map(compare, numbers), strict=True):
                of_strip.append(pairs)
                num_pairs += len(pairs[0])
                _check_number(num_pairs, min_cosine)
                num_compared += dataset.pairs_with(strip, number)
                on_images(dataset.share(num_compared))
        first_P, second_P, cosines_P = _concatenated(of_strip)
        order_P = np.lexsort((second_P, first_P))  # whatever the strips, all pairs are then in order
        found.append((first_P[order_P], second_P[order_P], cosines_P[order_P]))
    return Pairs(*_concatenated(found), dataset.starts, num_zeros)


class _Dataset:
    """The images of a layer by number, read file by file."""

    def __init__(self, features: Features, column: str) -> None:
        self.features, self.column, self.num_files = features, column, len(features.files)
        self.dim = features.spec.dim_of(column)
        rows = rows_of(features)
        self.starts: list[int] = np.cumsum([0, *(rows[name] for name in features.files)]).tolist()
        self.num_images: int = self.starts[-1]

    def strips(self) -> Iterator[range]:
        """Yield consecutive files of STRIP_VALUES together, or one that alone has more."""
        start, most = 0, max(1, STRIP_VALUES // self.dim)
        while start < self.num_files:
            end = start + 1
            while end < self.num_files and self.starts[end + 1] - self.starts[start] <= most:
                end += 1
            yield range(start, end)
            start = end

    def read(self, number: int) -> _Rows:
        """Read one data file."""
        name = self.features.files[number]
        values_ND = vectors(self.features.table(name, [self.column]).column(self.column))
        expected = self.starts[number + 1] - self.starts[number]
        if len(values_ND) != expected:
            raise CorruptError(
                f"{name} of {self.features.plan.output} has features of {len(values_ND):,} images, expected "
                f"{expected:,}. Look with `bottleneck verify --full`."
            )
        units_ND, lengths_N = np.empty(values_ND.shape, np.float32), np.empty(len(values_ND))
        step = max(1, WIDE_VALUES // self.dim)
        for start in range(0, len(values_ND), step):
            # The square of the largest float32 is finite in float64.
            wide_BD = values_ND[start : start + step].astype(np.float64)
            lengths_B = np.sqrt(np.vecdot(wide_BD, wide_BD))
            if not np.isfinite(lengths_B).all():
                raise CorruptError(
                    f"{name} of {self.features.plan.output} has NaN or infinite features. Look with `bottleneck verify "
                    "--full`; delete it to have it extracted again."
                )
            lengths_N[start : start + step] = lengths_B
            units_ND[start : start + step] = wide_BD / np.where(lengths_B > 0, lengths_B, np.inf)[:, None]
        return _Rows(self.starts[number], values_ND, units_ND, lengths_N)

    def joined(self, pool: ThreadPoolExecutor, files: range) -> _Rows:
        """Read consecutive files as one."""
        if len(files) == 1:
            return self.read(files.start)
        num_rows = self.starts[files.stop] - self.starts[files.start]
        values_SD = np.empty((num_rows, self.dim), self.features.spec.dtype)
        units_SD, lengths_S = np.empty((num_rows, self.dim), np.float32), np.empty(num_rows)
        whole = _Rows(self.starts[files.start], values_SD, units_SD, lengths_S)

        def place(number: int) -> None:
            rows = self.read(number)
            start = rows.first - whole.first
            for there, own in zip(whole.part(start, start + len(rows.lengths_N))[1:], rows[1:], strict=True):
                there[:] = own

        for _ in pool.map(place, files):
            pass
        return whole

    def pairs_with(self, strip: _Rows, number: int) -> int:
        """How many pairs a strip has with a file of it or behind it, whose second image is in that file."""
        size: int = self.starts[number + 1] - self.starts[number]
        before = self.starts[number] - strip.first
        if before >= len(strip.lengths_N):
            return size * len(strip.lengths_N)
        return size * before + size * (size - 1) // 2

    def share(self, num_pairs: int) -> int:
        """A number of pairs as a share of the images."""
        return self.num_images * num_pairs // max(1, self.num_images * (self.num_images - 1) // 2)


def _compared(strip: _Rows, rows: _Rows, min_cosine: float) -> _Found:
    """Find the pairs of an image of a strip with a later one of some rows."""
    # What a float32 product of D values can be wrong by, in whatever order they are added, when the values themselves,
    # the bound and the last decimal are rounded (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    error = (strip.units_ND.shape[1] + 16) * np.finfo(np.float32).eps / 2
    least = np.float32(min_cosine - error / (1 - error))
    products = np.empty(CHUNK_ROWS * BLOCK_ROWS, np.float32)  # one memory for all, whose pages are there from then on
    found: list[_Found] = [_NONE]
    num_found = 0
    for start in range(0, len(rows.lengths_N), BLOCK_ROWS):
        block = rows.part(start, start + BLOCK_ROWS)
        last = block.first + len(block.lengths_N) - 1
        for chunk_start in range(0, min(len(strip.lengths_N), last - strip.first), CHUNK_ROWS):
            chunk = strip.part(chunk_start, chunk_start + CHUNK_ROWS)
            shape = len(chunk.lengths_N), len(block.lengths_N)
            product_CB = products[: shape[0] * shape[1]].reshape(shape)
            np.matmul(chunk.units_ND, block.units_ND.T, out=product_CB)
            first_P, second_P = np.divmod(np.flatnonzero(product_CB >= least), shape[1])
            is_pair = chunk.first + first_P < block.first + second_P
            is_pair &= (chunk.lengths_N[first_P] > 0) & (block.lengths_N[second_P] > 0)
            for settled in _settled(chunk, block, first_P[is_pair], second_P[is_pair], min_cosine):
                found.append(settled)
                num_found += len(settled[0])
                _check_number(num_found, min_cosine)
    return _concatenated(found)


def _settled(
    chunk: _Rows, block: _Rows, first_P: np.ndarray, second_P: np.ndarray, min_cosine: float
) -> Iterator[_Found]:
    """Compute cosines in float64 from the stored values, and yield the pairs that have enough."""
    step = max(1, WIDE_VALUES // chunk.values_ND.shape[1])
    for start in range(0, len(first_P), step):
        of_first, of_second = first_P[start : start + step], second_P[start : start + step]
        dots_P = np.vecdot(chunk.values_ND[of_first].astype(np.float64), block.values_ND[of_second].astype(np.float64))
        lengths_P = chunk.lengths_N[of_first] * block.lengths_N[of_second]
        cosines_P = np.round(np.clip(dots_P / lengths_P, -1, 1), DECIMALS)
        enough = cosines_P >= min_cosine
        yield chunk.first + of_first[enough], block.first + of_second[enough], cosines_P[enough]


def _concatenated(found: list[_Found]) -> _Found:
    first_P, second_P, cosines_P = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return first_P, second_P, cosines_P


def _check_number(num_pairs: int, min_cosine: float) -> None:
    if num_pairs > MAX_PAIRS:
        raise UsageError(
            f"More than {MAX_PAIRS:,} pairs of images have a cosine of {min_cosine} or more. Raise `min_cosine`. If it "
            "is one image a thousand times over, leave its copies out of the source: they have the same sha256."
        )
