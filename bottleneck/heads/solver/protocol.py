"""How a coordinator asks the workers of a fit: methods of `Worker`, here or elsewhere."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, TypeVarTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bottleneck.cores import count_cores
from bottleneck.heads.request import Variant
from bottleneck.heads.solver.partial import Pace, PartialResults
from bottleneck.heads.solver.worker import Worker

P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
Answer = TypeVar("Answer")

MAX_LANES = 4
"""Folds solved side by side in one process, each of which takes up to a gigabyte."""


def total(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Sum the arrays that the workers answered."""
    result: np.ndarray = sum(answers[1:], answers[0])
    return result


class FitEvent(TypedDict, total=False):
    """Progress of a fit, for whoever shows it: images read, a fold solved, an epoch, or a step of the solver."""

    read: int
    classes: int
    seconds: float
    variant: Variant
    c: float
    fold: int
    score: float
    epoch: int
    epochs: int
    step: int
    passes: int
    gap: float


class Workers(Protocol):
    """The workers of a fit."""

    size: int
    lanes: int
    """Folds that `ask_each` has solved at the same time."""

    def ask(
        self, method: Callable[Concatenate[Worker, P], Answer], *arguments: P.args, **options: P.kwargs
    ) -> list[Answer]:
        """Every worker's answer to the same request, a method of `Worker` and its arguments."""

    def ask_each(self, method: Callable[[Worker, *Ts], Answer], arguments: Sequence[tuple[*Ts]]) -> list[Answer]:
        """The answers of the first workers, each with its own arguments; as many workers as there are arguments."""

    def publish(self, value: Any) -> Any:
        """A handle with which workers read a value."""

    def fetch(self, handle: Any) -> Any: ...

    def recall(self, name: str) -> Any:
        """What was remembered before a worker or an earlier run died, or None."""

    def remember(self, name: str, value: Any) -> None: ...

    def report(self, event: FitEvent) -> None:
        """Report progress."""


class LocalWorkers:
    """One worker, in this process, which solves folds side by side in threads."""

    size = 1

    def __init__(
        self,
        worker: Worker,
        on_event: Callable[[FitEvent], None] = lambda event: None,
        kept: PartialResults | None = None,
    ) -> None:
        """Take a worker.

        Args:
            on_event: told how the fit goes.
            kept: where results outlive this process.
        """
        self.worker, self.report = worker, on_event
        self._kept, self._pace = kept, Pace()
        self._memory = kept.read() if kept else {}
        self.cores = count_cores()
        self.lanes = min(MAX_LANES, self.cores)

    def ask(
        self, method: Callable[Concatenate[Worker, P], Answer], *arguments: P.args, **options: P.kwargs
    ) -> list[Answer]:
        return [method(self.worker, *arguments, **options)]

    def ask_each(self, method: Callable[[Worker, *Ts], Answer], arguments: Sequence[tuple[*Ts]]) -> list[Answer]:
        if len(arguments) < 2:
            return [method(self.worker, *own) for own in arguments]
        # Products of one fold gain little from a second core, and lose much where another process has it.
        threads = max(1, self.cores // len(arguments))
        with threadpool_limits(threads, "blas"), ThreadPoolExecutor(len(arguments)) as pool:
            return list(pool.map(lambda own: method(self.worker, *own), arguments))

    def publish(self, value: Any) -> Any:
        return value

    def fetch(self, handle: Any) -> Any:
        return handle

    def recall(self, name: str) -> Any:
        return self._memory.get(name)

    def remember(self, name: str, value: Any) -> None:
        if self._kept and self._pace.is_due(name, value):
            self._kept.keep(name, value)
