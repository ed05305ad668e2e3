"""What requirements.lock installs is under licences that allow a program under Apache-2.0 to use it."""

from __future__ import annotations

import re
from email.message import Message
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib"),
    "MPL-2.0",  # asks for the sources of changed files of its own only, and none are changed
}
"""By their SPDX identifiers."""
MEANT = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""What classifiers and older packages say instead."""
UNSAID = {"namex": "Apache-2.0"}
"""Packages whose metadata has no word of it, and the licence in the file that comes with them."""


def licences_of(name: str, said: Any) -> set[str]:
    """The identifiers a package's metadata gives, as they stand where they are none that is known.

    A choice between licences counts as all of them: each is to be known.
    """
    text = said.get("License-Expression") or ""
    classifiers = [one for one in said.get_all("Classifier", []) if one.startswith("License :: ")]
    if not text and classifiers:
        return {MEANT.get(one.rpartition(" :: ")[2], one) for one in classifiers}
    text = text or said.get("License") or UNSAID.get(name, "nothing")
    if text in MEANT:
        return {MEANT[text]}
    return set(re.split(r"\s+(?:AND|OR)\s+", re.sub(r"[()]", " ", text).strip()))


def locked() -> list[str]:
    """The packages of requirements.lock that are meant for this machine."""
    lines = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    pins = [Requirement(line.partition(" --hash")[0].strip()) for line in lines if re.match(r"[a-z0-9]", line)]
    return sorted({pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()})


def test_every_locked_package_has_a_licence_that_is_allowed() -> None:
    names = locked()
    assert len(names) > 100
    found = {name: licences_of(name, metadata(name)) for name in names}
    assert {name: licences for name, licences in found.items() if not licences <= ALLOWED} == {}


def test_packages_that_say_no_licence_still_say_none() -> None:
    for name in UNSAID:
        assert licences_of("", metadata(name)) == {"nothing"}, f"{name} says its licence by now: leave it out of UNSAID"


@pytest.mark.parametrize(
    ("fields", "licences"),
    [
        ([("License-Expression", "MIT AND (GPL-3.0-only OR BSD-3-Clause)")], {"MIT", "GPL-3.0-only", "BSD-3-Clause"}),
        ([("License-Expression", "Apache-2.0 WITH LLVM-exception")], {"Apache-2.0 WITH LLVM-exception"}),
        (
            [("License", "MIT"), ("Classifier", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)")],
            None,
        ),
        ([("License", "Apache 2.0"), ("Classifier", "Programming Language :: Python")], {"Apache-2.0"}),
        ([("Classifier", "License :: Other/Proprietary License")], None),
        ([("License", "as the file says")], None),
        ([], None),
    ],
)
def test_what_a_package_says_is_understood_or_not_allowed(
    fields: list[tuple[str, str]], licences: set[str] | None
) -> None:
    said = Message()
    for field, value in fields:
        said[field] = value
    found = licences_of("a package", said)
    assert found == licences or (licences is None and not found <= ALLOWED)
