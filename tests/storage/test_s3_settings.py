"""Settings of S3 that are fsspec's, as cluster/README.md names them: they reach every request of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import pytest
import s3fs
import s3fs.core
from fixtures_s3 import use_environment
from servers import MotoServer
from tiny import REQUEST, jpeg

from bottleneck.audit.verify import verify
from bottleneck.extract.local import extract_images

README = (Path(__file__).resolve().parents[2] / "cluster" / "README.md").read_text()
READS = {"list_objects_v2", "get_object", "head_object"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MotoServer]:
    with MotoServer() as server:
        use_environment(monkeypatch, server.environment)
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


def photos(server: MotoServer, name: str) -> tuple[str, str]:
    """A source with three images, and an output, in buckets of their own: a store is kept by its URI."""
    server.create_bucket(f"{name}-in")
    server.create_bucket(f"{name}-out")
    server.upload(f"{name}-in", {f"photos/{number}.jpg": jpeg(number) for number in range(3)})
    return f"s3://{name}-in/photos", f"s3://{name}-out/features"


def set_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Set a variable to the README's value, as fsspec reads it when it is imported."""
    found = re.search(rf"^\| `{name}='?(.*?)'?` \|", README, re.MULTILINE)
    assert found
    settings: dict[str, Any] = {}
    fsspec.config.set_conf_env(settings, {name: found[1]})
    monkeypatch.setitem(fsspec.config.conf, "s3", settings["s3"])


def test_every_request_says_that_the_reader_pays(server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto asks nobody to pay, so this test looks at what is sent."""
    source, output = photos(server, "pays")
    sent: list[tuple[str, Any]] = []
    send = s3fs.core._error_wrapper

    async def record(method: Any, *, args: Any = (), kwargs: Any = None, retries: int) -> Any:
        sent.append((method.__name__, (kwargs or {}).get("RequestPayer")))
        return await send(method, args=args, kwargs=kwargs, retries=retries)

    monkeypatch.setattr(s3fs.core, "_error_wrapper", record)
    set_variable(monkeypatch, "FSSPEC_S3_REQUESTER_PAYS")
    assert extract_images(source, output, REQUEST).ok == 3
    assert READS | {"put_object"} <= {name for name, _ in sent}
    assert [name for name, payer in sent if payer != "requester"] == []


def test_features_are_encrypted_with_the_given_key(server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = photos(server, "encrypted")
    set_variable(monkeypatch, "FSSPEC_S3")
    assert extract_images(source, output, REQUEST).ok == 3
    keys = server.keys("encrypted-out")
    assert len(keys) >= 4  # the plan, its part, a shard, the summary
    for key in keys:
        found = server.client.head_object(Bucket="encrypted-out", Key=key)
        assert (found.get("ServerSideEncryption"), found.get("SSEKMSKeyId")) == ("aws:kms", "KEY"), key
    assert verify(output).exit_code == 0
