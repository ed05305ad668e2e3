"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANKS = (
    {""},  # the modules directly in bottleneck/
    {"storage"},
    {"networks", "sources"},
    {"dataset"},
    {"extract"},
    {"heads"},
    {"inspect", "distributed"},
    {"doctor"},
    {"jobs"},
)
"""The folders from the ground up; each imports only from those below its own, and from itself. `audit` stands apart."""
MAY_IMPORT_RAY = ("bottleneck.distributed.", "bottleneck.doctor.cluster", "jobs.benchmark.peer_ray")
"""The last is a program by others, as it were, that the benchmark measures beside this project."""
MAX_LINES = 300
HEAVY = {
    "numpy",
    "pyarrow",
    "ray",
    "tensorflow",
    "keras",
    "s3fs",
    "fsspec",
    "PIL",
    "sklearn",
    "pandas",
    "h5py",
    "tyro",
    "matplotlib",
}
PACKAGES = ("bottleneck", "jobs")
MODULES = sorted((*(ROOT / "bottleneck").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder_of(module: str) -> str:
    """`bottleneck.storage.local` -> `storage`, `bottleneck.errors` -> ``, `jobs.plan` -> `jobs`."""
    package, *parts = module.split(".")
    if package == "jobs":
        return "jobs"
    return parts[0] if parts and (ROOT / "bottleneck" / parts[0]).is_dir() else ""


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute, so that they can be read here"
            assert node.module is not None
            # `from bottleneck import base` imports a module, `from bottleneck.networks.base import Base` a name.
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module in PACKAGES else {node.module}
            )
    return found


def own(path: Path) -> set[str]:
    packages = {name_of(module) for module in MODULES if module.name == "__init__.py"}
    return imports_of(path) & NAMES - packages


NAMES = {name_of(module) for module in MODULES}
LIBRARY = [path for path in MODULES if path.is_relative_to(ROOT / "bottleneck")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    ranks = {folder: rank for rank, folders in enumerate(RANKS) for folder in folders}
    if path == ROOT / "bottleneck/__init__.py":
        return  # the public names of all folders, each imported when it is first used
    folder = folder_of(name_of(path))
    for imported in own(path):
        below = folder_of(imported)
        if folder == "audit":
            assert below == "audit" or imported == "bottleneck.errors", f"{path} imports {imported}"
        elif below == "audit":
            assert folder == "jobs", f"{path} imports {imported}: only jobs ask for an audit"
        else:
            assert below == folder or ranks[below] < ranks[folder], f"{path} imports {imported}, which is not below it"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_every_module_is_on_its_folders_map(path: Path) -> None:
    if path.name == "__init__.py" or path.parent == ROOT / "bottleneck":
        return
    folder = ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text())) or ""
    first_line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    assert any(line.split() == [path.stem, *first_line.split()] for line in folder.splitlines())


def test_no_two_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name != "Config"  # each job has one
    )
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_read_in_one_go(path: Path) -> None:
    num_lines = len(path.read_text().splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: what are the ideas in it?"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_knows_no_job(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.split(".")[0] in ("jobs", "cluster", "tests")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_ray_is_imported_where_it_is_driven_and_nowhere_else(path: Path) -> None:
    uses_ray = any(name.split(".")[0] == "ray" for name in imports_of(path))
    assert not uses_ray or name_of(path).startswith(MAY_IMPORT_RAY)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_no_process_of_the_library_starts_its_callers_main_module_again(path: Path) -> None:
    """As `multiprocessing` does; `child` is what starts processes."""
    assert not imports_of(path) & {"multiprocessing", "concurrent.futures.process"}
    assert "ProcessPoolExecutor" not in path.read_text()


def test_cores_are_counted_in_one_way() -> None:
    found = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("cpu_count", "process_cpu_count", "sched_getaffinity")
    }
    assert found == {"bottleneck.doctor.machine", "jobs.benchmark.process"}, (
        "these mean the whole machine, others count_cores"
    )
    assert {name_of(path) for path in MODULES if "joblib" in imports_of(path)} == {"bottleneck.cores"}


def test_the_verifier_shares_no_code_with_what_it_verifies() -> None:
    for path in (ROOT / "bottleneck/audit").glob("*.py"):
        others = {name for name in own(path) if not name.startswith("bottleneck.audit.")}
        assert others <= {"bottleneck.errors"}, f"{path} imports {others}"


def run(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "module", ["bottleneck", "jobs.__main__", "bottleneck.storage.store", "bottleneck.audit.verify"]
)
def test_importing_costs_nothing(module: str) -> None:
    loaded = set(run(f"import {module}, sys; print(*sys.modules)", "-W", "error").split())
    allowed = {"fsspec", "numpy", "pyarrow"} if module == "bottleneck.audit.verify" else set()
    assert not loaded & (HEAVY - allowed)


def test_the_options_of_a_job_cost_neither_ray_nor_keras_nor_scikit_learn() -> None:
    jobs = "classify, demo, duplicates, evaluate, export, extract, fit, plan, predict, similar"
    loaded = set(run(f"import sys; from jobs import {jobs}; print(*sys.modules)").split())
    assert not loaded & {"ray", "keras", "tensorflow", "sklearn", "joblib", "pandas", "matplotlib", "s3fs"}


def test_the_jobs_are_listed_without_importing_them() -> None:
    listed, loaded = run("import jobs.__main__ as m, sys; m.main(['--help']); print(*sys.modules)").rsplit("\n", 2)[:2]
    assert "Extract features of every image" in listed
    assert not set(loaded.split()) & HEAVY


@pytest.mark.parametrize(
    "code",
    ["import pandas; import bottleneck", "import bottleneck; import pandas"],
)
def test_pandas_lives_beside_a_package_of_this_name(code: str) -> None:
    """pandas looks for another project's package called bottleneck, and finds this one."""
    values = "pandas.DataFrame({'a': [1.0, None, 3.0]})"
    text = run(f"{code}; frame = {values}; print(frame.a.mean(), frame.a.sum(), bottleneck.__file__)", "-W", "error")
    mean, total, path = text.split()
    assert (mean, total) == ("2.0", "4.0")
    assert Path(path) == ROOT / "bottleneck/__init__.py"


def test_ray_data_lives_beside_a_package_of_this_name() -> None:
    run("import bottleneck; import ray.data", "-W", "error:Pandas requires", "-W", "error::ImportWarning")
