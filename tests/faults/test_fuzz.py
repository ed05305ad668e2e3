"""Images that were made to be wrong, by the hundred thousand: each is decoded or rejected, and takes nothing along."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import mutants
import pytest

BATCH = 10_000
"""Decoded by one process, which takes a second or two to start."""
BATCH_SECONDS = 600.0
"""Ten times what a batch takes on a slow machine; one mutant that hangs is noticed so."""
MAX_FAILURES = 20


def fuzz(seed: int, num_decodes: int, folder: Path) -> Counter[str]:
    """Decode mutants 0 to `num_decodes`; returns how many had which outcome.

    A mutant that ends its process is known by its number, kept as a file, and passed over.
    """
    context = multiprocessing.get_context("spawn")
    at = context.Value("q", 0, lock=False)
    totals, failures, slowest, first = Counter[str](), [], 0.0, 0
    started = time.monotonic()
    while first < num_decodes and len(failures) < MAX_FAILURES:
        end = min(first + BATCH, num_decodes)
        pipe, far_end = context.Pipe(duplex=False)
        child = context.Process(target=mutants.decode_mutants, args=(seed, first, end, at, far_end))
        at.value = first
        child.start()
        far_end.close()
        try:
            if not pipe.poll(BATCH_SECONDS):
                raise TimeoutError
            outcomes, failed, longest = pipe.recv()
            totals += outcomes
            failures += failed
            slowest = max(slowest, longest)
            first = end
        except (EOFError, TimeoutError) as error:
            died = f"the process ended by signal {-(child.exitcode or 0)}" if isinstance(error, EOFError) else "hangs"
            child.join(10)
            failures.append((at.value, died.replace("signal 0", f"{child.exitcode}")))
            # The counts of those before it in its batch went with their process.
            first = at.value + 1
        finally:
            child.kill()
            child.join()
            pipe.close()
        rate = first / (time.monotonic() - started)
        print(f"{first:,} of {num_decodes:,}, {rate:.0f}/s: {dict(totals)}", file=sys.stderr, flush=True)
    files = mutants.corpus() if failures else []
    for number, words in failures:
        path = folder / f"mutant-{seed}-{number}"
        path.write_bytes(mutants.mutant(files, seed, number))
        print(f"{path}: {words}", file=sys.stderr)
    assert not failures, f"{len(failures)} mutants of seed {seed} ended in no outcome, kept in {folder}: {failures}"
    print(f"slowest {slowest:.2f} s", file=sys.stderr)
    return totals


def asked(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def test_a_thousand_mutants_of_images_have_an_outcome_each(tmp_path: Path) -> None:
    totals = fuzz(seed=0, num_decodes=1000, folder=tmp_path)
    assert totals.total() == 1000
    assert totals["ok"] > 50
    assert totals["truncated"] > 200


@pytest.mark.faults
@pytest.mark.timeout(6 * 3600)
def test_mutants_of_images_have_an_outcome_each(tmp_path: Path) -> None:
    seed = asked("BOTTLENECK_TEST_SEED", random.SystemRandom().getrandbits(32))
    num_decodes = asked("BOTTLENECK_TEST_DECODES", 200_000)
    print(f"BOTTLENECK_TEST_SEED={seed} repeats this test", file=sys.stderr)
    totals = fuzz(seed, num_decodes, tmp_path)
    assert totals.total() == num_decodes
    assert {"ok", "truncated", "not_an_image", "unsupported_format", "too_many_pixels"} <= totals.keys()
