"""What jobs show, as a CSV or Parquet file."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck.errors import UsageError
from jobs.__main__ import main
from jobs.table_file import check_table_file, write_table_file

SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("cosine", pa.float64())])
STUB = ("--base", "stub", "--weights", "random:0", "--local")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of twelve pictures, and a head on them."""
    folder = tmp_path_factory.mktemp("tables")
    tiny.photos(folder / "photos", 12)
    assert main(["extract", str(folder / "photos"), str(folder / "features"), *STUB]) == 0
    request = ["--c", "1", "--num-workers", "0", "--test-fraction", "0"]
    assert main(["fit", str(folder / "features"), str(folder / "head"), *request]) == 0
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    code = main(["--json", *arguments])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_written_whole_and_once(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"new/table{suffix}"
    check_table_file(str(file))
    table = pa.table([["a", 'b\n"c"'], [0.1, 1 / 3]], schema=SCHEMA)
    write_table_file(str(file), SCHEMA, [table, [{"key": "d"}]])
    expected = [("a", 0.1), ('b\n"c"', 1 / 3), ("d", None)]
    if suffix == ".csv":
        found = [(row["key"], float(row["cosine"]) if row["cosine"] else None) for row in rows_of(file)]
    else:
        found = [tuple(row.values()) for row in pq.read_table(file).to_pylist()]
    assert found == expected
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(UsageError, match="is there already"):
        check_table_file(str(file))


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ending in \.csv or \.parquet. Received: x\.xlsx"):
        check_table_file("x.xlsx")
    write_table_file(None, SCHEMA, [])
    assert not list(tmp_path.iterdir())


def test_similar_images_are_rows(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
    keys = ("cats/0001.jpg", str(tmp_path / "no.jpg"), "dogs/0004.jpg")
    table = str(tmp_path / "t.csv")
    code, result = result_of(capsys, "similar", *keys, str(output / "features"), "--top", "3", "--table", table)
    assert code == 6
    rows = rows_of(tmp_path / "t.csv")
    assert [(row["image"], row["rank"]) for row in rows] == [
        *((keys[0], str(rank)) for rank in (1, 2, 3)),
        (keys[1], ""),
        *((keys[2], str(rank)) for rank in (1, 2, 3)),
    ]
    assert rows[3]["reason"] == "not_an_image"
    queries = result["queries"]
    assert isinstance(queries, list)
    told = [(one["key"], one["cosine"]) for query in queries for one in query.get("similar", ())]
    assert [(row["key"], float(row["cosine"])) for row in rows if row["key"]] == told
    assert result["table"] == table


def test_classes_are_rows(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted(str(path) for path in (output / "photos/cats").iterdir())[:2]
    table = tmp_path / "t.parquet"
    code, result = result_of(capsys, "classify", *images, "--head", str(output / "head"), "--table", str(table))
    assert code == 0
    rows = pq.read_table(table).to_pylist()
    shown = result["images"]
    assert isinstance(shown, list)
    assert [(row["image"], row["class"], row["probability"]) for row in rows] == [
        (one["image"], each["class"], each["probability"]) for one in shown for each in one["classes"]
    ]
    assert [row["rank"] for row in rows] == [1, 2, 1, 2]


def test_predictions_are_rows_of_every_image(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("predict", str(output / "features"), str(output / "head"), str(tmp_path / "predictions"))
    assert result_of(capsys, *arguments, "--table", str(tmp_path / "t.csv"))[0] == 0
    rows = rows_of(tmp_path / "t.csv")
    files = sorted((tmp_path / "predictions/data").iterdir())
    stored = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    assert [(row["key"], row["predicted"]) for row in rows] == [(row["key"], row["predicted"]) for row in stored]
    np.testing.assert_array_equal(
        np.array([row["probability"] for row in rows], np.float32), [row["probability"] for row in stored]
    )
    code, result = result_of(capsys, *arguments, "--table", str(tmp_path / "t.csv"))  # refused before anything is done
    assert (code, result["error"]) == (2, "UsageError")
