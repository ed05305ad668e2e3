"""How a coordinator asks the workers of a fit: methods of `Worker`, here or elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, TypeVarTuple

import numpy as np

from bottleneck.heads.solver.worker import Worker

P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
Answer = TypeVar("Answer")


def total(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Sum the arrays that the workers answered."""
    result: np.ndarray = sum(answers[1:], answers[0])
    return result


class FitEvent(TypedDict, total=False):
    """Progress of a fit, for whoever shows it: images read, a fold solved, an epoch, or a step of the solver."""

    read: int
    classes: int
    seconds: float
    scale: str
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
        """What was remembered before a worker died, or None."""

    def remember(self, name: str, value: Any) -> None: ...

    def report(self, event: FitEvent) -> None:
        """Report progress."""


class LocalWorkers:
    """One worker, in this process."""

    size = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def ask(
        self, method: Callable[Concatenate[Worker, P], Answer], *arguments: P.args, **options: P.kwargs
    ) -> list[Answer]:
        return [method(self.worker, *arguments, **options)]

    def ask_each(self, method: Callable[[Worker, *Ts], Answer], arguments: Sequence[tuple[*Ts]]) -> list[Answer]:
        return [method(self.worker, *arguments[0])] if arguments else []

    def publish(self, value: Any) -> Any:
        return value

    def fetch(self, handle: Any) -> Any:
        return handle

    def recall(self, name: str) -> Any:
        return None

    def remember(self, name: str, value: Any) -> None:
        pass

    def report(self, event: FitEvent) -> None:
        pass
