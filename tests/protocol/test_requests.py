"""The requests of a bucket's `create` and `replace`, with answers that are lost, are those of the model's store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from fixtures_s3 import use_environment
from model_store import BUCKET, Call, Stage, outcomes
from proxy import Fault, FaultProxy
from servers import S3Server

from bottleneck.storage.s3 import BucketStore

OURS, OTHERS = b"what we write", b"what another one wrote"
Requests = tuple[tuple[str, bool], ...]
"""The method of each request, and whether its answer was lost."""


def paths(call: Call, objects: Any, stage: Stage = "", lost: int = 1) -> Iterator[tuple[Requests, bool]]:
    """Every way of the model through a call, and its answer."""
    method = "HEAD" if stage == "refused" else "PUT"
    for one in outcomes(call, stage, objects, BUCKET):
        if one.lost > lost:
            continue
        further = paths(call, one.objects, one.stage, lost - one.lost) if one.stage else [((), one.answer)]
        for requests, answer in further:
            yield ((method, one.lost), *requests), answer


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        use_environment(monkeypatch, s3_server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        yield proxy


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("there", [None, OURS, OTHERS])
@pytest.mark.parametrize("verb", ["create", "replace"])
def test_a_write_is_a_path_of_the_model(
    verb: Literal["create", "replace"], there: bytes | None, lost: int, bucket: str, proxy: FaultProxy
) -> None:
    """To be replaced is the object of another one, or one that is gone."""
    store = BucketStore(f"s3://{bucket}/features")
    store.create("first", b"1")
    store.replace("first", b"2", _etag(store, "first"))  # from here on it knows which conditions the server takes
    if there is not None:
        store.create("object", there)
    meant, etag = (OTHERS, _etag(store, "object")) if there == OTHERS else (b"gone", "0" * 32)
    begun = len(proxy.requests)
    if lost:
        proxy.inject(Fault("lose_answer", methods="PUT", at=1))
    answer = store.create("object", OURS) if verb == "create" else store.replace("object", OURS, etag)
    requests = tuple((one.method, one.fault == "lose_answer") for one in proxy.requests[begun:])
    call = Call(verb, "object", OURS, meant if verb == "replace" else None)
    expected = set(paths(call, {} if there is None else {"object": there}, lost=lost))
    print(requests, answer)
    if lost and not any(is_lost for requests, _ in expected for _, is_lost in requests):
        # The model loses no answer that changes nothing: the request is made once more.
        assert requests[0] == ("PUT", True)
        requests = requests[1:]
    assert (requests, answer) in expected


def _etag(store: BucketStore, key: str) -> str:
    found = store.stat(key)
    assert found is not None
    return found.etag
