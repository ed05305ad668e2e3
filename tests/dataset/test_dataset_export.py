"""Features in other programs' formats: what was stored comes back, memory stays flat, no half file is ever there."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from tiny import data_rows, spec, write_files

from bottleneck.dataset import shuffle
from bottleneck.dataset.contents import ExportOrder
from bottleneck.dataset.export import export_features
from bottleneck.dataset.export_formats import WRITERS
from bottleneck.dataset.features import Features, open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import CorruptError, StoreError, UsageError
from bottleneck.storage.store import open_store
from jobs.__main__ import main
from jobs.benchmark.made_up import write_features

LAYER = spec().layers[0]
HOSTILE = ["plain", "", "two\nlines", "日本語", "<b>\"'&", "two  blanks", "a" * 200, "\u05d0\u05d1", "emoji \U0001f600"]
"""Names of folders, but for the empty one: its images are in no folder and have no label."""
KEYS = [f"{name}/{n} {name}.jpg" if name else f"{n}.jpg" for name in HOSTILE for n in range(5)]
FILES = ["x.h5", "x.npz", "x.npy", "x.tfrecords", "x.parquet", "x.csv", "x.mat"]


def made_up(folder: Path, dtype: str = "float16", keys: list[str] = KEYS, shard_size: int = 7) -> Features:
    """Finished features of images with any names; the first of each shard is rejected."""
    write_files(folder / "photos", dict.fromkeys(keys, b"an image, by its name"))
    layers = {"layers": (LAYER, "fc2:none"), "dims": (16, 3)}
    plan = make_plan(
        str(folder / "photos"), str(folder / "features"), spec(dtype=dtype, **layers), shard_size=shard_size
    )
    planned = [image.key for image in plan.images()]
    for shard in range(plan.num_shards):
        part = planned[shard * shard_size : (shard + 1) * shard_size]
        rows = data_rows(plan.spec, part, {part[0]: "truncated"}, seed=shard)
        write_shard(
            open_store(plan.output), plan.data_name(shard), plan.spec, shard, rows, run_id="test", device="none"
        )
    finish(plan)
    return open_features(plan.output)


@pytest.fixture(scope="module", params=["float16", "float32"])
def features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return made_up(tmp_path_factory.mktemp("formats"), request.param)


def expected(features: Features, layer: str = LAYER) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Features, labels' numbers, the labels and the keys, shuffled as exports are."""
    features_ND, labels_N = features.arrays(layer)
    keys_N = features.keys()
    order_N = np.argsort([hashlib.sha256(key.encode()).hexdigest() for key in keys_N])
    features_ND, labels_N, keys_N = features_ND[order_N], labels_N[order_N], keys_N[order_N]
    names = sorted({key.rpartition("/")[0] for key in KEYS} - {""})
    codes = [-1 if label is None else names.index(label) for label in labels_N]
    assert -1 in codes
    return features_ND, np.array(codes), names, keys_N.tolist()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["--json", "export", *arguments])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


def test_hdf5_has_the_tutorials_layout(features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / "x.h5"), LAYER)
    features_ND, codes_N, names, keys = expected(features)
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file) == {"features", "labels", "label_names", "keys"}
        assert file["features"].dtype == features.spec.dtype
        assert np.array_equal(file["features"][:], features_ND)
        assert np.array_equal(file["labels"][:], codes_N)
        assert file["label_names"].asstr()[:].tolist() == names
        assert file["keys"].asstr()[:].tolist() == keys
        assert file.attrs["fingerprint"] == features.spec.fingerprint
        assert file.attrs["layer"] == LAYER
        assert file.attrs["label_order"] == "text"
        assert (file.attrs["order"], file.attrs["shape"].tolist()) == ("shuffled", [16])


def test_labels_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    numbered = made_up(tmp_path, keys=[f"{label}/{n}.jpg" for label in (9, 10, 100) for n in range(3)])
    assert export_features(numbered, str(tmp_path / "x.npz"), LAYER)["label_order"] == "number"
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file["label_names"].tolist() == ["9", "10", "100"]
        assert json.loads(str(file["attributes"]))["label_order"] == "number"
        names = [key.partition("/")[0] for key in file["keys"]]
        assert file["label_names"][file["labels"]].tolist() == names


def test_one_parquet_file_has_keys_labels_and_vectors(features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / "x.parquet"), LAYER, order="plan")
    table = pq.read_table(tmp_path / "x.parquet")
    features_ND, labels_N = features.arrays(LAYER)
    assert table.column_names == ["key", "label", "features"]
    assert table.schema.field("features").type == pa.list_(pa.from_numpy_dtype(np.dtype(features.spec.dtype)), 16)
    assert table.column("key").to_pylist() == features.keys().tolist()
    assert table.column("label").to_pylist() == labels_N.tolist()
    assert np.array_equal(np.stack(table.column("features").to_pylist()).astype(features_ND.dtype), features_ND)
    assert json.loads(table.schema.metadata[b"bottleneck"])["fingerprint"] == features.spec.fingerprint


def test_a_csv_gives_the_same_numbers_back(features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / "x.csv"), LAYER)
    features_ND, _, _, keys = expected(features)
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["key", "label", *(f"f{number}" for number in range(16))]
    assert [row[0] for row in rows] == keys
    assert [row[1] for row in rows] == [key.rpartition("/")[0] for key in keys]
    assert np.array_equal(np.array([row[2:] for row in rows], np.float32), features_ND.astype(np.float32))


def test_too_many_features_for_a_csv_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck.dataset.export_tables.MAX_COLUMNS", 15)
    monkeypatch.setattr("bottleneck.dataset.export_tables.MAX_MATLAB_BYTES", 1000)
    small = made_up(tmp_path)
    for name, told in (("x.csv", "up to 15 features. Received: 16"), ("x.mat", "holds up to .*h5read")):
        with pytest.raises(UsageError, match=told):
            export_features(small, str(tmp_path / name), LAYER)
        assert not (tmp_path / name).exists()


def test_a_mat_file_has_the_matrix_and_cells_of_text(features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / "x.mat"), LAYER)
    features_ND, codes_N, names, keys = expected(features)
    found = scipy.io.loadmat(tmp_path / "x.mat")
    assert found["features"].dtype == np.float32
    assert np.array_equal(found["features"], features_ND.astype(np.float32))
    assert np.array_equal(found["labels"][:, 0], codes_N + 1)
    assert [str(cell[0]) for cell in found["label_names"][:, 0]] == names
    assert [str(cell[0]) for cell in found["keys"][:, 0]] == keys
    assert json.loads(str(found["attributes"][0]))["layer"] == LAYER


def test_npz_is_read_without_pickles(features: Features, tmp_path: Path) -> None:
    facts = export_features(features, str(tmp_path / "x.npz"), "fc2", flat=True)
    features_ND, codes_N, names, keys = expected(features, "fc2:none")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "labels", "label_names", "keys", "attributes"}
        assert json.loads(str(file["attributes"]))["order"] == "shuffled"
        assert file["features"].dtype == features.spec.dtype
        assert np.array_equal(file["features"], features_ND)
        assert np.array_equal(file["labels"], codes_N)
        assert file["label_names"].tolist() == names
        assert file["keys"].tolist() == keys
    assert facts["bytes"] == (tmp_path / "x.npz").stat().st_size
    assert (facts["images"], facts["labels"], facts["dim"]) == (len(keys), len(names), 3)


def test_npy_is_the_matrix(features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / "x.npy"), LAYER)
    found_ND = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert found_ND.dtype == features.spec.dtype
    assert np.array_equal(found_ND, expected(features)[0])


def test_tfrecords_are_what_tf_data_reads(features: Features, tmp_path: Path) -> None:
    import tensorflow as tf

    export_features(features, str(tmp_path / "x.tfrecord"), LAYER)
    features_ND, codes_N, names, keys = expected(features)
    columns = {
        "features": tf.io.FixedLenFeature([16], tf.float32),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "label_name": tf.io.FixedLenFeature([], tf.string),
        "key": tf.io.FixedLenFeature([], tf.string),
    }
    dataset = tf.data.TFRecordDataset(str(tmp_path / "x.tfrecord")).batch(1000)
    [batch] = [tf.io.parse_example(records, columns) for records in dataset]
    assert np.array_equal(batch["features"].numpy(), features_ND.astype(np.float32))
    assert np.array_equal(batch["label"].numpy(), codes_N)
    assert [name.decode() for name in batch["label_name"].numpy()] == [names[c] if c >= 0 else "" for c in codes_N]
    assert [key.decode() for key in batch["key"].numpy()] == keys


def test_lance_is_written_by_its_package(features: Features, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="needs pylance")
    export_features(features, str(tmp_path / "x.lance"), LAYER)
    table = lance.dataset(str(tmp_path / "x.lance")).to_table()
    assert table.column("key").to_pylist() == expected(features)[3]
    assert np.array_equal(np.array(table.column("features").to_pylist()), expected(features)[0])


@pytest.mark.parametrize(
    ("package", "suffix", "words"), [("lance", "lance", "pylance"), ("tensorflow", "tfrecord", "cpu")]
)
def test_a_missing_package_is_named(
    package: str, suffix: str, words: str, features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"pip install .*{words}"):
        export_features(features, str(tmp_path / f"x.{suffix}"), LAYER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("file", ["x.h5", "x.npz", "x.tfrecord"])
def test_a_bucket_gets_what_a_folder_gets(bucket: str, file: str, features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / file), LAYER)
    uri = f"s3://{bucket}/a b"
    facts = export_features(features, f"{uri}/{file}", LAYER)
    [entry] = open_store(uri).list()
    assert (entry.key, entry.size) == (file, facts["bytes"])
    assert facts["bytes"] == (tmp_path / file).stat().st_size
    with pytest.raises(UsageError, match="is there already"):
        export_features(features, f"{uri}/{file}", LAYER)
    with pytest.raises(UsageError, match="Lance is written to a folder"):
        export_features(features, f"{uri}/x.lance", LAYER)


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("num_bytes", [100, 120_000_000])  # in one request, and in parts
def test_a_file_becomes_an_object_once(bucket: str, num_bytes: int, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/x")
    (tmp_path / "a").write_bytes(os.urandom(num_bytes))
    (tmp_path / "b").write_bytes(bytes(num_bytes))
    assert store.create_from_file("here/a b?.bin", str(tmp_path / "a"))
    assert not store.create_from_file("here/a b?.bin", str(tmp_path / "b"))
    [entry] = store.list()
    assert entry[:2] == ("here/a b?.bin", num_bytes)
    from bottleneck.storage.store import Wanted

    assert store.get(Wanted(entry.key, num_bytes, "")) == (tmp_path / "a").read_bytes()


def test_a_file_is_linked_in_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    write_files(tmp_path, {"a": b"first", "b": b"second", "folder/one": b"1", "other/two": b"2"})
    assert store.create_from_file("here/x", str(tmp_path / "a"))
    assert not store.create_from_file("here/x", str(tmp_path / "b"))
    assert (tmp_path / "out/here/x").read_bytes() == b"first"
    assert store.create_from_file("here/y", str(tmp_path / "folder"))
    assert not store.create_from_file("here/y", str(tmp_path / "other"))
    assert (tmp_path / "out/here/y/one").read_bytes() == b"1"


@pytest.mark.parametrize(("file", "order"), [*((file, "shuffled") for file in FILES[:-1]), ("x.h5", "plan")])
def test_memory_does_not_grow_with_the_images(
    file: str, order: ExportOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 data files of 64 x 512 values; all of them are 6.6 MB in float16."""
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 300_000)
    write_features(str(tmp_path / "features"), 6_400, 512, 3, 64)
    alive: list[weakref.ref[pa.Table]] = []

    class Counted(Features):
        def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
            table = super().table(name, columns)
            alive.append(weakref.ref(table))
            assert sum(one() is not None for one in alive) <= 3
            assert pa.total_allocated_bytes() - before < 2_500_000
            return table

    opened = open_features(str(tmp_path / "features"))
    features = Counted(opened.plan, opened.files)
    seen: list[int] = []
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    if file.endswith(".tfrecords"):
        import tensorflow  # noqa: F401  # its modules are no data
    tracemalloc.start()
    try:
        export_features(features, str(tmp_path / file), on_images=seen.append, order=order)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(alive) == 100
    assert seen == sorted(seen)
    assert len(seen) >= 100
    assert seen[-1] == 6_400
    assert peak < 3_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_the_plans_order_is_written_when_asked(features: Features, tmp_path: Path) -> None:
    facts = export_features(features, str(tmp_path / "x.h5"), LAYER, order="plan")
    features_ND, _ = features.arrays(LAYER)
    keys_N = features.keys()
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.attrs["order"] == facts["order"] == "plan"
        assert file["keys"].asstr()[:].tolist() == keys_N.tolist()
        assert np.array_equal(file["features"][:], features_ND)
    with pytest.raises(UsageError, match="`order` takes shuffled or plan"):
        export_features(features, str(tmp_path / "y.h5"), LAYER, order="random")  # type: ignore[arg-type]


@pytest.mark.parametrize("bucket_bytes", [1, 3_000, 1 << 24])
def test_the_order_is_that_of_the_digests_whatever_fits_in_memory(
    bucket_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", bucket_bytes)
    keys = [f"class {n % 3}/{n}" for n in range(600)]
    rows = pa.table({"key": keys, "row": range(len(keys))})
    parts = [rows.slice(start, 100) for start in range(0, len(keys), 100)]
    found = pa.concat_tables(shuffle.shuffled(iter(parts), str(tmp_path)))
    assert found.schema == rows.schema
    expected = sorted(range(len(keys)), key=lambda n: hashlib.sha256(keys[n].encode()).digest())
    assert found.column("row").to_pylist() == expected
    assert found.column("key").to_pylist() == [keys[n] for n in expected]
    assert list(tmp_path.iterdir()) == []


def test_the_tutorials_own_next_step_finds_every_class(tmp_path: Path) -> None:
    """Its reader fits on the first three quarters of the file and is judged on the rest."""
    from sklearn.linear_model import LogisticRegression

    write_features(str(tmp_path / "features"), 1_000, 32, 10, 128)
    scores: dict[str, float] = {}
    for order in get_args(ExportOrder):
        export_features(open_features(str(tmp_path / "features")), str(tmp_path / f"{order}.h5"), order=order)
        with h5py.File(tmp_path / f"{order}.h5", "r") as db:
            i = int(db["labels"].shape[0] * 0.75)
            model = LogisticRegression(max_iter=1000).fit(db["features"][:i], db["labels"][:i])
            scores[order] = model.score(db["features"][i:], db["labels"][i:])
    assert scores["shuffled"] > 0.7
    assert scores["plan"] < 0.3


def test_a_shape_that_does_not_fit_the_network_is_told(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", {"a/0.jpg": b"an image, by its name"})
    plan = make_plan(str(tmp_path / "photos"), str(tmp_path / "features"), spec(layers=("conv_pw_13_relu:none",)))
    rows = data_rows(plan.spec, ["a/0.jpg"])
    write_shard(open_store(plan.output), plan.data_name(0), plan.spec, 0, rows, run_id="test", device="none")
    finish(plan)
    with pytest.raises(CorruptError, match=r"has 256 values, .* 7 x 7 x 256\. Export with `flat`"):
        export_features(open_features(plan.output), str(tmp_path / "x.npy"))
    assert export_features(open_features(plan.output), str(tmp_path / "x.npy"), flat=True)["shape"] == [1, 256]


def test_a_map_keeps_its_shape_unless_asked(tmp_path: Path) -> None:
    import tensorflow as tf

    keys = [f"{n % 2}/{n}.jpg" for n in range(6)]
    write_files(tmp_path / "photos", dict.fromkeys(keys, b"an image, by its name"))
    asked = spec(layers=("conv_pw_13_relu:none",), dims=(7 * 7 * 256,))
    plan = make_plan(str(tmp_path / "photos"), str(tmp_path / "features"), asked, shard_size=3)
    for shard in range(2):
        rows = data_rows(plan.spec, sorted(keys)[3 * shard : 3 * shard + 3], seed=shard)
        write_shard(open_store(plan.output), plan.data_name(shard), asked, shard, rows, run_id="test", device="none")
    finish(plan)
    features = open_features(plan.output)
    features_ND = features.arrays()[0]

    for flat, shape in ((False, (6, 7, 7, 256)), (True, (6, 12544))):
        kept = {"order": "plan", "flat": flat}
        written = {
            suffix: export_features(features, str(tmp_path / f"{flat}.{suffix}"), **kept)  # type: ignore[arg-type]
            for suffix in ("h5", "npz", "npy", "tfrecord")
        }
        assert all(facts["shape"] == list(shape) for facts in written.values())
        expected_N = features_ND.reshape(shape)
        with h5py.File(tmp_path / f"{flat}.h5") as file:
            assert np.array_equal(file["features"][:], expected_N)
            assert tuple(file.attrs["shape"]) == shape[1:]
        with np.load(tmp_path / f"{flat}.npz") as file:
            assert np.array_equal(file["features"], expected_N)
            assert json.loads(str(file["attributes"]))["shape"] == list(shape[1:])
        assert np.array_equal(np.load(tmp_path / f"{flat}.npy"), expected_N)
        columns = {"features": tf.io.FixedLenFeature(shape[1:], tf.float32)}
        [batch] = [
            tf.io.parse_example(records, columns)
            for records in tf.data.TFRecordDataset(str(tmp_path / f"{flat}.tfrecord")).batch(6)
        ]
        assert np.array_equal(batch["features"].numpy(), expected_N)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """50,000 images of 512 values."""
    folder = str(tmp_path_factory.mktemp("large") / "features")
    write_features(folder, 50_000, 512, 3, 512)
    return folder


@pytest.mark.matrix(2, "export")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("file", ["x.h5", "x.npz", "x.tfrecord"])
def test_a_kill_leaves_no_half_file(file: str, number: signal.Signals, large: str, tmp_path: Path) -> None:
    """By -9 while rows are shuffled, or by Ctrl-C while they are written."""
    command = [sys.executable, "-m", "jobs", "--json", "export", large, str(tmp_path / file)]
    begun = ".bottleneck-export-*/" + ("rows-*" if number == signal.SIGKILL else "whole*")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(tmp_path.glob(begun)):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        process.send_signal(number)
    assert process.returncode == (-9 if number == signal.SIGKILL else 3)
    left = list(tmp_path.iterdir())
    assert not (tmp_path / file).exists()
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    export_features(open_features(large), str(tmp_path / file))
    assert (tmp_path / file).exists()


def test_a_full_disk_leaves_nothing(features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: str, contents: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, ".npy", no_space)
    with pytest.raises(StoreError, match="No space left"):
        export_features(features, str(tmp_path / "x.npy"), LAYER)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(features: Features, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        export_features(features, str(tmp_path / "x.npy"), LAYER)

    def too_late(images: int) -> None:
        (tmp_path / "y.npy").write_bytes(b"another's")

    with pytest.raises(UsageError, match="at the same time"):
        export_features(features, str(tmp_path / "y.npy"), LAYER, too_late)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.npy": b"mine", "y.npy": b"another's"}


def test_rows_that_are_not_those_counted_are_refused(features: Features, tmp_path: Path) -> None:
    twice = Features(features.plan, features.files)
    for files in (features.files[:1], features.files[-1:]):
        twice.table = lambda name, columns=None, files=files: features.table(files[0], columns)  # type: ignore
        with pytest.raises(CorruptError, match="more or fewer"):
            export_features(twice, str(tmp_path / "x.npz"), LAYER)
    assert list(tmp_path.iterdir()) == []


def test_the_job_tells_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made_up(tmp_path)
    output, file = dataset.plan.output, str(tmp_path / "new" / "x.npy")
    code, result, told = run(capsys, output, file, "--layer", "fc2", "--flat")
    assert (code, result["images"], result["dim"], result["layer"]) == (0, 38, 3, "fc2:none")
    assert "45 of 45" not in told  # 7 are rejected
    assert np.load(file).shape == (38, 3)


def test_what_is_not_done_is_exported_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made_up(tmp_path)
    output, file = dataset.plan.output, str(tmp_path / "x.npz")
    os.unlink(f"{output}/{dataset.files[2]}")
    assert run(capsys, output, file, "--layer", LAYER)[0] == 3
    code, result, _ = run(capsys, output, file, "--layer", LAYER, "--allow-incomplete")
    assert (code, result["images"], result["labels"]) == (0, 32, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{features}", "x.pdf"], "ending in .h5"),
        (["{features}", "x"], ".keras or .onnx (of their network or a head)"),
        (["{features}", "x.keras"], "features of several layers"),
        (["{head}", "x.h5"], "is a head"),
        (["{features}", "x.h5"], "features of several layers"),
        (["{features}", "x.h5", "--weights", "w.h5"], "--weights is of networks and heads"),
        (["{head}", "x.onnx", "--layer", "fc2"], "a head has its layer"),
        (["{head}", "x.onnx", "--flat"], "are of features"),
        (["{head}", "x.onnx", "--order", "plan"], "are of features"),
        (["{features}", "{features}/x.h5", "--layer", "fc2"], "is inside"),
        (["{empty}", "x.h5"], "no plan.json"),
        (["{empty}", "x.keras"], "holds no head"),
        (["{rejected}", "x.npy"], "no ok image"),
    ],
)
def test_what_does_not_fit_is_said(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(tmp_path)
    write_files(tmp_path, {"head/head.json": b"{}"})
    rejected = made_up(tmp_path / "rejected", keys=["a/1.jpg"])
    places = {"empty": tmp_path / "empty", "head": tmp_path / "head", "features": tmp_path / "features"}
    places["rejected"] = Path(rejected.plan.output)
    monkeypatch.chdir(tmp_path)
    arguments = [one.format(**places) for one in arguments]
    if "rejected" in arguments[0]:
        arguments += ["--layer", "fc2"]
    before = sorted(tmp_path.rglob("*"))
    code, _, told = run(capsys, *arguments)
    assert code == 2
    assert words in told
    assert sorted(tmp_path.rglob("*")) == before
