"""A Ray cluster of real processes on this machine: `ray start` for every node, with token authentication.

    with RayCluster(folder, environment) as cluster:
        one, two = cluster.add(num_cpus=2), cluster.add(num_cpus=2, apart=True)
        subprocess.run(["bottleneck", "submit", "--address", cluster.dashboard, ...], env=cluster.environment)
        one.kill9()

Every node is a session of its own with a working directory of its own, which is how its processes are found and ended;
`apart` puts one into a network namespace, where the system lets us: it then reaches the others as another machine does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil
from servers import free_port

STARTED_SECONDS = 120
NETWORK = f"10.{199 - os.getpid() // 256 % 64}.{os.getpid() % 256}"
"""Of the namespace and this machine's end of the cable to it: others for each process that runs tests."""
NAMESPACE = f"bottleneck-{os.getpid()}"
CABLE = f"bn{os.getpid()}"


class Node:
    """`ray start --block` and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, ip: str) -> None:
        self.process, self.log, self.ip = process, log, ip

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.process.pid:
                    found.append(psutil.Process(pid))
        return [one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def workers(self, title: str) -> list[psutil.Process]:
        """Worker processes whose title has this in it."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def kill9(self) -> None:
        """Everything at once, as when the machine goes."""
        self.process.send_signal(signal.SIGSTOP)  # so that nothing is started meanwhile
        while left := [one for one in self.processes() if one.pid != self.process.pid]:
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            time.sleep(0.01)
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """As a machine is told that it will go: SIGTERM to Ray's node process."""
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.name() == "raylet":
                    one.terminate()


class RayCluster:
    """A head without CPUs and dashboard at a port of its own; leaving the context ends every process of every node."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, apart: bool = True) -> None:
        """Describe a cluster; entering the context starts its head.

        Args:
            folder: for working directories and logs.
            environment: of every node, as of the store's credentials.
            apart: nodes may be put into a network namespace, so the head is found by an address of this machine.
        """
        self.folder = folder
        self.has_namespace = apart and _make_namespace()
        self.ip = f"{NETWORK}.1" if self.has_namespace else "127.0.0.1"
        self.address = f"{self.ip}:{free_port()}"
        self._dashboard_port = free_port()
        self.dashboard = f"http://127.0.0.1:{self._dashboard_port}"
        self.token = secrets.token_hex(16)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }
        self.give(environment)
        self.nodes: list[Node] = []
        self._numbers = itertools.count()
        self._temporary = tempfile.mkdtemp(prefix="rc-", dir="/tmp")  # sockets in it have short names, or none

    def give(self, environment: Mapping[str, str]) -> None:
        """Set more of the environment of drivers, and of nodes that are yet to start."""
        self.environment |= environment

    def __enter__(self) -> Self:
        head = ("--head", "--port", self.address.rpartition(":")[2], "--temp-dir", self._temporary)
        dashboard = ("--include-dashboard", "true", "--dashboard-host", "127.0.0.1")
        self.head = self._start(
            self.ip,
            *head,
            *dashboard,
            *("--dashboard-port", str(self._dashboard_port), "--ray-client-server-port", str(free_port())),
            num_cpus=0,
        )
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.kill9()
        shutil.rmtree(self._temporary, ignore_errors=True)
        if self.has_namespace:
            _remove_namespace()

    def add(self, num_cpus: int, *, apart: bool = False, num_gpus: int = 0) -> Node:
        """Start a node.

        Args:
            apart: in the network namespace, if there is one; only one node can be.
            num_gpus: as Ray counts them, whether or not there are any.
        """
        apart = apart and self.has_namespace
        prefix = ("ip", "netns", "exec", NAMESPACE) if apart else ()
        ip = f"{NETWORK}.2" if apart else self.ip
        return self._start(ip, "--address", self.address, num_cpus=num_cpus, num_gpus=num_gpus, prefix=prefix)

    def wait_for(
        self,
        what: str,
        condition: Callable[[], object],
        seconds: float = STARTED_SECONDS,
        told: Callable[[], str] = str,
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}\n{told()}"
            time.sleep(0.1)

    def _start(self, ip: str, *arguments: str, num_cpus: int, num_gpus: int = 0, prefix: tuple[str, ...] = ()) -> Node:
        folder = self.folder / f"node{next(self._numbers)}"
        folder.mkdir()
        log = folder / "ray-start.log"
        resources = ("--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus), "--object-store-memory", "200000000")
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", ip)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*prefix, *ray, *resources, "--disable-usage-stats", *arguments],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(process, log, ip)
        self.nodes.append(node)
        self.wait_for("`ray start`", lambda: _is_up(node), told=log.read_text)
        return node


def _is_up(node: Node) -> bool:
    text = node.log.read_text()
    assert node.process.poll() is None, text
    return "Ray runtime started" in text


def _make_namespace() -> bool:
    """Make the namespace and the cable to it; False where we may not."""
    if not shutil.which("ip"):
        return False
    _remove_namespace()
    here, there = f"{CABLE}0", f"{CABLE}1"
    commands = [
        f"netns add {NAMESPACE}",
        f"link add {here} type veth peer name {there}",
        f"link set {there} netns {NAMESPACE}",
        f"addr add {NETWORK}.1/30 dev {here}",
        f"link set {here} up",
        f"netns exec {NAMESPACE} ip addr add {NETWORK}.2/30 dev {there}",
        f"netns exec {NAMESPACE} ip link set {there} up",
        f"netns exec {NAMESPACE} ip link set lo up",
    ]
    for command in commands:
        if subprocess.run(["ip", *command.split()], capture_output=True).returncode:
            _remove_namespace()
            return False
    return True


def _remove_namespace() -> None:
    for command in (f"netns del {NAMESPACE}", f"link del {CABLE}0"):
        subprocess.run(["ip", *command.split()], capture_output=True)


def job_of(cluster: RayCluster, *arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    """A job of ours on the cluster, from a driver on this machine: exit code, the JSON of its last line, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "--json", *map(str, arguments)],
        env=cluster.environment | {"RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr
