"""Several members of a fit in one process, as Ray Train's workers are in several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bottleneck.heads.request import Arrays, Grid, HeadRequest
from bottleneck.heads.solver.coordinator import Leader
from bottleneck.heads.solver.worker import Member


class Crew:
    """A team of members that answer one after the other."""

    def __init__(self, members: list[Member]) -> None:
        self.members, self.size = members, len(members)
        self.events: list[dict[str, Any]] = []
        self.memory: dict[str, Any] = {}
        self.asked: list[str] = []

    def ask(self, request: str, *arguments: Any) -> list[Any]:
        self.asked.append(request)
        return [getattr(member, request)(*arguments) for member in self.members]

    def ask_each(self, request: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        self.asked.append(request)
        return [getattr(member, request)(*own) for member, own in zip(self.members, arguments, strict=True)]

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
    codes_N: np.ndarray,
    folds_N: np.ndarray,
    request: HeadRequest,
    num_members: int = 1,
    crew: Crew | None = None,
) -> tuple[Arrays, Grid, Leader]:
    """Fit on arrays, cut into as many members."""
    parts = np.array_split(np.arange(len(codes_N)), num_members)
    crew = crew or Crew([Member() for _ in parts])
    for member, part in zip(crew.members, parts, strict=True):
        member.hold(features_ND[part])
    num_folds = request.folds if request.cross_validated else 1
    leader = Leader(crew, [len(p) for p in parts], codes_N, folds_N, int(codes_N.max()) + 1, request, num_folds)
    arrays, grid = leader.fit(features_ND.shape[1])
    return arrays, grid, leader
