"""Where tests find real material: too large for the repository, so a test that needs some is skipped without it."""

import os
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "assets"


def asset(relative: str) -> Path:
    """Path of a file or folder of the assets; skips the test where it is not there."""
    path = find_asset(relative)
    if path is None:
        pytest.skip(f"needs {relative}, not found in {_root()}; BOTTLENECK_ASSETS names the folder that holds it")
    return path


def find_asset(relative: str) -> Path | None:
    """Path of a file or folder of the assets, where it is there."""
    path = _root() / relative
    return path if path.exists() else None


def _root() -> Path:
    return Path(os.environ.get("BOTTLENECK_ASSETS") or _BESIDE_THE_REPOSITORY)
