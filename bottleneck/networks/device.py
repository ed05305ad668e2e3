"""The device a network runs on, and whether it is fast in bfloat16 or int8."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bottleneck.networks.keras_import import import_keras

CORES_PER_ACTOR = 8
"""A network on a CPU scales to about this many cores; more cores get more networks."""


def has_bfloat16() -> bool:
    """Whether this machine is fast in bfloat16: a GPU from Ampere up, else a CPU with AMX.

    A CPU with AVX512-BF16 alone is not: on an Intel Xeon with AMX switched off VGG16 ran at 4.9 images/s, in float32 at
    8.3 with the same library and at 11 with Winograd's algorithm.
    """
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],  # noqa: S607  # where it is differs from system to system
            capture_output=True,
            text=True,
            timeout=10,
        )
        if found.returncode == 0 and found.stdout.strip():
            return min(float(line) for line in found.stdout.split()) >= 8.0
    except (OSError, ValueError, subprocess.TimeoutExpired):
        pass
    return "amx_bf16" in _cpu_flags()


def has_vnni() -> bool:
    """Whether this machine's CPU multiplies 8-bit numbers without overflow, and faster than float32."""
    return not _cpu_flags().isdisjoint(("avx512_vnni", "avx_vnni", "amx_int8"))


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def keras_has_gpu() -> bool:
    """Whether Keras' backend may find a GPU on this machine, judged without importing it."""
    if not os.path.exists("/dev/nvidia0"):
        return False
    return os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow" or not _is_installed("tensorflow-cpu")


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def count_gpus() -> int:
    """GPUs that Keras' backend has on this machine. Imports Keras."""
    keras = import_keras()
    if keras.backend.backend() == "torch":
        import torch

        return int(torch.cuda.device_count())
    return sum("gpu" in name or "cuda" in name for name in keras.distribution.list_devices())


def device_name(keras: Any) -> str:
    """What the network runs on, for the footer: backend and device."""
    backend: str = keras.backend.backend()
    if backend == "torch":  # for which Keras lists no devices
        import torch

        return f"torch {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}"
    return f"{backend} {keras.distribution.list_devices()[0]}"
