"""`--what faults`: extraction from a bucket to a bucket, without and with faults.

Both runs go through a small proxy of this process. In the second it answers a tenth of all requests itself, as a store
in trouble does: 503 SlowDown, 500 InternalError, 503 ServiceUnavailable. Requests are signed for the proxy's name:
a store at AWS_ENDPOINT_URL (Ceph, MinIO) accepts that, Amazon's does not.
"""

import contextlib
import http.client
import os
import random
import tempfile
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from bottleneck.errors import UsageError
from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from bottleneck.networks.device import has_bfloat16
from bottleneck.networks.prepare import resolve_apart
from bottleneck.networks.resolve import choose_precision
from jobs.benchmark import Config
from jobs.benchmark.extract import NUM_IMAGES, choose_shard_size, copy_images, measure_job
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, tell, watched
from jobs.benchmark.s3 import put, remove
from jobs.results import answer

FAULTS = ((0.04, 503, "SlowDown"), (0.03, 500, "InternalError"), (0.03, 503, "ServiceUnavailable"))
"""Share of all requests, status and code of what is answered."""
CONNECTION_HEADERS = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect", "host")
"""Of one connection, so written anew for the other."""


def main(config: Config) -> int:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise UsageError(f"--what faults takes a store at AWS_ENDPOINT_URL=http://... Received: {endpoint!r}.")
    num_images = config.num_images or NUM_IMAGES
    hardware = describe_hardware()
    spec = resolve_apart(config.features, choose_precision(config.features, has_bfloat16))
    shard_size = choose_shard_size(num_images, GPU_BATCH_SIZE if hardware["gpus"] else CPU_BATCH_SIZE)
    bucket = f"{config.bucket.rstrip('/')}/benchmark-{uuid.uuid4().hex}"
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        images = os.path.join(folder, "images")
        apart(copy_images, config.source, images, num_images, spec)
        try:
            put(images, f"{bucket}/images")
            for number in range(config.rounds):
                one: dict[str, Figures] = {}
                for title, name, has_faults in (
                    ("without faults", "none", False),
                    ("with 10 % faults", "faults", True),
                ):
                    with proxied(endpoint, has_faults, seed=number) as proxy:
                        output = f"{bucket}/output-{name}-{number}"
                        given = (f"{bucket}/images", output, config.features, shard_size)
                        one[name] = watched(title, measure_job, *given)
                    one[name] |= {"requests": proxy.num_requests, "faults": proxy.num_faults}
                rounds.append(one)
        finally:
            remove(bucket)
    figures = medians(rounds)
    none, faults = figures["none"], figures["faults"]
    result = {
        "what": config.what,
        "source": config.source,
        "bucket": config.bucket,
        "images": num_images,
        "spec": spec.to_json(),
        **figures,
        "command_ratio": faults["seconds"] / none["seconds"],
        "extraction_ratio": none["images_per_second"] / faults["images_per_second"],
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    spec, hardware = result["spec"], result["hardware"]
    return [
        f"{result['images']:,} images of {result['source']}: {spec['base']}, {spec['precision']}; {hardware['cpu']}, "
        f"{hardware['cores']} cores",
        "",
        f"{'':20}{'images/s':>10}{'whole command s':>17}{'requests':>10}{'faults':>8}",
        _line("no faults", result["none"]),
        _line("10 % faults", result["faults"]),
        "",
        f"With faults the whole command takes {result['command_ratio']:.2f} times as long, extraction alone "
        f"{result['extraction_ratio']:.2f} times",
    ]


def _line(title: str, one: Figures) -> str:
    return f"{title:20}{one['images_per_second']:10,.1f}{one['seconds']:17,.1f}{one['requests']:10,}{one['faults']:8,}"


@contextlib.contextmanager
def proxied(endpoint: str, has_faults: bool, seed: int) -> Iterator["Proxy"]:
    """Have programs that are started meanwhile reach the store through a proxy."""
    with Proxy(endpoint, has_faults, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.server_port}"
        try:
            yield proxy
        finally:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            proxy.shutdown()
            thread.join()


class Proxy(ThreadingHTTPServer):
    """Forwards requests to a store, and answers some with errors instead."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, endpoint: str, has_faults: bool, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint)
        self.num_requests = self.num_faults = 0
        self._shares = FAULTS if has_faults else ()
        self._random, self._lock = random.Random(seed), threading.Lock()  # noqa: S311  # faults, no secret

    def fault(self) -> tuple[int, str] | None:
        """Draw what happens to the next request."""
        with self._lock:
            self.num_requests += 1
            drawn = self._random.random()
            for share, status, code in self._shares:
                if drawn < share:
                    self.num_faults += 1
                    return status, code
                drawn -= share
        return None


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client's, with one to the store beside it."""

    protocol_version = "HTTP/1.1"
    server: Proxy
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        is_tls = self.server.upstream.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        self.store = kind(self.server.upstream.netloc, timeout=60)

    def finish(self) -> None:
        self.store.close()
        super().finish()

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault := self.server.fault():
            status, code = fault
            self.answer(status, [], f"<Error><Code>{code}</Code><Message>Injected.</Message></Error>".encode())
            return
        self.store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in CONNECTION_HEADERS:
                self.store.putheader(name, value)
        self.store.putheader("Host", self.headers["Host"])  # which is signed
        self.store.putheader("Content-Length", str(len(body)))
        self.store.endheaders(body)
        answer = self.store.getresponse()
        data = answer.read()
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in CONNECTION_HEADERS]
        self.answer(answer.status, headers, data, length)

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = forward

    def log_message(self, *_: object) -> None:
        pass
