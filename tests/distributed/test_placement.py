"""Where networks run, from what Ray says of a cluster's nodes."""

from pathlib import Path
from typing import Any

import pytest

from bottleneck.distributed.placement import Placement, needs_cpus, place, waiting_for
from bottleneck.distributed.run_options import RunOptions
from bottleneck.errors import UsageError
from bottleneck.networks.device import CORES_PER_ACTOR
from jobs import extract as extract_job

HEAD = {"CPU": 0.0, "memory": 1e9}


def cpus(count: int) -> dict[str, float]:
    return {"CPU": float(count), "memory": 1e9}


def test_one_machine_shares_its_cores_between_networks_and_decoding() -> None:
    assert place([cpus(2)]) == Placement(1, 1, num_gpus=0, num_cpus=0, num_threads=2)
    assert place([cpus(32)]) == Placement(4, 4, num_gpus=0, num_cpus=0, num_threads=8)
    assert place([cpus(32)], (2,)) == Placement(2, 2, num_gpus=0, num_cpus=0, num_threads=16)


def test_a_node_of_a_cluster_is_taken_by_a_network_but_for_what_decodes_for_it() -> None:
    expected = Placement(2, 2, num_gpus=0, num_cpus=6, num_threads=8, decode_cpus=0.49)
    assert place([HEAD, cpus(8), cpus(8)]) == expected
    found = place([cpus(16), cpus(16)])
    assert (found.max_actors, found.num_cpus, found.num_threads) == (4, 6, 8)


def test_a_small_node_makes_no_networks_small() -> None:
    found = place([cpus(4), cpus(64), cpus(64)])
    assert (found.max_actors, found.num_threads) == (16, 8)
    assert found.num_cpus > 4  # so that none starts on the small one
    assert place([cpus(2), cpus(32)]).max_actors == 4


@pytest.mark.parametrize("cores", range(1, 33))
def test_networks_never_take_what_feeds_them(cores: int) -> None:
    found = place([HEAD, cpus(cores), cpus(cores)], (1, 100))
    fit = int(cores / found.num_cpus)
    assert fit == max(1, cores // CORES_PER_ACTOR)
    assert cores - fit * found.num_cpus >= found.decode_cpus


def test_a_pool_grows_from_the_least_to_the_most() -> None:
    found = place([HEAD, cpus(8)], (1, 5))
    assert (found.min_actors, found.max_actors) == (1, 5)


def test_networks_go_to_gpus_where_there_are_any() -> None:
    assert place([HEAD, cpus(16), cpus(8) | {"GPU": 4.0}]) == Placement(4, 4, num_gpus=1, num_cpus=0, num_threads=None)


def test_networks_wait_for_gpus_a_cluster_is_to_get() -> None:
    coming: dict[str, Any] = {"use_gpu": True, "may_grow": True}
    assert place([HEAD], **coming) == Placement(1, 1, num_gpus=1, num_cpus=0, num_threads=None)
    assert place([HEAD], (1, 8), **coming) == Placement(1, 8, num_gpus=1, num_cpus=0, num_threads=None)


def test_nobody_waits_for_gpus_of_a_single_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Received: a machine without"):
        place([cpus(8)], use_gpu=True)
    assert place([cpus(8) | {"GPU": 1.0}], use_gpu=True).num_gpus == 1
    # The command asks before it looks at a source or starts anything.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = extract_job.Config(source=str(tmp_path), output=str(tmp_path / "out"), run=RunOptions(use_gpu=True))
    with pytest.raises(UsageError, match="Received: a machine without"):
        extract_job.extract(config)


@pytest.mark.parametrize(
    ("placement", "total", "free", "expected"),
    [
        (Placement(1, 1, 0, 1.5, 2), {"CPU": 4.0}, {"CPU": 0.49}, "CPUs: others use 3.51 of the cluster's 4"),
        (Placement(1, 1, 0, 1.5, 2), {"CPU": 4.0}, {"CPU": 2.0}, ""),
        (Placement(1, 1, 0, 1.02, None), {}, {}, "CPUs: the cluster has 0"),
        (Placement(2, 2, 1, 0, None), {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}, "GPUs: others use 2 of the cluster's 2"),
        (Placement(1, 1, 0, 0, 2), {"CPU": 2.0}, {"CPU": 0.0}, ""),
    ],
)
def test_what_networks_wait_for_is_known(
    placement: Placement, total: dict[str, float], free: dict[str, float], expected: str
) -> None:
    assert waiting_for(placement, total, free) == expected


def test_a_runtime_for_cpus_is_not_put_on_gpus() -> None:
    assert place([HEAD, cpus(8) | {"GPU": 1.0}], on_cpus=True).num_gpus == 0
    assert needs_cpus("vgg16", "openvino", use_gpu=False)
    assert needs_cpus("onnx", "auto", use_gpu=False)
    assert not needs_cpus("vgg16", "keras", use_gpu=True)
    for base, runtime in (("vgg16", "onnxruntime"), ("onnx", "auto")):
        with pytest.raises(UsageError, match="run on CPUs"):
            needs_cpus(base, runtime, use_gpu=True)  # type: ignore[arg-type]


def test_a_cluster_whose_nodes_are_still_to_come_gets_one_network_and_none_on_the_head() -> None:
    found = place([HEAD])
    assert (found.max_actors, found.num_gpus, found.num_threads) == (1, 0, None)
    assert found.num_cpus > 0


def test_a_cluster_of_one_node_leaves_networks_to_those_that_join() -> None:
    assert place([cpus(8)], (1, 3), may_grow=True) == place([cpus(8), cpus(8)], (1, 3))
