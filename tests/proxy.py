"""An HTTP proxy in front of an S3 server that injects the faults object stores are known for.

Everything that is forwarded, is forwarded byte for byte: the request target keeps its percent-encoding and the Host
header its value, so signatures stay valid. One fault at most happens to a request, the first in the list that fires.
Whether one fires depends on the seed, the request and how often that request came before, not on the order in which
concurrent requests arrive, so a run can be repeated.

    with FaultProxy(server.endpoint_url, [Fault("answer", probability=0.1)], seed=0) as proxy:
        subprocess.run([...], env=server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
    assert proxy.injected["answer"] > 0
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

BLOCK_BYTES = 64 * 1024
HEAD_BYTES = 256 * 1024  # a key of 1,024 bytes is up to 3,072 in the target
WRITES = "PUT|POST|DELETE"

Kind = Literal["answer", "answer_after", "lose_answer", "reset", "cut_body", "stall", "stall_body", "call"]
When = Literal["before", "during", "after"]


@dataclass(kw_only=True)
class Request:
    """A request the proxy has seen."""

    method: str
    target: str
    """Path and query as sent, percent-encoded."""
    status: int | None = None
    """What the client was told; None when it was told nothing."""
    fault: Kind | None = None
    """What was done to it."""

    @property
    def path(self) -> str:
        """The decoded path: /bucket/key."""
        return unquote(self.target.partition("?")[0])


@dataclass(frozen=True)
class Fault:
    """What happens to some requests."""

    kind: Kind
    """
    answer: an error instead of forwarding
    answer_after: forward, then an error instead of the server's answer
    lose_answer: forward, then close the connection without an answer
    reset: reset the connection (RST) without forwarding
    cut_body: send half of the answer's body, of which Content-Length promises all, then close
    stall: wait before forwarding
    stall_body: wait in the middle of the answer's body
    call: call back before, during or after forwarding the request's body
    """
    probability: float = field(default=1.0, kw_only=True)
    methods: str = field(default=".*", kw_only=True)
    """Regular expression for the whole method."""
    path: str = field(default="", kw_only=True)
    """Regular expression, searched in the decoded path (/bucket/key)."""
    at: int | None = field(default=None, kw_only=True)
    """Only the n-th request that matches, from 1."""
    times: int | None = field(default=None, kw_only=True)
    """At most so many times."""
    status: int = field(default=503, kw_only=True)
    code: str = field(default="SlowDown", kw_only=True)
    """S3's error code, for answer and answer_after."""
    seconds: float = field(default=1.0, kw_only=True)
    """How long stall and stall_body wait."""
    call: Callable[[Request], object] | None = field(default=None, kw_only=True)
    """For call; runs in a thread of its own, the request waits for it."""
    when: When = field(default="before", kw_only=True)
    """For call: nothing was forwarded yet, half of the body was, or all was and the server has answered."""
    drop: bool = field(default=False, kw_only=True)
    """For call: forward nothing more afterwards, as if the client had died at this point."""


def kill_at(number: int, when: When, kill: Callable[[], object], methods: str = WRITES, path: str = "") -> Fault:
    """Have the client killed (by `kill`) before, during or after its n-th write."""
    return Fault("call", methods=methods, path=path, at=number, when=when, call=lambda _: kill(), drop=True)


class FaultProxy:
    """The proxy, in a thread of this process; use it as a context manager."""

    endpoint_url: str

    def __init__(self, upstream: str, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self.requests: list[Request] = []
        """All requests so far, in the order in which they came."""
        self.injected: Counter[Kind] = Counter()
        """How many faults of each kind have happened."""
        self._seed = seed
        self._lock = threading.Lock()
        self._failures: list[Exception] = []
        self.inject(*faults)

    def inject(self, *faults: Fault) -> None:
        """From the next request on, replace the faults by these; counting (`at`, `times`, repeats) begins anew."""
        with self._lock:
            self._faults = faults
            self._matches: Counter[int] = Counter()
            self._fired: Counter[int] = Counter()
            self._repeats: Counter[tuple[str, str]] = Counter()

    def count(self, methods: str = ".*", path: str = "") -> int:
        """How many requests came with a method and a decoded path like these (regular expressions, as in Fault)."""
        with self._lock:
            return sum(_matches(request, methods, path) for request in self.requests)

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.endpoint_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="fault-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failures and error_type is None:
            raise RuntimeError("the proxy or a callback of its faults failed") from self._failures[0]

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        conversations: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._converse(_Peer(reader, writer)))
            conversations.add(task)
            task.add_done_callback(conversations.discard)

        listening = await asyncio.start_server(accept, sock=listener, limit=HEAD_BYTES)
        await self._stop.wait()
        listening.close()
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        await asyncio.sleep(0)  # lets the closed transports go

    async def _converse(self, client: _Peer) -> None:
        conversation = _Conversation(self.upstream, client)
        try:
            while (head := await client.read_head()) is not None:
                request = Request(method=head.words[0], target=head.words[1])
                if not await conversation.exchange(head, request, self._record(request), self.injected):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side is gone; closing the connection tells the other
        except Exception as error:  # raised again when the proxy is left
            self._failures.append(error)
        finally:
            conversation.close()

    def _record(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            repeat = self._repeats[request.method, request.target]
            self._repeats[request.method, request.target] += 1
            chosen = None
            for index, fault in enumerate(self._faults):
                if not _matches(request, fault.methods, fault.path):
                    continue
                self._matches[index] += 1
                if chosen or fault.at not in (None, self._matches[index]) or self._fired[index] == fault.times:
                    continue
                draw = random.Random(f"{self._seed}/{index}/{repeat}/{request.method}/{request.target}")
                if draw.random() < fault.probability:
                    self._fired[index] += 1
                    chosen = fault
            return chosen


class _Conversation:
    """A client's connection and the server connection kept beside it."""

    def __init__(self, address: tuple[str, int], client: _Peer) -> None:
        self._address = address
        self._client = client
        self._kept: _Peer | None = None

    def close(self) -> None:
        self._client.close()
        if self._kept:
            self._kept.close()

    async def exchange(self, head: _Head, request: Request, fault: Fault | None, injected: Counter[Kind]) -> bool:
        """Serve one request; returns whether the connections are good for another one."""
        self._head, self._request, self._fault, self._injected = head, request, fault, injected
        if self._happens("reset"):
            self._client.reset()
            return False
        if self._happens("answer"):
            return await self._refuse(drain="expect" not in head.headers)
        if fault and self._happens("stall"):
            await asyncio.sleep(fault.seconds)
        if self._happens("call", "before") and await self._call():
            return False
        return await self._forward(await self._connect())

    def _happens(self, kind: Kind, when: When | None = None) -> bool:
        """Whether the fault is of this kind; it is about to be done then."""
        if self._fault is None or self._fault.kind != kind or when not in (None, self._fault.when):
            return False
        self._injected[kind] += 1
        self._request.fault = kind
        return True

    async def _connect(self) -> _Peer:
        if self._kept is None or self._kept.has_ended():
            if self._kept:
                self._kept.close()
            self._kept = _Peer(*await asyncio.open_connection(*self._address, limit=HEAD_BYTES))
        return self._kept

    async def _forward(self, server: _Peer) -> bool:
        # The body is sent while the answer is awaited: the server may ask for it ("100 Continue") or refuse it early.
        sending = asyncio.create_task(self._send_request(server))
        reading: asyncio.Task[_Head | None] = asyncio.create_task(server.read_head())
        try:
            while True:
                await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not sending.result():
                    return False  # a fault ended the request in its middle
                answer = await reading
                if answer is None:
                    return False
                if answer.status >= 200:
                    break
                await self._client.send(answer.raw)
                reading = asyncio.create_task(server.read_head())
            if not sending.done():
                await asyncio.wait({sending}, timeout=0.05)
            return await self._send_answer(server, answer, is_early=not sending.done())
        finally:
            if "expect" not in self._head.headers:  # closing on a client that still sends would lose it the answer
                await asyncio.wait({sending}, timeout=1)
            for task in (sending, reading):
                task.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)

    async def _send_request(self, server: _Peer) -> bool:
        """Forward head and body; returns False when the fault says to stop there."""
        blocks = [(0, self._head.raw)]
        half_sent = False
        with contextlib.suppress(ConnectionError):  # the server has stopped listening; it may have answered before
            await server.send(self._head.raw)
        async for half, block in self._client.read_body(self._head):
            if half and not half_sent:
                half_sent = True
                if self._happens("call", "during") and await self._call():
                    return False
            await server.send(block)
        return half_sent or not (self._happens("call", "during") and await self._call())
