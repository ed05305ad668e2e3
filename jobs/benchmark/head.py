"""`--what head`: cross-validation beside scikit-learn's, on the same images and folds.

Four measurements, each in fresh processes: the command `bottleneck fit`; its solver alone, from arrays in memory to
every value of C and fold solved; the tutorials' GridSearchCV(LogisticRegression()) with default settings; and
scikit-learn run until it is as near to the optimum, one fold of each value of C for a limited time.

What all of them minimise is C * sum of losses + |w|^2 / 2. How far above the optimum they end says what they found.
"""

import math
import tempfile
import time

from bottleneck.dataset.features import open_features
from bottleneck.heads.fit import chosen_layer
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.protocol import FitEvent, LocalWorkers
from bottleneck.heads.solver.worker import Worker
from jobs.benchmark import Config
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, run_job, tell, watched
from jobs.benchmark.sklearn_side import REQUEST, THREADS, TOLERANCE, C, load, measure_converged, measure_grid_search
from jobs.results import answer


def main(config: Config) -> int:
    hardware = describe_hardware()
    features = open_features(config.source)
    layer = chosen_layer(features, HeadRequest(layer=config.layer))
    rounds = [measure(config, layer) for _ in range(config.rounds)]
    result = {
        "what": config.what,
        "source": config.source,
        "layer": layer,
        "dim": features.spec.dim_of(layer),
        "threads": THREADS,
        "limit_seconds": config.limit_seconds,
        **summarize(rounds),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def measure(config: Config, layer: str) -> Figures:
    """One round: everything once, nothing at the same time; the command first, as it says what is wrong with labels."""
    source = config.source
    return {
        "fit": watched("bottleneck fit", measure_fit, source, layer, config.num_workers),
        "solver": watched("the solver alone", apart, measure_solver, source, layer),
        "grid_search": watched("GridSearchCV", apart, measure_grid_search, source, layer),
        "converged": watched(
            "scikit-learn until it has converged", measure_converged, source, layer, config.limit_seconds
        ),
    }


def measure_fit(source: str, layer: str, num_workers: int, c: tuple[float, ...] = C) -> Figures:
    """The command as a user runs it, Ray's start, reading, report and all."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        arguments = ["fit", source, folder, "--layer", layer, "--folds", str(REQUEST.folds), "--c", *map(str, c)]
        summary, figures = run_job([*arguments, "--num-workers", str(num_workers)])
    names = ("images", "fitted_on", "classes", "way", "num_workers", "accuracy", "gap")
    return {**figures, "fit_seconds": summary["seconds"], **{name: summary[name] for name in names}}


def measure_solver(source: str, layer: str) -> Figures:
    """From arrays in memory to every value of C and fold solved; the final fit, which is nearer still, is apart."""
    from threadpoolctl import threadpool_limits

    data = load(source, layer)
    solved = math.nan

    def note(event: FitEvent) -> None:
        nonlocal solved
        if "score" in event:  # the last one ends the grid; what follows is the fit on all folds together
            solved = time.perf_counter()

    with threadpool_limits(THREADS):
        started = time.perf_counter()
        worker = Worker()
        worker.hold(data.features_ND)
        workers = LocalWorkers(worker, note)
        coordinator = Coordinator(
            FitData(
                workers,
                [len(data.class_indices_N)],
                data.class_indices_N,
                data.folds_N,
                data.num_classes,
                REQUEST,
                REQUEST.folds,
            )
        )
        _, grid = coordinator.fit(data.features_ND.shape[1])
        ended = time.perf_counter()
    names = ("c", "accuracies", "objectives", "gap")
    return {
        "seconds": solved - started,
        "final_fit_seconds": ended - solved,
        "way": coordinator.solver,
        "rows": [{name: row[name] for name in names} for row in grid.rows],
    }


def summarize(rounds: list[Figures]) -> Figures:
    """The median of every time over the rounds, and how far above the optimum each one ended."""
    figures = medians(rounds)
    solver, search, converged = figures["solver"], figures["grid_search"], figures["converged"]
    rows, known = [], []
    for ours, theirs, best in zip(solver["rows"], search["rows"], converged["rows"], strict=True):
        optima = ours["objectives"]
        row = {
            "c": ours["c"],
            "solver_gap": ours["gap"],
            "grid_search_gaps": [value / o - 1 for value, o in zip(theirs["objectives"], optima, strict=True)],
            "converged_seconds": best["seconds"],
            "converged_gap": None if best["seconds"] is None else best["objective"] / optima[0] - 1,
        }
        known += [] if best["seconds"] is None else [best["accuracy"] == ours["accuracies"][0]]
        rows.append(row)
    return {
        **{name: figures["fit"][name] for name in ("images", "fitted_on", "classes")},
        **figures,
        "rows": rows,
        "solver_gap": max(row["solver_gap"] for row in rows),
        "grid_search_gap": max(max(row["grid_search_gaps"]) for row in rows),
        "accuracies_known": len(known),
        "accuracies_equal": sum(known),
        "grid_search_to_solver": search["seconds"] / solver["seconds"],
        "converged_to_solver_at_least": converged["grid_seconds_at_least"] / solver["seconds"],
    }


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    solver, fit, hardware = result["solver"], result["fit"], result["hardware"]
    search, converged = result["grid_search"], result["converged"]
    gaps = [row["converged_gap"] for row in result["rows"] if row["converged_gap"] is not None]
    lines = [
        ("the solver alone", "", solver["seconds"], f"{result['solver_gap']:.0e}, certified"),
        ("GridSearchCV, default settings", "", search["seconds"], f"{result['grid_search_gap']:.0e}"),
        (
            f"scikit-learn, tol {TOLERANCE:g}",
            ">" if converged["over_limit"] else "about",
            converged["grid_seconds_at_least"],
            f"{max(gaps):.0e}{' where it ended' if converged['over_limit'] else ''}" if gaps else "not known",
        ),
        ("bottleneck fit, whole command", "", fit["seconds"], ""),
    ]
    over = f"over {result['limit_seconds']:g}"
    return [
        f"{result['images']:,} images of {result['source']}, {result['layer']}: {result['dim']:,} dimensions, "
        f"{result['classes']} classes",
        f"{hardware['cpu']}, {hardware['cores']} cores; {result['threads']} threads; {len(C)} values of C on "
        f"{REQUEST.folds} folds of {result['fitted_on']:,} images",
        "",
        f"{'':34}{'seconds':>14}{'to the solver':>16}  above the optimum at most",
        *(
            f"{name:34}{f'{sign} {seconds:,.2f}':>14}{seconds / solver['seconds']:15.1f}x  {gap}"
            for name, sign, seconds, gap in lines
        ),
        "",
        f"{'':10}{'the solver':>14}{'GridSearchCV':>18}{f'scikit-learn, tol {TOLERANCE:g}, one fold':>38}",
        f"{'C':>10}{'above at most':>14}{'above at most':>18}{'seconds':>24}{'above':>14}",
        *(
            f"{row['c']:10g}{row['solver_gap']:14.0e}{max(row['grid_search_gaps']):18.0e}"
            + (
                f"{over:>24}"
                if row["converged_seconds"] is None
                else f"{row['converged_seconds']:24.2f}{row['converged_gap']:14.0e}"
            )
            for row in result["rows"]
        ),
        "",
        f"accuracy equal to converged scikit-learn's on {result['accuracies_equal']} of {result['accuracies_known']} "
        f"folds where that is known; GridSearchCV was stopped by max_iter in {search['stopped_by_max_iter']} of "
        f"{len(C) * REQUEST.folds} fits",
        f"way: {solver['way']}; the fit on all folds with the best C takes the solver "
        f"{solver['final_fit_seconds']:.2f} s more; the command fitted for {fit['fit_seconds']:.2f} s of its "
        f"{fit['seconds']:.1f} s",
        f"memory of the command: driver {fit['driver_peak_rss_bytes'] / 1e6:,.0f} MB, all processes together "
        f"{fit['peak_pss_bytes'] / 1e6:,.0f} MB at most",
    ]
