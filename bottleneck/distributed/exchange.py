"""Pass requests and answers between the workers of a fit, through an actor beside them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate

from bottleneck.child import raised
from bottleneck.heads.solver.partial import Pace
from bottleneck.heads.solver.protocol import Answer, FitEvent, P, Ts
from bottleneck.heads.solver.worker import Worker


@dataclass(frozen=True)
class WorkerRequest:
    """A method of `Worker` with the arguments of each worker, by rank; ranks without arguments do nothing."""

    method: Callable[..., Any]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def answer(self, worker: Worker, rank: int) -> Any:
        if rank >= len(self.arguments):
            return None
        arguments, options = self.arguments[rank]
        return self.method(worker, *arguments, **options)


class Failed:
    """An answer that is an error."""

    def __init__(self, error: list[str]) -> None:
        self.error = error


class RayWorkers:
    """The workers of a Ray Train group, seen from the coordinator, which has one of them in its process."""

    def __init__(self, exchange: Any, token: str, size: int, worker: Worker) -> None:
        self.exchange, self.token, self.size, self.worker = exchange, token, size, worker
        self.lanes = size
        self.number = 0

    def ask(
        self, method: Callable[Concatenate[Worker, P], Answer], *arguments: P.args, **options: P.kwargs
    ) -> list[Answer]:
        return self._ask(WorkerRequest(method, [(arguments, options)] * self.size))

    def ask_each(self, method: Callable[[Worker, *Ts], Answer], arguments: Sequence[tuple[*Ts]]) -> list[Answer]:
        return self._ask(WorkerRequest(method, [(own, {}) for own in arguments]))[: len(arguments)]

    def _ask(self, request: "WorkerRequest") -> list[Any]:
        """Post a request for the other workers, answer it here, and collect the answers in the order of the ranks."""
        import ray

        if self.size == 1:
            return [request.answer(self.worker, 0)]
        posted = self.exchange.post.remote(self.token, self.number, [ray.put(request)])
        own = request.answer(self.worker, 0)
        ray.get(posted)
        handles = ray.get(self.exchange.answers.remote(self.token, self.number, self.size - 1))
        self.number += 1
        answers = [answer for (answer,) in ray.get([handles[rank][0] for rank in range(1, self.size)])]
        for answer in answers:
            if isinstance(answer, Failed):
                raise raised(answer.error)
        return [own, *answers]

    def publish(self, value: Any) -> Any:
        import ray

        return value if self.size == 1 else ray.put(value)

    def fetch(self, handle: Any) -> Any:
        return fetch_object(handle)

    def recall(self, name: str) -> Any:
        import ray

        return ray.get(self.exchange.recall.remote(name))

    def remember(self, name: str, value: Any) -> None:
        self.exchange.remember.remote(name, value)

    def report(self, event: FitEvent) -> None:
        self.exchange.report.remote(event)


class Exchange:
    """An actor beside the group that holds requests, answers, and everything that must outlive a worker."""

    def __init__(self, memory: dict[str, Any] | None = None) -> None:
        """Args: memory: what an earlier run remembered."""
        self.requests: dict[tuple[str, int], list[Any]] = {}
        self.given: dict[tuple[str, int], dict[int, Any]] = {}
        self.memory = memory or {}
        self.unkept: dict[str, Any] = {}
        self.pace = Pace()
        self.told: list[FitEvent] = []
        self.outcome: dict[str, Any] | None = None
        self.met: list[Any] = []
        self.changed = asyncio.Condition()

    async def post(self, token: str, number: int, handle: list[Any]) -> None:
        async with self.changed:
            # Older requests were answered by all, or are of a group that died.
            self.requests = {(token, number): handle}
            self.given = {key: value for key, value in self.given.items() if key == (token, number)}
            self.changed.notify_all()

    async def next_request(self, token: str, number: int) -> list[Any] | None:
        async with self.changed:
            await self.changed.wait_for(lambda: (token, number) in self.requests or self.outcome is not None)
            return self.requests.get((token, number))

    async def answer(self, token: str, number: int, rank: int, handle: list[Any]) -> None:
        async with self.changed:
            self.given.setdefault((token, number), {})[rank] = handle
            self.changed.notify_all()

    async def answers(self, token: str, number: int, count: int) -> dict[int, Any]:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.given.get((token, number), {})) == count)
            return self.given.pop((token, number))

    async def remember(self, name: str, value: Any) -> None:
        self.memory[name] = value
        if self.pace.is_due(name, value):
            self.unkept[name] = value

    async def recall(self, name: str) -> Any:
        return self.memory.get(name)

    async def report(self, event: FitEvent) -> None:
        self.told.append(event)

    async def meet(self, controller: list[Any]) -> None:
        """Remember the handle of Ray Train's controller, in a list so that Ray passes it on as it is."""
        self.met = controller

    async def controller(self) -> list[Any]:
        """The handle that `meet` got, in a list; empty before."""
        return self.met

    async def events(self) -> list[FitEvent]:
        told, self.told = self.told, []
        return told

    async def results(self) -> dict[str, Any]:
        """What the driver is to keep, since it was last asked for."""
        unkept, self.unkept = self.unkept, {}
        return unkept

    async def end(self, outcome: dict[str, Any]) -> None:
        async with self.changed:
            self.outcome = outcome
            self.changed.notify_all()

    async def result(self) -> dict[str, Any] | None:
        return self.outcome


def fetch_object(handle: Any) -> Any:
    import ray

    return ray.get(handle) if isinstance(handle, ray.ObjectRef) else handle
