"""`--what head-growth`: `bottleneck fit` on growing numbers of synthetic features, and scikit-learn beside it.

The command fits with one worker, and with --num-workers. On a hundred thousand rows, or the most there are below, its
solver alone runs beside scikit-learn's, as near to the optimum, on the same images: what both minimise at the end says
whether they found the same.
"""

import os
import tempfile
import time
from types import SimpleNamespace

import numpy as np

from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.protocol import LocalWorkers
from bottleneck.heads.solver.worker import Worker
from jobs.benchmark import Config
from jobs.benchmark.head import measure_fit
from jobs.benchmark.made_up import LAYER, write_features
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, tell, watched
from jobs.benchmark.sklearn_side import THREADS, TOLERANCE, load, measure_converged, objective
from jobs.results import answer

NUM_IMAGES = 1_000_000
STEPS = (10_000, 100_000)
"""Sizes below --num-images that are measured, too."""
BESIDE_SKLEARN = 100_000
"""Most rows for scikit-learn, which takes minutes for these."""
REQUEST = HeadRequest(c=(1.0,))


def main(config: Config) -> int:
    hardware = describe_hardware()
    num_images = config.num_images or NUM_IMAGES
    sizes = [*(size for size in STEPS if size < num_images), num_images]
    num_workers = sorted({1, config.num_workers})
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        places = {size: os.path.join(folder, str(size)) for size in sizes}
        for size, place in places.items():
            apart(write_features, place, size, config.dim, config.classes)
        beside = places[max((size for size in sizes if size <= BESIDE_SKLEARN), default=num_images)]
        for _ in range(config.rounds):
            fits = {
                f"{size}/{workers}": watched(
                    f"{size:,} images, workers: {workers}", measure_fit, place, LAYER, workers, REQUEST.c
                )
                for size, place in places.items()
                for workers in num_workers
            }
            solver = watched("the solver alone", apart, measure_solver, beside, LAYER)
            converged = watched(
                "scikit-learn until it has converged", measure_sklearn, beside, LAYER, config.limit_seconds
            )
            rounds.append({**fits, "solver": solver, "scikit_learn": converged})
    result = {
        "what": config.what,
        "images": num_images,
        "dim": config.dim,
        "classes": config.classes,
        "limit_seconds": config.limit_seconds,
        **summarize(rounds, config.dim),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def measure_solver(source: str, layer: str) -> Figures:
    """From arrays in memory to the optimum, with as many threads as scikit-learn."""
    from threadpoolctl import threadpool_limits

    data = load(source, layer, REQUEST)
    num_images, dim = data.features_ND.shape
    with threadpool_limits(THREADS):
        started = time.perf_counter()
        worker = Worker()
        worker.hold(data.features_ND)
        workers = LocalWorkers(worker)
        fit_data = FitData(workers, [num_images], data.class_indices_N, data.folds_N, data.num_classes, REQUEST, 1)
        arrays, grid = Coordinator(fit_data).fit(dim)
        seconds = time.perf_counter() - started
    found = SimpleNamespace(
        C=REQUEST.c[0],
        coef_=arrays["coef"],
        intercept_=arrays["intercept"],
        classes_=np.arange(data.num_classes),
    )
    return {"images": num_images, "seconds": seconds, "gap": grid.gap, "objective": objective(found, data, -1)}


def measure_sklearn(source: str, layer: str, limit_seconds: float) -> Figures:
    [row] = measure_converged(source, layer, limit_seconds, REQUEST)["rows"]
    return {"seconds": row["seconds"], "objective": row.get("objective")}


def summarize(rounds: list[Figures], dim: int) -> Figures:
    """The median of every figure over the rounds, and what growth costs."""
    figures = medians(rounds)
    solver, converged = figures.pop("solver"), figures.pop("scikit_learn")
    fits = [
        {
            **fit,
            "peak_to_float32_features": fit["peak_pss_bytes"] / (4 * dim * fit["images"]),
            "fit_microseconds_per_image": 1e6 * fit["fit_seconds"] / fit["images"],
        }
        for fit in figures.values()
    ]
    few, many = fits[0], max(fits, key=lambda fit: int(fit["images"]))
    more = many["images"] - few["images"]
    done = converged["seconds"] is not None
    return {
        "fits": fits,
        "bytes_per_further_image": (many["peak_pss_bytes"] - few["peak_pss_bytes"]) / more if more else None,
        "solver": solver,
        "scikit_learn": {
            **converged,
            "gap": converged["objective"] / solver["objective"] - 1 if done else None,
            "to_solver": converged["seconds"] / solver["seconds"] if done else None,
        },
    }


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    hardware, solver, converged = result["hardware"], result["solver"], result["scikit_learn"]
    columns = ("images", "workers", "command, s", "fit, s", "us/image", "memory, MB", "to float32", "worker, MB")
    lines = [
        f"made-up features of {result['dim']:,} dimensions, {result['classes']} classes, C = 1; {hardware['cpu']}, "
        f"{hardware['cores']} cores",
        "",
        "".join(f"{name:>12}" for name in (*columns, "gap", "accuracy")),
    ]
    for fit in result["fits"]:
        cells = (
            f"{fit['images']:,}",
            str(fit["num_workers"]),
            f"{fit['seconds']:.1f}",
            f"{fit['fit_seconds']:.1f}",
            f"{fit['fit_microseconds_per_image']:.0f}",
            f"{fit['peak_pss_bytes'] / 1e6:,.0f}",
            f"{fit['peak_to_float32_features']:.2f}x",
            f"{fit['worker_peak_rss_bytes'] / 1e6:,.0f}" if fit["worker_peak_rss_bytes"] else "not seen",
            f"{fit['gap']:.0e}",
            f"{fit['accuracy']:.4f}",
        )
        lines.append("".join(f"{cell:>12}" for cell in cells))
    grown = result["bytes_per_further_image"]
    if grown is not None:
        lines += ["", f"a further image took {grown:,.0f} bytes; as float32 it is {4 * result['dim']:,}"]
    limit = result["limit_seconds"]
    if converged["seconds"] is None:
        theirs = f"not done after {limit:g} s, more than {limit / solver['seconds']:.1f}x as long"
    else:
        theirs = f"{converged['seconds']:.1f} s, {converged['to_solver']:.1f}x as long, {converged['gap']:.0e} above it"
    return [
        *lines,
        "",
        f"{solver['images']:,.0f} fitted images, {THREADS} threads: the solver alone {solver['seconds']:.1f} s to "
        f"{solver['gap']:.0e} above the optimum, certified",
        f"scikit-learn, lbfgs, tol {TOLERANCE:g}: {theirs}",
    ]
