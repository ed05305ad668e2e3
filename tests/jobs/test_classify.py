"""Classifying a few images: a head's classes or the network's own, and what becomes of bad images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assets import asset
from tiny import jpeg, real_spec, saved_head, write_files

from bottleneck.errors import UsageError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.networks.base import Base
from bottleneck.networks.class_names import class_names
from bottleneck.sources.reading import Limits
from bottleneck.storage.store import open_store
from jobs.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, and a head that knows them, on a network of a quarter's width."""
    folder = tmp_path_factory.mktemp("classify")
    write_files(folder, {f"{n:02d}.jpg": jpeg(n) for n in range(12)})
    write_files(folder, {"text.jpg": b"no image", "empty.jpg": b""})
    decoded = [decode((folder / f"{n:02d}.jpg").read_bytes(), real_spec(), Limits()) for n in range(12)]
    pixels_NHWC = np.stack([one.pixels_HWC for one in decoded if isinstance(one, Decoded)])
    features_ND = Base(real_spec(), 4)(pixels_NHWC)[0]
    labels_N = np.array([f"class {n % 3}" for n in range(12)], object)
    saved_head(folder / "fitted", features_ND, labels_N, real_spec())
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["--json", "classify", *arguments])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


def test_a_head_says_what_it_says_of_features(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bottleneck.heads.head import Head

    monkeypatch.chdir(folder)
    images = ["05.jpg", str(folder / "02.jpg"), "00.jpg"]
    code, result, _ = run(capsys, *images, "--head", "fitted", "--top", "2")
    assert code == 0
    assert [one["image"] for one in result["images"]] == images
    head = Head.load("fitted")
    for one in result["images"]:
        decoded = decode(Path(one["image"]).read_bytes(), real_spec(), Limits())
        assert isinstance(decoded, Decoded)
        expected = head.predictions(Base(real_spec(), 4)(decoded.pixels_HWC[None])[0], 2).to_pylist()[0]
        assert [line["class"] for line in one["classes"]] == expected["top_labels"]
        assert [line["probability"] for line in one["classes"]] == pytest.approx(
            expected["top_probabilities"], abs=1e-5
        )


def test_bad_images_do_not_keep_others_from_their_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(folder / name) for name in ("text.jpg", "01.jpg", "empty.jpg", "nowhere.jpg")]
    code, result, _ = run(capsys, *images, "--head", str(folder / "fitted"))
    assert code == result["exit_code"] == 6
    assert [one.get("reason") for one in result["images"]] == ["not_an_image", None, "empty", "missing"]
    assert len(result["images"][1]["classes"]) == 3
    assert result["rejected"] == 3


@pytest.mark.usefixtures("s3_environment")
def test_images_and_heads_in_a_bucket(bucket: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(f"s3://{bucket}/here")
    for name in ("head.json", "head.safetensors"):
        store.create(f"head/{name}", (folder / "fitted" / name).read_bytes())
    store.create("a b.jpg", (folder / "01.jpg").read_bytes())
    images = [f"s3://{bucket}/here/a b.jpg", str(folder / "01.jpg"), f"s3://{bucket}/nowhere.jpg"]
    code, result, _ = run(capsys, *images, "--head", f"s3://{bucket}/here/head")
    assert code == 6
    assert result["images"][0]["classes"] == result["images"][1]["classes"]
    assert result["images"][2]["reason"] == "missing"


def test_weights_that_moved_are_named_and_others_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result, _ = run(capsys, str(folder / "01.jpg"), "--head", str(folder / "fitted"), "--weights", "random:1")
    assert code == 4
    assert "weights_sha256" in result["message"]


def test_a_network_names_its_own_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """Real weights on real photos: ImageNet knows a daisy."""
    weights, names = asset("weights/mobilenet_7_5_224_tf.rebuilt.h5"), asset("weights/imagenet_class_index.json")
    images = sorted(asset("flowers17/daisy").glob("*.jpg"))[:5]
    code, result, _ = run(
        capsys, *map(str, images), "--base", "mobilenet_0.75", "--weights", str(weights), "--names", str(names)
    )
    assert code == 0
    first = [one["classes"][0]["class"] for one in result["images"]]
    assert first.count("daisy") >= 4
    for one in result["images"]:
        values = [line["probability"] for line in one["classes"]]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "at least one image"),
        (["a.jpg", "--top", "0"], "from 1 up"),
        (["a.jpg", "--head", "head", "--base", "vgg16"], "leave --base"),
        (["a.jpg", "--head", "nowhere"], "holds no head"),
        (["a.jpg"], "Give --names FILE"),
        (["a.jpg", "--names", "nowhere.json"], "--names nowhere.json"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    code, _, told = run(capsys, *arguments)
    assert code == 2
    assert words in told


def test_names_are_read_from_either_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/imagenet_class_index.json").write_text('{"1": ["n2", "goldfish"], "0": ["n1", "tench"]}')
    (tmp_path / "names.txt").write_text("Schleie\nGoldfisch\n", encoding="utf-8")
    (tmp_path / "broken.json").write_text('{"0": 7}')
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert class_names(2) == ["tench", "goldfish"]
    assert class_names(2, str(tmp_path / "names.txt")) == ["Schleie", "Goldfisch"]
    with pytest.raises(UsageError, match="Expected 3 names"):
        class_names(3)
    with pytest.raises(UsageError, match="no index of classes"):
        class_names(1, str(tmp_path / "broken.json"))
