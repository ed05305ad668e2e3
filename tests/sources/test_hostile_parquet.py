"""Parquet from elsewhere is read as plain values: nothing is unpickled, and no small file takes the memory.

Ray registers types with pyarrow whose values are unpickled when they are read. Once `ray.data` is imported, as it is in
every job that extracts or fits, any Parquet file can ask for them in its metadata, so that is how these tests run.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck.audit.verify import verify
from bottleneck.dataset.features import open_features, read_table
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.requeue import requeue_plan
from bottleneck.dataset.write import write_shard
from bottleneck.errors import BottleneckError, CorruptError, UsageError
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import open_store


@pytest.fixture(scope="module", autouse=True)
def types_of_ray() -> None:
    pytest.importorskip("ray.data")


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["CANARY"],))


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pickle that makes a folder when it is read, which no test may find."""
    monkeypatch.setenv("CANARY", str(tmp_path / "unpickled"))
    yield
    assert not (tmp_path / "unpickled").exists()


NAMES = [
    *["ray.data.arrow_pickled_object", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"],
    *["ray.data.arrow_variable_shaped_tensor", "arrow.py_extension_type", "pandas.interval", "arrow.json"],
]


def disguised(table: pa.Table, column: str, extension: str) -> pa.Table:
    """The table with a column of pickles, whose field says in its metadata that it is of a registered type."""
    values = pa.array([pickle.dumps(Canary())] * len(table), pa.large_binary())
    metadata = {"ARROW:extension:name": extension, "ARROW:extension:metadata": pickle.dumps(Canary())}
    return table.set_column(
        table.schema.get_field_index(column), pa.field(column, pa.large_binary(), metadata=metadata), values
    )


def test_rays_type_really_unpickles(tmp_path: Path) -> None:
    """What the other tests are about: if this fails, they prove nothing any more."""
    pq.write_table(disguised(pa.table({"a": ["x"]}), "a", NAMES[0]), tmp_path / "a.parquet")
    pq.read_table(tmp_path / "a.parquet").column("a").to_pylist()
    assert (tmp_path / "unpickled").is_dir()
    (tmp_path / "unpickled").rmdir()


# Sources


def images_of(source: Path, **reading: Any) -> list[Any]:
    asked = resolve_reading(str(source), Reading(**reading))
    opened = open_source(str(source), asked)
    images = list(opened.images(Counter()))
    return [(image.key, image.label, data) for image, data in zip(images, opened.read(images), strict=True)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", ["label", "image", "other"])
def test_no_column_of_a_table_of_images_is_unpickled(tmp_path: Path, column: str, name: str) -> None:
    pictures = [tiny.jpeg(n) for n in range(3)]
    table = pa.table({"image": pa.array(pictures, pa.binary()), "label": ["a", "b", "c"], "other": ["x", "y", "z"]})
    (tmp_path / "source").mkdir()
    pq.write_table(disguised(table, column, name), tmp_path / "source" / "a.parquet")
    with contextlib.suppress(UsageError):  # or, where the type is not known, plain bytes
        found = images_of(tmp_path / "source", source_format="parquet", image_column="image")
        assert len(found) == 3
        assert column == "image" or [data for _, _, data in found] == pictures


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", ["uri", "label"])
def test_no_column_of_a_list_is_unpickled(tmp_path: Path, column: str, name: str) -> None:
    tiny.photos(tmp_path / "source", 2)
    table = pa.table({"uri": ["dogs/0000.jpg", "cats/0001.jpg"], "label": ["a", "b"]})
    pq.write_table(disguised(table, column, name), tmp_path / "source" / "list.parquet")
    with pytest.raises(UsageError, match="list"):
        images_of(tmp_path / "source" / "list.parquet", source_format="list")


# Outputs


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """An extracted output with a rejected image."""
    tiny.write_files(tiny.photos(tmp_path / "photos", 4), {"cats/9.jpg": b"no image"})
    plan = make_plan(str(tmp_path / "photos"), str(tmp_path / "features"), tiny.spec())
    [shard] = plan.shards()
    keys = [image.key for image in read_images(open_store(plan.output), shard)]
    rows = tiny.data_rows(tiny.spec(), keys, rejected={"cats/9.jpg": "not_an_image"})
    write_shard(open_store(plan.output), plan.data_name(0), tiny.spec(), 0, rows, run_id="test", device="none")
    return plan


def harm(plan: Plan, tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> str:
    """Write the only data file anew, changed, with the footer that says that all is well."""
    path = tmp_path / "features" / plan.data_name(0)
    footer = pq.read_metadata(path).metadata[b"bottleneck"]
    table = change(pq.read_table(path))
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"bottleneck": footer.decode()})
    return plan.data_name(0)


@pytest.mark.parametrize("name", NAMES[:5])
@pytest.mark.parametrize("column", ["key", "label", "reason", "status", tiny.LAYERS[0]])
def test_no_column_of_a_data_file_is_unpickled(plan: Plan, tmp_path: Path, column: str, name: str) -> None:
    file = harm(plan, tmp_path, lambda table: disguised(table, column, name))
    with pytest.raises(CorruptError, match=f"{file} is damaged"):
        list(open_features(plan.output, allow_incomplete=True).keyed_batches())
    with pytest.raises(BottleneckError):
        requeue_plan(plan, ["not_an_image"])
    report = verify(plan.output, full=True)
    assert report.exit_code == 1
    assert file in str(report.corrupt)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_columns(["status"]), "it has no column status"),
        (lambda table: table.set_column(0, "key", pa.array(range(len(table)))), "its column key is int64"),
        (lambda table: table.append_column("more", pa.array(range(len(table)))), "its column more is int64"),
        (lambda table: table.append_column("x:avg", pa.array([[1.0]] * len(table))), "its column x:avg is list"),
    ],
)
def test_a_data_file_with_other_columns_is_told(plan: Plan, tmp_path: Path, change: Any, words: str) -> None:
    file = harm(plan, tmp_path, change)
    with pytest.raises(CorruptError, match=words):
        list(open_features(plan.output, allow_incomplete=True).keyed_batches())
    with pytest.raises(CorruptError, match=words):
        read_table(open_store(plan.output), file, ["key", "status"])


# Small files that say much

BOMBS = """
import sys
from collections import Counter
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from bottleneck.errors import UsageError
from bottleneck.sources.open import open_source
from bottleneck.sources.reading import Reading

def peak_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

folder = Path(sys.argv[1])
rows = 400_000
long_text = "x" * 1_000_000
some = pa.array([0] * rows, pa.int8())
one_text = pa.DictionaryArray.from_arrays(some, [long_text])
one_image = pa.DictionaryArray.from_arrays(some, pa.array([tiny.jpeg(0)], pa.binary()))
noise = pa.array([bytes([n % 256] * 40) for n in range(rows)], pa.binary())
tables = {
    "rows": ("parquet", {"image": pa.nulls(50_000_000, pa.binary())}),
    "label": ("parquet", {"image": noise, "label": one_text}),
    "same image": ("parquet", {"image": one_image}),
    "names": ("list", {"uri": one_text}),
    "labels": ("list", {"uri": pa.array([f"{n}.jpg" for n in range(rows)]), "label": one_text}),
}
for name, (kind, columns) in tables.items():
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="none" if name == "label" else "zstd")
kinds = {name: kind for name, (kind, _) in tables.items()}
del tables, one_text, one_image, noise, some
pa.default_memory_pool().release_unused()
before = peak_kb()
for path, kind in kinds.items():
    try:
        list(open_source(str(folder / f"{path}.parquet"), Reading(source_format=kind)).images(Counter()))
        raise AssertionError(path)
    except UsageError as error:
        print(path, (folder / f"{path}.parquet").stat().st_size, peak_kb() - before, error, file=sys.stderr)
    assert peak_kb() - before < 1_000_000, (path, before, peak_kb())
print("refused")
"""


def test_small_files_that_say_they_hold_gigabytes_are_refused_in_little_memory(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"]
