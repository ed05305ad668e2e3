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
from functools import cached_property
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
    details: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    """More elements of that answer's body, by name: <Endpoint> and the like."""
    headers: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    """More headers of that answer."""
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

    def __init__(self, upstream: str, faults: Iterable[Fault] = (), seed: int = 0, *, host: str = "127.0.0.1") -> None:
        address = urlsplit(upstream)
        self._host = host
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
        listener = socket.create_server((self._host, 0), backlog=1024)
        self.endpoint_url = f"http://{self._host}:{listener.getsockname()[1]}"
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
            # asyncio does this by itself only for sockets that it made; without it an answer takes 40 ms more.
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
            is_waiting = "expect" in head.headers  # has not sent its body and, refused, need not
            if not is_waiting:
                async for _ in self._client.read_body(head):
                    pass
            return await self._refuse(close=is_waiting)
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
        reading = asyncio.create_task(server.read_head())
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
            if sending.done():
                return await self._send_answer(server, answer)
            await self._send_answer(server, answer.closing())
            if "expect" not in self._head.headers:  # closing while the client still sends would lose it the answer
                await asyncio.wait({sending}, timeout=1)
            return False
        finally:
            sending.cancel()
            reading.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)

    async def _send_request(self, server: _Peer) -> bool:
        """Forward head and body; returns False when the fault says to stop there."""
        await server.send_if_open(self._head.raw)
        second_half = False
        async for half, block in self._client.read_body(self._head):
            if half and not second_half:
                second_half = True
                if self._happens("call", "during") and await self._call():
                    return False
            await server.send_if_open(block)
        return second_half or not (self._happens("call", "during") and await self._call())

    async def _send_answer(self, server: _Peer, answer: _Head) -> bool:
        blocks = server.read_body(answer, empty=self._request.method == "HEAD")
        if self._fault and (self._fault.kind in ("answer_after", "lose_answer") or self._fault.when == "after"):
            body = b"".join([block async for _, block in blocks])  # all of it: the server has finished, then
            if self._happens("answer_after"):
                return await self._refuse() and not answer.closes
            if self._happens("lose_answer") or (self._happens("call", "after") and await self._call()):
                return False
            await self._client.send(answer.raw + body)
        else:
            await self._client.send(answer.raw)
            second_half = False
            async for half, block in blocks:
                if half and not second_half:
                    second_half = True
                    if self._happens("cut_body"):
                        return False
                    if self._fault and self._happens("stall_body"):
                        await asyncio.sleep(self._fault.seconds)
                await self._client.send(block)
        self._request.status = answer.status
        return not answer.closes and not self._head.closes and not server.has_ended()

    async def _refuse(self, close: bool = False) -> bool:
        """Tell the client the fault's error."""
        if self._fault is None:
            raise AssertionError("without a fault nothing is refused")
        status, code = self._fault.status, self._fault.code
        details = "".join(f"<{name}>{value}</{name}>" for name, value in self._fault.details)
        message = f"<Error><Code>{code}</Code><Message>Injected by the test.</Message>{details}</Error>"
        body = b"" if self._request.method == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>{message}'.encode()
        lines = [f"HTTP/1.1 {status} {code}", "Content-Type: application/xml", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self._fault.headers]
        if close:
            lines.append("Connection: close")
        await self._client.send("\r\n".join([*lines, "", ""]).encode() + body)
        self._request.status = status
        return not close and not self._head.closes

    async def _call(self) -> bool:
        """Call back; returns whether the request is to be dropped."""
        if self._fault is None:
            raise AssertionError("without a fault nobody is called")
        if self._fault.call:
            await asyncio.to_thread(self._fault.call, self._request)
        return self._fault.drop


@dataclass(frozen=True)
class _Head:
    """The first line and the headers of a request or an answer, as they came."""

    raw: bytes

    @cached_property
    def words(self) -> list[str]:
        return self.raw.decode("latin-1").partition("\r\n")[0].split(" ", 2)

    @cached_property
    def headers(self) -> dict[str, str]:
        lines = self.raw.decode("latin-1").split("\r\n")[1:-2]
        pairs = (line.partition(":") for line in lines)
        return {name.strip().lower(): value.strip().lower() for name, _, value in pairs}

    @property
    def status(self) -> int:
        return int(self.words[1])

    @property
    def closes(self) -> bool:
        return "close" in self.headers.get("connection", "")

    def closing(self) -> _Head:
        """The same with "Connection: close"."""
        others = re.sub(rb"(?im)^connection:[^\r]*\r\n", b"", self.raw)
        return _Head(others[:-2] + b"Connection: close\r\n\r\n")


class _Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def has_ended(self) -> bool:
        return self._reader.at_eof() or self._reader.exception() is not None

    async def read_head(self) -> _Head | None:
        try:
            return _Head(await self._reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None

    async def read_body(self, head: _Head, empty: bool = False) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (half, block): the bytes as they are on the wire, half 0 in the first half of the body, then 1.

        Of a chunked body, the first chunk is taken for the first half.
        """
        is_answer = head.words[0].startswith("HTTP/")
        if empty or (is_answer and head.status in (204, 304)):
            return
        if "chunked" in head.headers.get("transfer-encoding", ""):
            async for item in self._read_chunks():
                yield item
        elif "content-length" in head.headers:
            num_bytes = int(head.headers["content-length"])
            async for block in self._read_exactly(num_bytes // 2):
                yield 0, block
            async for block in self._read_exactly(num_bytes - num_bytes // 2):
                yield 1, block
        elif is_answer:  # as long as the connection lasts
            while block := await self._reader.read(BLOCK_BYTES):
                yield 0, block

    async def _read_chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        half = 0
        while True:
            line = await self._reader.readuntil(b"\r\n")
            num_bytes = int(line.partition(b";")[0], 16)
            yield half, line
            async for block in self._read_exactly(num_bytes):
                yield half, block
            ending = await self._reader.readuntil(b"\r\n")
            if num_bytes == 0:
                while ending != b"\r\n":  # trailers
                    yield half, ending
                    ending = await self._reader.readuntil(b"\r\n")
            yield half, ending
            half = 1
            if num_bytes == 0:
                return

    async def _read_exactly(self, num_bytes: int) -> AsyncIterator[bytes]:
        while num_bytes:
            block = await self._reader.read(min(num_bytes, BLOCK_BYTES))
            if not block:
                raise asyncio.IncompleteReadError(b"", num_bytes)
            num_bytes -= len(block)
            yield block

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send_if_open(self, data: bytes) -> None:
        """Send, or lose: a server that refuses early stops listening, and its answer is still to be read."""
        with contextlib.suppress(ConnectionError):
            await self.send(data)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with RST instead of FIN, which the client sees as "connection reset by peer"."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def _matches(request: Request, methods: str, path: str) -> bool:
    return bool(re.fullmatch(methods, request.method) and re.search(path, request.path, re.DOTALL))
