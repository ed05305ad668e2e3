"""`bottleneck benchmark SOURCE --what peers`: the programs beside which this one is measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck.errors import BottleneckError
from bottleneck.networks.base import Base
from bottleneck.networks.weights import load_network
from bottleneck.spec import FeatureRequest
from jobs.__main__ import main
from jobs.benchmark import peer_ray as benchmark_peer_ray
from jobs.benchmark import peer_torch as benchmark_peer_torch
from jobs.benchmark import peers as benchmark_peers
from jobs.benchmark.process import run_program


def test_programs_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiny.photos(tmp_path / "photos", 5)
    assert (
        main(["--json", "benchmark", str(photos), "--what", "peers", "--num-images", "40", "--base", "mobilenet_0.25"])
        == 0
    )
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert set(result["left_out"]) == {"torch"}
    for name in ("job", "ray", "onnx"):
        one = result[name]
        assert 40 / one["images_per_second"] < one["seconds"], name
        if name != "onnx":  # a second of one process, which may end before the memory of all is looked at
            assert 0 < one["driver_peak_rss_bytes"] < one["peak_pss_bytes"], name
    told = benchmark_peers.table(result)
    assert [line.split()[0] for line in told[3:]] == ["bottleneck", "Ray", "ONNX", "torch"]


def test_ray_datas_network_gives_the_features_extract_gives() -> None:
    base = "mobilenet_0.25"
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    peer = benchmark_peer_ray.Network(base)
    peer.model.set_weights(load_network(base, "random:0", ()).get_weights())
    answers = peer({"image": pixels_NHWC})
    request = FeatureRequest(base=base, weights="random:0", dtype="float32")
    [expected_ND] = Base.of(request, "float32", 3)(pixels_NHWC)
    np.testing.assert_allclose(answers["features"], expected_ND, rtol=1e-3, atol=1e-4)
    assert answers["came"].shape == (3,)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_program_of_torch_writes_a_row_an_image(tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", 5)
    output = str(tmp_path / "features.parquet")
    summary, _ = run_program("torch", ["jobs.benchmark.peer_torch", str(photos / "cats"), output])
    assert summary["images"] == len(list((photos / "cats").iterdir()))
    assert pq.read_metadata(output).num_rows == summary["images"]
    num_weights = sum(np.prod(one.shape) for one in benchmark_peer_torch.network().parameters())
    assert num_weights == 14_714_688  # of Keras' VGG16 without its top


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(BottleneckError, match=r"Ray Data ended with exit code 1:[\s\S]*missing"):
        run_program("Ray Data", ["jobs.benchmark.peer_ray"])
