"""Weights from elsewhere can be wrong, but not read another file, take the memory or never end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bottleneck.errors import WeightsError
from bottleneck.networks.weights import load_network
from bottleneck.networks.weights_file import check_hdf5

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
LAYOUTS = ("network.h5", "network.weights.h5")
"""Keras' two, which it tells apart by the name."""
HUGE = 1 << 40
MEMORY_KB = 300_000
"""That refusing all of them may take, beside what importing Keras and building the network take."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good weights of mobilenet_0.25 in both layouts."""
    folder, network = tmp_path_factory.mktemp("weights"), load_network("mobilenet_0.25", "random:0", ())
    network.save(folder / LAYOUTS[0])
    network.save_weights(folder / LAYOUTS[1])
    return {name: (folder / name).read_bytes() for name in LAYOUTS}


def kernel_of(file: h5py.File) -> str:
    """The name of one array of weights."""
    found: list[str] = []
    file.visititems(lambda name, thing: found.append(name) if getattr(thing, "ndim", 0) == 4 else None)
    return found[0]


def instead(make: Callable[[h5py.File, str, Any, Path], Any]) -> Callable[[Path, Path], None]:
    """Put something in the place of one array; it is given the file, the array's name, its shape and a good file."""

    def harm(path: Path, other: Path) -> None:
        with h5py.File(path, "r+") as file:
            name = kernel_of(file)
            shape = file[name].shape
            del file[name]
            make(file, name, shape, other)

    return harm


def link(file: h5py.File, name: str, shape: Any, other: Path) -> None:
    file[name] = h5py.ExternalLink(str(other), name)


def soft_link(file: h5py.File, name: str, shape: Any, other: Path) -> None:
    file[name] = h5py.SoftLink("/elsewhere")


def external(file: h5py.File, name: str, shape: Any, other: Path) -> None:
    file.create_dataset(name, shape, np.float32, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str, shape: Any, other: Path) -> None:
    layout = h5py.VirtualLayout(shape, np.float32)
    layout[...] = h5py.VirtualSource(str(other), name, shape)
    file.create_virtual_dataset(name, layout)


def outside_group(path: Path, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = kernel_of(file).partition("/")[0]
        del file[group]
        file[group] = h5py.ExternalLink(str(other), group)


def outside_dependencies(path: Path, other: Path) -> None:
    """A name that only some readers follow."""
    with h5py.File(path, "r+") as file:
        file["model_weights_" if "model_weights" in file else "model_weights"] = h5py.ExternalLink(str(other), "/")


def bomb(file: h5py.File, name: str, shape: Any, other: Path) -> None:
    file.create_dataset(name, (HUGE,), np.float32, chunks=(1024,), compression="gzip")


def dense_bomb(file: h5py.File, name: str, shape: Any, other: Path) -> None:
    """500 MB of the right kind, stored as 500 kB."""
    file.create_dataset(name, (125_000_000,), np.float32, chunks=(1 << 20,), compression="gzip", data=None, fillvalue=1)


def many_bombs(path: Path, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        for number in range(1000):
            file.create_dataset(f"more/{number}", (1_000_000,), np.float32, chunks=(1_000_000,))


def itself(path: Path, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file[kernel_of(file)].parent
        group["again"], group["and again"] = group, group


def deep(path: Path, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.create_group("/".join("g" * 1000))


def crowd(path: Path, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        for number in range(60_000):
            file[f"crowd/{number:05d}"] = h5py.SoftLink("/")


def renamed_zip(path: Path, other: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(other, "model.weights.h5")
        archive.writestr("config.json", '{"class_name": "Lambda"}')


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


HARMS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a link to another file": (instead(link), "link to something else"),
    "a link inside": (instead(soft_link), "link to something else"),
    "values in another file": (instead(external), "in another file"),
    "values of another file's array": (instead(virtual), "in another file"),
    "a group of another file": (outside_group, "link to something else"),
    "a link no layer needs": (outside_dependencies, "link to something else"),
    "terabytes declared": (instead(bomb), "far more bytes than the file has"),
    "500 MB declared": (instead(dense_bomb), "far more bytes than the file has"),
    "a thousand arrays of 4 MB": (many_bombs, "far more bytes than the file has"),
    "texts": (instead(lambda f, n, s, o: f.create_dataset(n, s, h5py.string_dtype())), "expected numbers"),
    "arrays of any length": (
        instead(lambda f, n, s, o: f.create_dataset(n, s, h5py.vlen_dtype("f4"))),
        "expected numb",
    ),
    "records": (instead(lambda f, n, s, o: f.create_dataset(n, s, [("a", "f4")])), "expected numbers"),
    "references": (instead(lambda f, n, s, o: f.create_dataset(n, s, h5py.ref_dtype)), "expected numbers"),
    "nothing": (instead(lambda f, n, s, o: f.create_dataset(n, data=h5py.Empty("f4"))), "no array of numbers"),
    "a type alone": (instead(lambda f, n, s, o: f.__setitem__(n, np.dtype("f4"))), "no array of numbers"),
    "a group that holds itself": (itself, "groups more than|far more bytes"),
    "a thousand groups deep": (deep, "groups more than"),
    "a crowd of links": (crowd, "more than 50,000 objects"),
    "a .keras file": (renamed_zip, "signature not found"),
    "a pickle": (lambda path, other: path.write_bytes(pickle.dumps(Canary())) and None, "signature not found"),
}


def harmed(folder: Path, written: dict[str, bytes], layout: str, harm: str) -> Path:
    folder.mkdir()
    path, other = folder / layout, folder / f"other.{layout}"
    path.write_bytes(written[layout])
    other.write_bytes(written[layout])
    HARMS[harm][0](path, other)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_weights_are_let_through(tmp_path: Path, written: dict[str, bytes], layout: str) -> None:
    path = tmp_path / layout
    path.write_bytes(written[layout])
    check_hdf5(str(path))
    with h5py.File(path, "r+") as file:  # as people pack them
        name = kernel_of(file)
        values = file[name][...]
        del file[name]
        file.create_dataset(name, data=values, compression="gzip", chunks=True)
    load_network("mobilenet_0.25", str(path), ())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("harm", HARMS)
def test_what_does_harm_is_found_before_any_value_is_read(
    tmp_path: Path, written: dict[str, bytes], layout: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = harmed(tmp_path / "in", written, layout, harm)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises((ValueError, OSError), match=HARMS[harm][1]):
        check_hdf5(str(path))
    assert time.monotonic() - started < 10
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in"]


PROGRAM = f"""
import sys, time
from bottleneck.errors import WeightsError
from bottleneck.networks.weights import load_network

def peak_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

load_network("mobilenet_0.25", sys.argv[1], ())
before = peak_kb()
for path in sys.argv[2:]:
    started = time.monotonic()
    try:
        load_network("mobilenet_0.25", path, ())
    except WeightsError as error:
        assert path in str(error), error
    else:
        raise AssertionError(f"{{path}} was loaded")
    assert time.monotonic() - started < 10, path
    assert peak_kb() - before < {MEMORY_KB}, (path, before, peak_kb())
print("refused", len(sys.argv) - 2)
"""


def test_what_does_harm_is_refused_quickly_and_in_little_memory(tmp_path: Path, written: dict[str, bytes]) -> None:
    good = tmp_path / LAYOUTS[1]
    good.write_bytes(written[LAYOUTS[1]])
    worst = [
        harm
        for harm in HARMS
        if any(word in harm for word in ("declared", "thousand", "itself", "crowd", "file", "pic"))
    ]
    paths = [str(harmed(tmp_path / f"{n}", written, LAYOUTS[n % 2], harm)) for n, harm in enumerate(worst)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(good), *paths],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused", str(len(worst))]
    assert not (tmp_path / "unpickled").exists()


def test_the_error_names_the_file_and_what_is_wrong(tmp_path: Path, written: dict[str, bytes]) -> None:
    path = harmed(tmp_path / "in", written, LAYOUTS[1], "a link to another file")
    with pytest.raises(WeightsError, match=rf"do not fit mobilenet_0.25.*{path}.*is a link to something else"):
        load_network("mobilenet_0.25", str(path), ())
