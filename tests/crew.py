"""Several workers of a fit in one process, as Ray Train's workers are in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bottleneck.heads.label_sets import LabelSets
from bottleneck.heads.request import Arrays, HeadRequest
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.solver.worker import Worker


class Crew:
    """Several workers that answer one after the other."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers, self.size, self.lanes = workers, len(workers), len(workers)
        self.events: list[dict[str, Any]] = []
        self.memory: dict[str, Any] = {}
        self.asked: list[str] = []

    def ask(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        self.asked.append(method.__name__)
        return [method(worker, *arguments) for worker in self.workers]

    def ask_each(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        self.asked.append(method.__name__)
        return [method(worker, *own) for worker, own in zip(self.workers, arguments, strict=False)]

    def publish(self, value: Any) -> Any:
        return value

    def fetch(self, handle: Any) -> Any:
        return handle

    def recall(self, name: str) -> Any:
        return self.memory.get(name)

    def remember(self, name: str, value: Any) -> None:
        self.memory[name] = value

    def report(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def fit(
    features_ND: np.ndarray,
    class_indices_N: np.ndarray,
    folds_N: np.ndarray,
    request: HeadRequest,
    num_workers: int = 1,
    crew: Crew | None = None,
    sets: LabelSets | None = None,
) -> tuple[Arrays, Grid, Coordinator]:
    """Fit on arrays, cut into as many workers."""
    parts = np.array_split(np.arange(len(class_indices_N)), num_workers)
    crew = crew or Crew([Worker() for _ in parts])
    for worker, part in zip(crew.workers, parts, strict=True):
        worker.hold(features_ND[part])
    num_folds = request.folds if request.cross_validated else 1
    coordinator = Coordinator(
        FitData(
            crew,
            [len(p) for p in parts],
            class_indices_N,
            folds_N,
            int(class_indices_N.max()) + 1,
            request,
            num_folds,
            has_label_KL=None if sets is None else sets.has_label_KL,
        )
    )
    arrays, grid = coordinator.fit(features_ND.shape[1])
    return arrays, grid, coordinator
