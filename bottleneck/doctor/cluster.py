"""Check a Ray cluster: join it and run a small task on a node of each kind.

The program is this module. It runs in a process of its own, as joining may hang or abort; where the address is that of
a dashboard it is submitted there as a job.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from bottleneck import __version__
from bottleneck.child import command, environment
from bottleneck.distributed import dashboard
from bottleneck.distributed.ray_session import check_reachable
from bottleneck.doctor.checks import Check, Finding
from bottleneck.errors import BottleneckError, UsageError
from bottleneck.text import counted

JOIN_SECONDS = 90.0
"""Time limit to join and start a worker on a node of each kind; normally 5 s."""
JOB_SECONDS = 180.0
"""The same as a job, which takes about 10 s more."""
NUM_KINDS = 16
CLOCK_SECONDS = 5.0
"""Largest clock difference. Clocks only date footers, but a larger difference means a wrong setup."""
_TRIED = "BOTTLENECK_CLUSTER "
"""Marks the program's line of result among the output of Ray and a job."""


def checks_of_cluster(address: str) -> list[Check]:
    """The checks of a cluster. Raises UsageError for an invalid address."""
    check_address(address)
    seconds = JOB_SECONDS if is_dashboard(address) else JOIN_SECONDS
    return [Check("cluster", lambda: try_cluster(address), seconds + 10)]


def is_dashboard(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def check_address(address: str) -> None:
    """Raise UsageError unless an address is HOST:PORT, a dashboard's URL, or `auto`."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        is_address = bool(parts.hostname and parts.port) or (parts.scheme in ("http", "https") and bool(parts.hostname))
    except ValueError:  # a port that is none
        is_address = False
    if "@" in address:
        raise UsageError("--address holds no credentials. Give a token by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.")
    if not is_address or parts.scheme not in ("http", "https", "ray"):
        raise UsageError(
            f"--address takes HOST:PORT of a cluster or http(s)://... of its dashboard. Received: {address}."
        )


def try_cluster(address: str) -> Iterator[Finding]:
    """Run the program, here or as a job, and check its report."""
    if is_dashboard(address):
        try:
            is_open = not dashboard.check_address(address).is_private
        except BottleneckError as error:  # as `submit` would refuse it
            yield Finding("dashboard", "failure", str(error))
            return
        if is_open:
            told = f"{address} is not encrypted: whoever listens sees the token. Use https, or a tunnel to localhost"
            yield Finding("dashboard", "warning", told)
    told_by = _ask(address, JOB_SECONDS if is_dashboard(address) else JOIN_SECONDS)
    if wrong := told_by.get("error"):
        # Errors of ours say what to do themselves.
        told = wrong if "Expected " in wrong else f"{wrong}. {_what_to_do(wrong)}"
        yield Finding("cluster", "failure", told)
        return
    nodes, here = told_by["nodes"], {"Ray": _ray_version(), "Python": platform.python_version()}
    total = {name: sum(one[name] * one["count"] for one in nodes) for name in ("cpus", "gpus", "memory")}
    there = {"Ray": told_by["ray"], "Python": told_by["python"]}
    num_nodes = sum(one["count"] for one in nodes)
    cpus, gpus = counted(int(total["cpus"]), "CPU"), counted(int(total["gpus"]), "GPU")
    told = (
        f"{address} answers: Ray {there['Ray']}, Python {there['Python']}; {counted(num_nodes, 'node')}, "
        f"{cpus}, {gpus}, {total['memory'] / 1e9:.0f} GB for tasks"
    )
    differing = [f"{name} {here[name]}" for name in here if here[name] != there[name]]
    if differing:
        told += (
            f"; here is {' and '.join(differing)}: whoever joins it needs its versions, jobs that are submitted do not"
        )
    yield Finding("cluster", "warning" if differing else "ok", told)
    if not total["cpus"]:
        yield Finding("CPUs", "warning", "no node has CPUs now: fine if it grows by itself, else nothing will ever run")
    for one in nodes:
        yield _judge(one, told_by)


def _judge(one: dict[str, Any], driver: dict[str, Any]) -> Finding:
    kind = counted(int(one["cpus"]), "CPU") + (f" and {counted(int(one['gpus']), 'GPU')}" if one["gpus"] else "")
    name, report = f"{one['count']} x node of {kind}", one["report"]
    if "error" in report:
        return Finding(name, "failure", f"{one['address']}: no task runs there: {report['error']}. Look at its logs")
    where, wrong = f"{one['address']}: ", []
    if report["pydata"]:
        wrong.append(f"pydata's Bottleneck {report['pydata']} is installed, which has the same name: pip uninstall it")
    elif report["bottleneck"] != __version__:
        found = f"is {report['bottleneck']}" if report["bottleneck"] else f"cannot be imported ({report['why']})"
        wrong.append(f"bottleneck {found}, here it is {__version__}: install the same on every node")
    for package in ("ray", "python"):
        if report[package] != driver[package]:
            wrong.append(f"{package} is {report[package]}, where the driver runs {driver[package]}")
    if wrong:
        return Finding(name, "failure", where + "; ".join(wrong))
    if abs(report["ahead"]) > CLOCK_SECONDS:
        wrong.append(f"its clock is {report['ahead']:+.0f} s from the driver's: set it by NTP")
    if not report["has_bfloat16"] and one["cpus"]:
        wrong.append("no bfloat16 in hardware, so networks run in float32, several times slower")
    told = f"{where}bottleneck {report['bottleneck']}"
    if wrong:
        return Finding(name, "warning", f"{told}; {'; '.join(wrong)}")
    return Finding(name, "ok", f"{told}; clock within {abs(report['ahead']):.1f} s")


def _ask(address: str, limit_seconds: float) -> dict[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603  # this Python, no shell
            command("bottleneck.doctor.cluster", address),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"No answer from {address} within {limit_seconds:.0f} s"}
    told = _result(done.stdout) or {"error": _last_line(done.stderr) or f"joining ended with {done.returncode}"}
    if "error" in told and "InvalidAuthToken" in done.stderr:  # which Ray logs, but does not say
        told["error"] = f"{address} does not accept this token"
    return told


def _result(output: str) -> dict[str, Any] | None:
    lines = [line.partition(_TRIED)[2] for line in output.splitlines() if _TRIED in line]
    result: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return result


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].rstrip(". ")


def _what_to_do(error: str) -> str:
    words = error.lower()
    if "token" in words:
        return "Set RAY_AUTH_MODE=token, and the cluster's token by RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
    if "version" in words and "mismatch" in words:
        return "Use the cluster's versions here, or give its dashboard as --address"
    if "no module named" in words:
        return "The environment of `python` on the cluster's nodes needs bottleneck-features, the same as here"
    return "Look at the address, the network, and whether Ray runs there"


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")


def run() -> None:
    """The program: print a report of a cluster as one line."""
    try:
        address = sys.argv[1] if len(sys.argv) > 1 else ""
        told = submit(address) if is_dashboard(address) else join(address)
    except BaseException as error:  # Ray also raises SystemExit
        # What Ray advises about tokens is long; `_what_to_do` says it shorter.
        said = " ".join(str(error).partition(" Ensure that ")[0].split()).rstrip(". ")
        told = {"error": said if isinstance(error, BottleneckError) else f"{type(error).__name__}: {said}"}
    print(_TRIED + json.dumps(told), flush=True)  # noqa: T201
    os._exit(0)  # leaving the cluster in order takes seconds and tells nothing


def submit(address: str) -> dict[str, Any]:
    """Run this program as a job, through the dashboard."""
    client = dashboard.connect(dashboard.check_address(address))
    job = client.submit_job(entrypoint="python -m bottleneck.doctor.cluster")
    ends = time.monotonic() + JOB_SECONDS - 15
    try:
        while not (status := client.get_job_status(job)).is_terminal():
            if time.monotonic() > ends:
                client.stop_job(job)
                raise TimeoutError(f"the job {job} did not end; it is {status}")
            time.sleep(0.3)
        logs: str = client.get_job_logs(job)
        return _result(logs) or {"error": _last_line(logs) or f"the job {job} is {status}"}
    finally:
        if client.get_job_status(job).is_terminal():
            client.delete_job(job)


def join(address: str) -> dict[str, Any]:
    """Join a cluster and run a task on a node of each kind."""
    import logging

    import ray

    check_reachable(address)
    ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    kinds: dict[tuple[float, float, int], list[dict[str, Any]]] = defaultdict(list)
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            kinds[has.get("CPU", 0), has.get("GPU", 0), round(has.get("memory", 0) / 8e9)].append(node)
    asked = {kind: _start(nodes[0]["NodeID"]) for kind, nodes in list(kinds.items())[:NUM_KINDS]}
    ends = time.monotonic() + JOIN_SECONDS / 2  # of all kinds together: nodes that hang must not hide each other
    return {
        "ray": ray.__version__,
        "python": platform.python_version(),
        "nodes": [
            {
                "count": len(kinds[kind]),
                "cpus": kind[0],
                "gpus": kind[1],
                "memory": kinds[kind][0]["Resources"].get("memory", 0),
                "address": kinds[kind][0]["NodeManagerAddress"],
                "report": _report(task, first, ends),
            }
            for kind, (task, first) in asked.items()
        ],
    }


def _start(node: str) -> tuple[Any, Any]:
    """Start a task that reports its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A function within a function is sent whole; another would be imported there, which may be what fails.
    def look() -> dict[str, Any]:
        import platform
        import time
        from importlib.metadata import PackageNotFoundError, version

        import ray

        report: dict[str, Any] = {"time": time.time(), "python": platform.python_version(), "ray": ray.__version__}
        report |= {"pydata": "", "bottleneck": "", "why": "", "has_bfloat16": False}
        try:
            report["pydata"] = version("Bottleneck")
        except PackageNotFoundError:
            try:
                import bottleneck
                from bottleneck.networks.device import has_bfloat16

                report |= {"bottleneck": bottleneck.__version__, "has_bfloat16": has_bfloat16()}
            except Exception as error:
                report["why"] = f"{type(error).__name__}: {error}"
        return report

    task = ray.remote(num_cpus=0, max_retries=0)(look).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    return task, task.remote()


def _report(task: Any, first: Any, ends: float) -> dict[str, Any]:
    import ray

    try:
        ray.get(first, timeout=max(0.1, ends - time.monotonic()))
        before = time.time()
        report: dict[str, Any] = ray.get(task.remote(), timeout=5)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {_last_line(str(error))}"}
    # A look that imports nothing any more takes some milliseconds.
    return report | {"ahead": report["time"] - before}


if __name__ == "__main__":
    run()
