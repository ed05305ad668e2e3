"""SECURITY.md is kept: what it forbids is not in the code, and the tests it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((*(ROOT / "bottleneck").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")))
EXECUTES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "code", "runpy"}
CALLS = {"load_model", "model_from_json", "deserialize_keras_object", "extractall", "unpack_archive"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_nothing_that_executes_what_it_reads_is_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if ast.unparse(node) == "from joblib import cpu_count":
                continue  # which reads nothing
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            assert not EXECUTES & {part for name in names for part in name.split(".")}, ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in (*BUILT_IN, "torch.load"), ast.unparse(node)
            if (path.name, called) != ("ncnn_runtime.py", "net.load_model"):  # which reads numbers written by ourselves
                assert called.rpartition(".")[2] not in CALLS, ast.unparse(node)
            for keyword in node.keywords:
                assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False", ast.unparse(node)
                assert keyword.arg != "shell" or ast.unparse(keyword.value) == "False", ast.unparse(node)


def test_every_exception_from_a_security_rule_says_why() -> None:
    excused = [line for path in SOURCES for line in path.read_text().splitlines() if re.search(r"noqa: S\d", line)]
    assert excused
    assert not [line for line in excused if not re.search(r"noqa: S\d+(, ?S\d+)*  # \w", line)]


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`((?:faults/)?test_\w+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 30
    for file, test in named:
        [path] = (ROOT / "tests").rglob(file)
        assert f"\ndef {test}(" in path.read_text(), f"{file}::{test}"
