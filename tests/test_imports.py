"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "text", "metrics", "pages", "hdf5", "heap", "retry", "shuffle", "cores"},
    {"progress", "choices", "labels", "bases", "child"},
    {"spec", "layers", "parquet", "objects", "estimate", "live", "dashboard", "doctor"},
    {"answers"},
    {"joblog", "rows", "folder", "bucket", "remote", "images", "networks", "audit"},
    {"store", "containers"},
    {"places", "decode", "listrows"},
    {"files", "webdataset", "tables", "lists", "weights", "audit_rows", "audit_revisions", "names", "describe"},
    {"sources"},
    {"listing", "footer", "guard", "base"},
    {"plan", "losses", "placement", "dealing"},
    {"features", "extend", "newton", "mlp", "splits"},
    {"compact", "prepare", "tally", "requeue", "evaluate", "verify", "recompute", "similar", "formats", "status"},
    {"member", "diff"},
    {"team"},
    {"leader"},
    {"head"},
    {"extract", "fitting", "drawing", "page", "export"},
    {"sections", "predict", "measure"},
    {"report", "stages", "session", "sheet", "machine", "access"},
    {"dataset", "nodes"},
    {"pipeline", "trainer"},
]
"""The modules of the library from the ground up; each imports only from layers below its own."""
MAY_IMPORT_RAY = {
    *("bottleneck.session", "bottleneck.dataset", "bottleneck.pipeline", "bottleneck.metrics", "bottleneck.trainer"),
    *("bottleneck.dashboard", "bottleneck.nodes", "jobs.benchmark_peer_ray"),
}
"""The last is a program by others, as it were, that the benchmark measures beside this project."""
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
MODULES = sorted((*(ROOT / "bottleneck").glob("*.py"), *(ROOT / "jobs").glob("*.py")))


def name_of(path: Path) -> str:
    return f"{path.parent.name}.{path.stem}".removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute, so that they can be read here"
            assert node.module is not None
            # `from bottleneck import base` imports a module, `from bottleneck.base import Base` a name.
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module in PACKAGES else {node.module}
            )
    return found


def own(path: Path) -> set[str]:
    names = {name_of(module) for module in MODULES}
    return imports_of(path) & names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    package, _, module = name_of(path).partition(".")
    if package == "jobs" or not module:
        return
    layers = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    assert module in layers, f"{module} has no place among the layers: give it one here and in the design"
    for imported in own(path):
        below = imported.removeprefix("bottleneck.")
        assert layers.get(below, -1) < layers[module], f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "bottleneck"], ids=name_of)
def test_the_library_knows_no_job(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.split(".")[0] in ("jobs", "cluster", "tests")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_ray_is_imported_where_it_is_driven_and_nowhere_else(path: Path) -> None:
    uses_ray = any(name.split(".")[0] == "ray" for name in imports_of(path))
    assert not uses_ray or name_of(path) in MAY_IMPORT_RAY


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "bottleneck"], ids=name_of)
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
    assert found == {"bottleneck.machine", "jobs.benchmark_process"}, "these mean the whole machine, others count_cores"
    assert {name_of(path) for path in MODULES if "joblib" in imports_of(path)} == {"bottleneck.cores"}


def test_the_verifier_shares_no_code_with_what_it_verifies() -> None:
    audits = {"bottleneck.audit", "bottleneck.audit_rows", "bottleneck.audit_revisions"}
    assert own(ROOT / "bottleneck/verify.py") == {*audits, "bottleneck.errors"}
    assert own(ROOT / "bottleneck/audit_revisions.py") == {"bottleneck.audit"}
    assert own(ROOT / "bottleneck/audit_rows.py") == {"bottleneck.audit"}
    assert own(ROOT / "bottleneck/audit.py") == {"bottleneck.errors"}


def run(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("module", ["bottleneck", "jobs.__main__", "bottleneck.store", "bottleneck.verify"])
def test_importing_costs_nothing(module: str) -> None:
    loaded = set(run(f"import {module}, sys; print(*sys.modules)", "-W", "error").split())
    allowed = {"fsspec", "numpy", "pyarrow"} if module == "bottleneck.verify" else set()
    assert not loaded & (HEAVY - allowed)


def test_the_options_of_a_job_cost_neither_ray_nor_keras_nor_scikit_learn() -> None:
    jobs = "classify, demo, evaluate, export, extract, fit, plan, predict, similar"
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
