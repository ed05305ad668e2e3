"""The device a network runs on, and whether it has bfloat16 in hardware."""

import subprocess
from typing import Any

from bottleneck.networks.keras_import import import_keras

CORES_PER_ACTOR = 8
"""A network on a CPU scales to about this many cores; more cores get more networks."""


def has_bfloat16() -> bool:
    """Whether this machine has bfloat16 in hardware: a GPU from Ampere up, else a CPU with AMX or AVX512-BF16."""
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
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags


def count_gpus() -> int:
    """GPUs that Keras' backend has on this machine. Imports Keras."""
    keras = import_keras()
    if keras.backend.backend() == "torch":
        import torch

        return int(torch.cuda.device_count())
    if keras.backend.backend() == "openvino":
        return 0
    return sum("gpu" in name or "cuda" in name for name in keras.distribution.list_devices())


def device_name(keras: Any) -> str:
    """What the network runs on, for the footer: backend and device."""
    backend: str = keras.backend.backend()
    if backend == "torch":  # for which Keras lists no devices
        import torch

        return f"torch {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}"
    if backend == "openvino":
        return "openvino cpu"
    return f"{backend} {keras.distribution.list_devices()[0]}"
