"""Nodes of a cluster die and others join, again and again, while runs extract on it: the same run finishes."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
from extractjob import Photos, num_data_files
from matrix import amounts
from raycluster import Node, RayCluster, job_of
from test_cluster import SHARDS, Running

NUM_NODES = 3
AT_MOST = 4
"""Kills in one run."""


@pytest.mark.matrix(4)
@pytest.mark.parametrize("kills", amounts(2, 50, hours=3))
def test_a_run_outlives_nodes_that_are_killed(
    kills: int, photos: Photos, reference: str, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    with RayCluster(tmp_path, {}, apart=False) as cluster:
        nodes = [cluster.add(num_cpus=2) for _ in range(NUM_NODES)]
        killed = number = 0
        while killed < kills:
            number += 1
            output = tmp_path / f"features-{number}"
            arguments = ("extract", photos.folder, output, *SHARDS, "--num-actors", "1", "3")
            running = Running(cluster, *map(str, arguments))
            killed_here = _kill_nodes(cluster, nodes, running, output, rng, min(AT_MOST, kills - killed))
            tried(4, killed_here)
            killed += killed_here
            result = running.result()
            print(f"run {number}: {killed_here} nodes killed, {len(nodes)} left, {result['seconds']} s")
            assert (result["done_before"], result["done_now"]) == (0, photos.num_shards)
            oracle.check(str(output), photos.truth, features_of=reference)
            while len(nodes) < NUM_NODES:
                nodes.append(cluster.add(num_cpus=2))
        code, result, stderr = job_of(cluster, *arguments)
        assert (code, result["done_now"]) == (0, 0), stderr


def _kill_nodes(
    cluster: RayCluster, nodes: list[Node], running: Running, output: Path, rng: random.Random, at_most: int
) -> int:
    """Kill one or two nodes each time some more shards are done; others join at once, later or with the next run."""
    killed = 0
    while killed < at_most:
        enough = num_data_files(str(output)) + rng.randint(1, 6)
        cluster.wait_for("shards", lambda n=enough: num_data_files(str(output)) >= n or running.ended, seconds=240)
        time.sleep(rng.uniform(0, 0.5))
        if running.ended:
            break
        for node in rng.sample(nodes, min(rng.randint(1, 2), at_most - killed, len(nodes))):
            node.kill9()
            nodes.remove(node)
            killed += 1
        print(f"{killed} nodes killed, {len(nodes)} left, {num_data_files(str(output))} shards done")
        if not nodes or rng.random() < 0.5:
            nodes.append(cluster.add(num_cpus=2))
    return killed
