"""The locks install what they name with whatever pip a distribution brings, whatever is released after them."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ["requirements.lock", "tests/requirements.lock", "cluster/cpu.lock", "cluster/gpu.lock"]
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;]+)", re.MULTILINE)


def pins(lock: str) -> dict[str, set[str]]:
    """Every package of a lock with its version, or versions where they differ between Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in PIN.findall((ROOT / lock).read_text()):
        found.setdefault(name, set()).add(version)
    return found


def make_wheel(folder: Path, name: str, version: str, metadata: str = "") -> str:
    """Write an empty wheel and return its sha256."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install_line() -> str:
    """The command with which `make setup` installs requirements.lock."""
    planned = subprocess.run(
        ["make", "--always-make", "--dry-run", "setup", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    [line] = [line for line in planned.splitlines() if line.endswith(" requirements.lock")]
    return line


@pytest.fixture(scope="module")
def locked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock of two packages, of which `needs` requires `has[extra]`, of which a newer release is there as well."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "wheels").mkdir()
    extra = "Provides-Extra: more\n"
    hashes = {
        "has==1.0": make_wheel(folder / "wheels", "has", "1.0", extra),
        "needs==1.0": make_wheel(folder / "wheels", "needs", "1.0", "Requires-Dist: has[more]>=1.0\n"),
    }
    make_wheel(folder / "wheels", "has", "2.0", extra)
    lock = "".join(f"{pin} \\\n    --hash=sha256:{sha256}\n" for pin, sha256 in hashes.items())
    (folder / "requirements.lock").write_text(lock)
    return folder


@pytest.mark.parametrize("pip", ["bundled", "23.0"])
def test_a_release_after_the_lock_changes_nothing(pip: str, locked_folder: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / ".venv", with_pip=True)
    python = tmp_path / ".venv" / "bin" / "python"
    if pip != "bundled":
        got = subprocess.run([python, "-m", "pip", "install", "--quiet", f"pip=={pip}"], capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"pip {pip} cannot be had here: {got.stderr.strip()[-200:]}")
    (tmp_path / "requirements.lock").write_text((locked_folder / "requirements.lock").read_text())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(locked_folder / "wheels"),
    }  # fmt: skip

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    line = install_line()
    resolving = run(line.replace(" --no-deps", ""))
    version = run(".venv/bin/python -m pip --version").stdout.split()[1]
    if Version(version) < Version("24"):
        assert "must have their versions pinned" in resolving.stderr, "this test no longer shows what it is for"
    done = run(line)
    assert done.returncode == 0, done.stderr
    assert set(run(".venv/bin/python -m pip freeze").stdout.split()) == {"has==1.0", "needs==1.0"}


@pytest.mark.parametrize("path", ["Makefile", "cluster/Dockerfile"])
def test_every_lock_is_installed_without_resolving(path: str) -> None:
    text = (ROOT / path).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "--require-hashes" in line]
    assert lines
    assert all("--no-deps" in line for line in lines)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_the_versions_that_the_tests_ran_with(lock: str) -> None:
    tested = pins("tests/requirements.lock")
    differ = {name for name, versions in pins(lock).items() if name in tested and versions != tested[name]}
    assert differ == set(), "run `make lock`"


def test_users_install_no_test_tools() -> None:
    assert not {"pytest", "moto", "mypy", "ruff", "duckdb", "polars", "hypothesis"} & set(pins(LOCKS[0]))
    assert set(pins(LOCKS[0])) < set(pins(LOCKS[1]))
