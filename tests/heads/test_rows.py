"""The rows of a worker: as they are stored, block by block, in several threads."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from bottleneck.heads.solver import objective, rows
from bottleneck.heads.solver.losses import Problems
from bottleneck.heads.solver.objective import LocalObjective
from bottleneck.heads.solver.rows import Rows, as_dtype
from bottleneck.heads.splits import HELD_OUT

NUM_ROWS, DIM, NUM_CLASSES = 40_000, 64, 10


def problems(c: float = 2.0) -> Problems:
    return Problems("softmax", np.array([c]), np.array([-1]), np.zeros(1, int), np.ones((1, NUM_CLASSES)))


def made_up(dtype: type = np.float16) -> Rows:
    rng = np.random.default_rng(0)
    features_ND = rng.standard_normal((NUM_ROWS, DIM), dtype=np.float32).astype(dtype)
    return Rows(features_ND, np.arange(NUM_ROWS) % NUM_CLASSES, np.zeros(NUM_ROWS, int))


def weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((DIM, 1, NUM_CLASSES)) / 4, rng.standard_normal((1, NUM_CLASSES))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_finite_float16_is_converted_exactly(dtype: type) -> None:
    every_N = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite_N = every_N[np.isfinite(every_N)]
    found_N = as_dtype(finite_N, dtype)
    assert found_N.dtype == dtype
    np.testing.assert_array_equal(found_N, finite_N.astype(dtype))
    np.testing.assert_array_equal(np.signbit(found_N), np.signbit(finite_N))
    np.testing.assert_array_equal(as_dtype(finite_N.reshape(-1, 16)[:, ::3], dtype), finite_N.reshape(-1, 16)[:, ::3])


@pytest.mark.parametrize("product_dtype", [np.float32, np.float64])
def test_sums_are_the_same_in_any_number_of_threads(product_dtype: type) -> None:
    W, b = weights()
    found = []
    for num_threads in (1, 3):
        with threadpool_limits(num_threads):
            sums = LocalObjective(made_up(), product_dtype)
            pairs = sums.fix(W, b, problems())
            assert pairs is not None
            found.append([*sums.evaluate(W, b, problems()), pairs, *sums.product(W, b, np.arange(1))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * np.abs(one).max())


def test_rows_that_are_held_out_are_never_read() -> None:
    W, b = weights()
    some = made_up(np.float32)
    folds_N = some.folds_N.copy()
    folds_N[::4] = HELD_OUT
    some.features_ND[::4] = np.nan
    seen_N = folds_N != HELD_OUT
    alone = LocalObjective(Rows(some.features_ND[seen_N], some.class_indices_N[seen_N], folds_N[seen_N]))
    among = LocalObjective(Rows(some.features_ND, some.class_indices_N, folds_N))
    for one, other in zip(alone.evaluate(W, b, problems()), among.evaluate(W, b, problems()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-9)
    in_float32 = LocalObjective(Rows(some.features_ND.astype(np.float64), some.class_indices_N, folds_N), np.float32)
    for sums in (alone, in_float32):
        sums.fix(W, b, problems())
    products = [sums.product(W, b, np.arange(1))[0] for sums in (alone, in_float32)]
    np.testing.assert_allclose(*products, rtol=1e-3, atol=1e-5 * np.abs(products[0]).max())


def test_a_pass_takes_no_more_memory_for_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_VALUES", 32_000)
    monkeypatch.setattr(objective, "KEPT_BYTES", 0)
    W, b = weights()
    some = made_up()
    sums = LocalObjective(some, np.float32)
    peaks = []
    with threadpool_limits(1):
        for work in (
            lambda: sums.evaluate(W, b, problems()),
            lambda: sums.fix(W, b, problems()),
            lambda: sums.product(W, b, np.arange(1)),
        ):
            tracemalloc.start()
            work()
            kept, peak = tracemalloc.get_traced_memory()
            peaks.append(peak - kept)
            tracemalloc.stop()
    assert max(peaks) < some.features_ND.nbytes / 8, peaks  # a float32 copy of all rows would take 16 times this


def test_curvatures_are_kept_where_they_take_half_of_float32_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "KEPT_BYTES", 0)
    W, b = weights()
    kept = LocalObjective(made_up(), np.float32)
    kept.fix(W, b, problems())
    assert sum(len(part) for part in kept._curvatures.values()) == NUM_ROWS
    again = LocalObjective(made_up(), np.float64)  # twice as many bytes
    again.fix(np.tile(W, (1, 2, 1)), np.tile(b, (2, 1)), two := problems_twice())
    assert not again._curvatures
    np.testing.assert_allclose(
        again.product(np.tile(W, (1, 2, 1)), np.tile(b, (2, 1)), np.arange(2))[0][:, 1],
        kept.product(W, b, np.arange(1))[0][:, 0],
        rtol=1e-3,
        atol=1e-3 * NUM_ROWS,
    )
    assert len(two.c_P) == 2


def problems_twice() -> Problems:
    return problems().at(np.zeros(2, int))
