"""The runtimes that take a network as a graph: what they are called, need and can do."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bottleneck.choices import check_choices
from bottleneck.networks.prepared import Forward
from bottleneck.networks.runtimes import ncnn_runtime, onnx_runtime, openvino_runtime
from bottleneck.spec import Precision


@dataclass(frozen=True)
class Runtime:
    """A library that runs graphs on CPUs."""

    package: str
    """Its name for `import` and in the package index."""
    start: Callable[[bytes, tuple[int, ...], Precision, int | None], Forward]
    """Load a graph for a batch shape [N, S, S, 3], a precision and a number of threads."""
    precisions: tuple[Precision, ...] = ("float32",)
    takes: Callable[[bytes], bool] = lambda graph: True
    """Whether it can run a graph, and may be the fastest to do so."""

    def __post_init__(self) -> None:
        check_choices(self)


RUNTIMES = {
    "onnxruntime": Runtime(
        "onnxruntime",
        lambda graph, shape, precision, threads: onnx_runtime.start(graph, threads),
        ("float32", "int8"),
    ),
    "ncnn": Runtime(
        "ncnn",
        lambda graph, shape, precision, threads: ncnn_runtime.start(graph, threads),
        takes=ncnn_runtime.takes,
    ),
    "openvino": Runtime("openvino", openvino_runtime.start, ("float32", "bfloat16", "int8")),
}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(RUNTIMES[name].package) is not None


def version_of(name: str) -> str:
    """The version of a runtime; empty if it is not installed."""
    try:
        return version(RUNTIMES[name].package)
    except PackageNotFoundError:
        return ""
