"""A source of a few hundred small photos with a truth table, and the output of a run that nothing happened to."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
import tiny
from extractjob import Job, Photos, Seen
from PIL import Image

from bottleneck.dataset.features import open_features

NUM_PHOTOS = 400
BAD = {
    "empty": b"",
    "not_an_image": b"<!DOCTYPE html><title>404 Not Found</title>" * 9,
    "unsupported_format": b"II*\0\x08\0\0\0" + bytes(64),
}


def photo(rng: np.random.Generator, comment: str = "") -> bytes:
    """A JPEG of 96 x 96 pixels: a few blurred colours, unlike any other."""
    colours = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96))
    buffer = io.BytesIO()
    colours.save(buffer, "JPEG", quality=90, comment=comment)
    return buffer.getvalue()


def make_photos(folder: Path, count: int = NUM_PHOTOS) -> Photos:
    """Write photos below a folder; every twentieth is bad, as many of each kind."""
    rng = np.random.default_rng(0)
    truth = {}
    kinds = ["truncated", *BAD]
    for number in range(count):
        key, data, status = f"class{number % 4}/{number:04d}.jpg", photo(rng), "ok"
        if number % 40 == 7:
            status = kinds[number // 40 % len(kinds)]
            data = data[: len(data) // 2] if status == "truncated" else BAD[status]
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        truth[key] = status
    return Photos(folder, truth)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def reference(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a run without faults."""
    output = tmp_path_factory.mktemp("reference") / "features"
    with Job(photos.folder, output) as job:
        assert job.wait().succeeded()["done_now"] == photos.num_shards
        assert job.orphans() == []
    oracle.check(str(output), photos.truth)
    return str(output)


@pytest.fixture(scope="session")
def head(reference: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted on the features of the photos."""
    features = open_features(reference)
    features_ND, labels_N = features.arrays()
    folder = tmp_path_factory.mktemp("heads") / "head"
    tiny.saved_head(folder, features_ND, labels_N, features.spec)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def seen(photos: Photos, output: Path, tmp_path: Path) -> Seen:
    return Seen(photos.folder, output, tmp_path / "seen.log")


@pytest.fixture(autouse=True)
def no_dump_of_core() -> Iterator[None]:
    """Decoders are crashed on purpose."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)
