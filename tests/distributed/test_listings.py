"""`data/` is listed once a run: with a million images a listing is tens of requests."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import tiny
from fixtures_s3 import use_environment
from proxy import FaultProxy
from servers import S3Server
from test_jobs import run

from bottleneck.dataset.features import open_features, rows_of
from bottleneck.extract.local import extract_images

LISTING = "prefix=features/data"


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        use_environment(monkeypatch, s3_server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        yield proxy


def listings(proxy: FaultProxy) -> int:
    """LIST requests of `data/` since the last call."""
    found = [one.target for one in proxy.requests if one.method == "GET" and LISTING in unquote(one.target)]
    proxy.requests.clear()
    return len(found)


def test_an_extraction_in_this_process_lists_once(proxy: FaultProxy, bucket: str, tmp_path: Path) -> None:
    photos, output = tiny.photos(tmp_path / "photos", 12), f"s3://{bucket}/features"
    for images in (12, 12):
        assert extract_images(str(photos), output, tiny.REQUEST, shard_size=4).ok == images
        assert listings(proxy) == 1
    assert rows_of(open_features(output)) != {}
    assert listings(proxy) == 1


def test_jobs_on_ray_list_once(proxy: FaultProxy, bucket: str, tmp_path: Path) -> None:
    photos, output = tiny.photos(tmp_path / "photos", 12), f"s3://{bucket}/features"
    extract = ("extract", str(photos), output, "--base", "mobilenet_0.25", "--weights", "random:0", "--shard-size", "4")
    code, summary, told = run(*extract)
    assert (code, summary.get("done_now")) == (0, 3), told
    assert listings(proxy) == 1
    tiny.photos(tmp_path / "photos", 4, first=12)
    code, summary, told = run(*extract, "--extend")
    assert (code, summary.get("done_now")) == (0, 1), told
    assert listings(proxy) == 1
    code, _, told = run("fit", output, str(tmp_path / "head"))
    assert code == 0, told
    assert listings(proxy) == 1
    predict = ("predict", output, str(tmp_path / "head"), f"s3://{bucket}/predictions")
    code, summary, told = run(*predict)
    assert (code, summary.get("done_now")) == (0, 4), told
    assert listings(proxy) == 1
