"""Fixtures of an S3 server, for `pytest_plugins`; see servers.py and proxy.py.

BOTTLENECK_TEST_S3=ceph or =moto asks for one kind of server: CI asks for Ceph, so that a missing package is an error
there and not a quiet fall-back to moto.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping

import pytest
import s3fs
from servers import CephServer, S3Server, make_server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests, Ceph where it is installed."""
    with make_server(os.environ.get("BOTTLENECK_TEST_S3")) as server:
        yield server


@pytest.fixture
def ceph_server(s3_server: S3Server) -> CephServer:
    """The same server, for tests of durability and rights, which moto would pass or fail for the wrong reason."""
    if not isinstance(s3_server, CephServer):
        pytest.skip("needs Ceph: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw")
    return s3_server


@pytest.fixture
def bucket(s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    """An empty bucket of this test's own, on a server that runs even when the test before has killed it.

    The name follows from the test's, so that the faults a seed gives are the same in every run.
    """
    s3_server.start()
    name = "test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    s3_server.create_bucket(name)
    return name


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """This process' own S3 access goes to the server while the test runs."""
    use_environment(monkeypatch, s3_server.environment)
    yield s3_server.environment
    s3fs.S3FileSystem.clear_instance_cache()


def use_environment(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Point this process at another server, proxy or user.

    fsspec keeps its file systems by their arguments, without the environment: without clearing, the old one answers.
    """
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
