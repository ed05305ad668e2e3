"""Check this machine: packages, processor, memory, disks, weights."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from bottleneck.child import command, environment
from bottleneck.cores import count_cores
from bottleneck.doctor.checks import Check, Finding, State
from bottleneck.text import counted

DISTRIBUTION = "bottleneck-features"
NAMED = ("ray", "keras", "pyarrow", "pillow", "s3fs")
"""Packages whose versions are shown; all are compared."""
BACKENDS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "torch": ("torch",),
    "jax": ("jax",),
}
"""Distributions of each Keras backend, one of which is enough."""
NEEDED_BYTES = 3_000_000_000
"""Required memory: a VGG16 run on two cores takes 2.7 GB in all its processes."""
SHARED_BYTES = 1_000_000_000
"""Shared memory that Ray needs in /dev/shm."""
TEMPORARY_BYTES = 2_000_000_000
FULL = 0.95
"""Largest use of a disk to which Ray writes."""
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat")
WEIGHTS = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
WEIGHTS_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{WEIGHTS}"
WEIGHTS_SECONDS = 5
BACKEND_SECONDS = 100.0


def checks_of_machine() -> list[Check]:
    """The checks of this machine, in order."""
    return [
        Check("packages", packages),
        Check("network", backend, BACKEND_SECONDS + 10),
        Check("runtimes", runtimes),
        Check("processor", processor),
        Check("memory", memory),
        Check("temporary folder", temporary_folder),
        Check("Ray's token", token),
        Check("weights", weights),
    ]


def packages() -> Iterator[Finding]:
    """Compare the installed packages with the required ones."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    with contextlib.suppress(PackageNotFoundError):
        found = version("Bottleneck")
        told = (
            f"pydata's Bottleneck {found}, which is imported by the same name, is installed: pip uninstall Bottleneck"
        )
        yield Finding("packages", "failure", told)
    python = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = [Requirement(line) for line in requires(DISTRIBUTION) or []]
        pythons = metadata(DISTRIBUTION)["Requires-Python"] or ""
    except PackageNotFoundError:
        told = f"{DISTRIBUTION} is not installed, so versions are not compared: run `make setup` or pip install it"
        yield Finding("packages", "warning", told)
        return
    wrong = [] if python in SpecifierSet(pythons) else [f"Python is {python}, expected {pythons}"]
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            wrong += _differing(one.name, str(one.specifier))
    name = os.environ.get("KERAS_BACKEND", "tensorflow")
    installed = [one for one in BACKENDS.get(name, ()) if _version(one)]
    for one in wanted:
        if one.name in installed:
            wrong += _differing(one.name, str(one.specifier))
    if not installed:
        wrong.append(f"Keras' backend {name} is not installed, try pip install '{DISTRIBUTION}[cpu]'")
    if wrong:
        told = "; ".join(sorted(set(wrong)))
        yield Finding(
            "packages", "failure", f"{told}. Install what requirements.lock says, in an environment of its own"
        )
    else:
        versions = ", ".join(f"{one} {_version(one)}" for one in (DISTRIBUTION, *NAMED, *installed))
        yield Finding("packages", "ok", f"Python {python}, {versions}")


def _differing(name: str, specifier: str) -> list[str]:
    from packaging.specifiers import SpecifierSet

    found = _version(name)
    if found and SpecifierSet(specifier).contains(found, prereleases=True):
        return []
    return [f"{name} is {found or 'not installed'}, expected {specifier}"]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def backend() -> Iterator[Finding]:
    """Start Keras in a child process, as its libraries may crash, and ask it for GPUs."""
    num_gpus = _count_nvidia()
    try:
        done = subprocess.run(  # noqa: S603  # this Python, no shell
            command("bottleneck.networks.base"),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=BACKEND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        yield Finding("network", "failure", f"Keras did not start within {BACKEND_SECONDS:.0f} s")
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        yield Finding("network", "failure", f"Keras does not start: {why}. Set KERAS_BACKEND to one that is installed")
        return
    name, seen = done.stdout.split()[-2:]
    gpus = f"{seen} GPU{'s' if seen != '1' else ''}" if seen != "0" else "no GPU, it runs on the CPU"
    if num_gpus and seen == "0":
        told = f"this machine has {counted(num_gpus, 'GPU')}, and {name} sees none: pip install '{DISTRIBUTION}[gpu]'"
        yield Finding("network", "warning", f"{told} in an environment of its own, and look at CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("network", "ok", f"Keras starts on {name}; {gpus}")


def _count_nvidia() -> int:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)  # noqa: S607  # as in base
        return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if not listed.returncode else 0
    return 0


def runtimes() -> Iterator[Finding]:
    """Tell what executes networks on CPUs here, how fast it was, and where prepared networks are kept."""
    from bottleneck.networks.cache import cache_folder, load_probes
    from bottleneck.networks.runtimes.table import RUNTIMES, version_of

    found = [f"{name} {version_of(name)}" for name in RUNTIMES if version_of(name)]
    missing = [name for name in RUNTIMES if not version_of(name)]
    folder = cache_folder()
    there = folder
    while not os.path.exists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    lines = []
    for one in load_probes():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            rates = sorted(one["runtimes"].values(), key=lambda row: -row["images_per_second"])
            named = ", ".join(f"{row['runtime']} {row['images_per_second']:.1f}" for row in rates)
            if one["precision"] == "int8":
                named += f"; cosine to float32 {min(row['cosine'] for row in rates):.4f}"
            lines.append(f"{one['base']} {' '.join(one['layers'])}, {one['precision']}, images/s: {named}")
    told = ", ".join(found) + (f"; not installed: {', '.join(missing)}" if missing else "")
    told += f"; networks are kept in {folder}"
    if os.access(there, os.W_OK):
        yield Finding("runtimes", "ok", "; ".join([told, *lines]))
    else:
        hint = "which this user cannot write, so every start builds its network again: set BOTTLENECK_CACHE"
        yield Finding("runtimes", "warning", "; ".join([f"{told}, {hint}", *lines]))


def processor() -> Iterator[Finding]:
    """Check usable cores and bfloat16."""
    from bottleneck.networks.device import has_bfloat16

    cores, there = count_cores(), os.cpu_count() or 1
    told = f"{cores} core{'s' if cores > 1 else ''}" + (f" of {there}, by a quota or affinity" if cores < there else "")
    if has_bfloat16():
        yield Finding("processor", "ok", f"{told}; bfloat16 in hardware")
    else:
        told += "; neither AMX nor a GPU, so networks run in float32, several times slower"
        yield Finding("processor", "warning", f"{told}: choose another kind of machine for many images")


def memory() -> Iterator[Finding]:
    """Check free memory, within a container's limit, and shared memory."""
    import psutil

    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # ValueError where the limit is `max`
        limit, used, stat = (Path(name).read_text() for name in MEMORY_LIMITS)
        # What files were read of lately counts as used, but is given back when somebody wants it.
        cached = sum(int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file "))
        free = min(free, int(limit) - int(used) + cached)
    state: State = "ok" if free >= NEEDED_BYTES else "warning"
    hint = "" if state == "ok" else f"; VGG16 takes up to {_gb(NEEDED_BYTES)}: end other programs or take more memory"
    yield Finding("memory", state, f"{_gb(free)} free{hint}")
    if os.path.isdir("/dev/shm"):  # noqa: S108  # looked at, nothing is written there
        shared = shutil.disk_usage("/dev/shm").free  # noqa: S108  # as above
        state = "ok" if shared >= SHARED_BYTES else "warning"
        hint = "" if state == "ok" else f"; Ray wants {_gb(SHARED_BYTES)} and is slow without: docker run --shm-size=2g"
        yield Finding("shared memory", state, f"{_gb(shared)} free{hint}")


def temporary_folder() -> Iterator[Finding]:
    """Check the folder for Ray's logs and spilled objects."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder):
            usage = shutil.disk_usage(folder)
    except OSError as error:
        yield Finding("temporary folder", "failure", f"{folder} cannot be written: {error}. Set TMPDIR to one that can")
        return
    enough = usage.free >= TEMPORARY_BYTES and usage.used <= FULL * usage.total
    hint = "" if enough else f"; Ray needs {_gb(TEMPORARY_BYTES)} and a twentieth of the disk: free some or set TMPDIR"
    yield Finding("temporary folder", "ok" if enough else "warning", f"{_gb(usage.free)} free in {folder}{hint}")


def token() -> Iterator[Finding]:
    """Check that others cannot read the token file of a cluster."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.join(os.path.expanduser("~"), ".ray", "auth_token")
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            told = f"{path} can be read by other users (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}"
            yield Finding("Ray's token", "warning", told)
        else:
            yield Finding("Ray's token", "ok", f"{path} is its owner's alone")


def weights() -> Iterator[Finding]:
    """Check that the ImageNet weights of the default base are cached or can be downloaded."""
    from urllib.request import Request, urlopen

    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    path = os.path.join(home, "models", WEIGHTS)
    if os.path.isfile(path):
        yield Finding("weights", "ok", f"those of VGG16 are in {home}/models")
        return
    try:
        with urlopen(Request(WEIGHTS_URL, method="HEAD"), timeout=WEIGHTS_SECONDS):
            yield Finding("weights", "ok", "those of VGG16 are not here yet; they can be downloaded")
    except (OSError, ValueError) as error:
        told = f"those of VGG16 are not in {home}/models and cannot be downloaded here ({error})"
        yield Finding("weights", "warning", f"{told}: put Keras' file there, or give --weights FILE")


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
