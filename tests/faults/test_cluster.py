"""A cluster of real nodes that share nothing but a bucket: the same commands, and nodes that come and go meanwhile."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import psutil
import pytest
from extractjob import ASKED, SHARD_SIZE, Photos
from proxy import FaultProxy
from raycluster import Node, RayCluster, job_of
from servers import S3Server


@pytest.fixture
def cluster(
    s3_server: S3Server, bucket: str, s3_environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[RayCluster, dict[str, str]]]:
    """A head without CPUs that reaches the store as its nodes do, by an address of this machine."""
    described = RayCluster(tmp_path, {})
    with FaultProxy(s3_server.endpoint_url, host=described.ip) as proxy:
        environment = s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url, "NO_PROXY": f"{described.ip},127.0.0.1"}
        described.give(environment)
        with described as cluster:
            yield cluster, environment


SHARDS = (*ASKED, "--shard-size", str(SHARD_SIZE))


class Running(threading.Thread):
    """A job on the cluster, while the test does something to it."""

    def __init__(self, cluster: RayCluster, *arguments: str) -> None:
        super().__init__(daemon=True)
        self.cluster, self.arguments = cluster, arguments
        self.ended: tuple[int, dict[str, Any], str] | None = None
        self.start()

    def run(self) -> None:
        self.ended = job_of(self.cluster, *self.arguments)

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for something that must be so before the job ends."""
        self.cluster.wait_for(what, lambda: condition() or self.ended)
        assert not self.ended, f"{what}: {self.ended}"

    def result(self) -> dict[str, Any]:
        self.join()
        assert self.ended is not None
        code, result, stderr = self.ended
        assert code == 0, stderr
        return result


def num_shards_done(server: S3Server, bucket: str) -> int:
    return len(server.keys(bucket, "features/data/"))


def networks(node: Node) -> list[psutil.Process]:
    return node.workers("ray::MapWorker(MapBatches(ExtractFeatures))")


@pytest.mark.matrix(4)
def test_nodes_that_share_only_a_bucket_extract_fit_and_predict_while_some_die_and_others_join(
    cluster: tuple[RayCluster, dict[str, str]], s3_server: S3Server, bucket: str, photos: Photos, reference: str
) -> None:
    nodes, _ = cluster
    s3_server.upload_folder(photos.folder, bucket, "photos/")
    source, output = f"s3://{bucket}/photos", f"s3://{bucket}/features"
    lost, kept = nodes.add(num_cpus=2), nodes.add(num_cpus=2, apart=True)

    running = Running(nodes, "extract", source, output, *SHARDS, "--num-actors", "1", "3")
    running.wait_for("a network on each node", lambda: networks(lost) and networks(kept))
    assert not networks(nodes.head)
    running.wait_for("shards", lambda: num_shards_done(s3_server, bucket) >= 5)
    lost.kill9()
    (held,) = networks(kept)
    held.send_signal(signal.SIGSTOP)  # so that work is left for the one that joins
    joined = nodes.add(num_cpus=2)
    running.wait_for("a network on the node that joined", lambda: networks(joined))
    before = num_shards_done(s3_server, bucket)
    running.wait_for("its shards", lambda: num_shards_done(s3_server, bucket) >= before + 3)
    held.send_signal(signal.SIGCONT)
    result = running.result()
    print({name: result[name] for name in ("images", "ok", "rejected", "shards", "done_now", "seconds")})
    oracle.check(output, photos.truth, features_of=reference)

    head = f"s3://{bucket}/head"
    code, fitted, stderr = job_of(nodes, "fit", output, head, "--num-workers", "2", "--folds", "2")
    assert code == 0, stderr
    code, predicted, stderr = job_of(nodes, "predict", output, head, f"s3://{bucket}/predictions")
    assert code == 0, stderr
    assert predicted["ok"] == result["ok"]
    print({name: fitted[name] for name in ("images", "num_workers", "seconds")})


def test_networks_start_where_gpus_are_when_they_come_and_a_node_told_to_end_loses_nothing(
    cluster: tuple[RayCluster, dict[str, str]], s3_server: S3Server, bucket: str, photos: Photos
) -> None:
    """GPUs as Ray counts them: the network runs on the CPU behind them."""
    nodes, _ = cluster
    s3_server.upload_folder(photos.folder, bucket, "photos/")
    source, output = f"s3://{bucket}/photos", f"s3://{bucket}/features"
    ends, stays = nodes.add(num_cpus=2), nodes.add(num_cpus=1)
    running = Running(nodes, "extract", source, output, *SHARDS, "--use-gpu", "--precision", "float32")
    time.sleep(15)  # nothing tells that something does not happen
    assert not running.ended
    assert not any(networks(node) for node in nodes.nodes)
    card = nodes.add(num_cpus=0, num_gpus=1)
    running.wait_for("shards", lambda: num_shards_done(s3_server, bucket) >= 3)
    assert networks(card)
    assert not networks(ends) + networks(stays)
    ends.terminate()
    running.result()
    oracle.check(output, photos.truth)


def test_a_driver_without_the_clusters_token_is_told_so(photos: Photos, output: Path, tmp_path: Path) -> None:
    with RayCluster(tmp_path, {}, apart=False) as cluster:
        cluster.environment["RAY_AUTH_TOKEN"] = "another"
        code, result, stderr = job_of(cluster, "extract", photos.folder, output, *SHARDS)
    assert code == 5, stderr
    assert "rejected the token" in result["message"]
    told = stderr.splitlines()[1:]  # after the warning of the weights
    assert told[0].startswith("joining the Ray cluster at ")
    assert told[1:] == [f"error: {result['message']}"]
