"""A fit too large for one worker, on three machines that share nothing but a bucket."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from raycluster import RayCluster
from servers import S3Server

from bottleneck.dataset.features import open_features, rows_of
from bottleneck.heads.fit import fit_features
from bottleneck.heads.head import Head
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.fit_data import MAX_COMPACT_VALUES
from bottleneck.heads.solver.protocol import LocalWorkers
from bottleneck.heads.solver.worker import Worker
from jobs.benchmark.made_up import write_features

NUM_IMAGES, DIM, NUM_CLASSES, NUM_WORKERS = 66_000, 512, 10, 3
DRIVER_BYTES = 380_000_000
"""It needs 326 MB without features, which are 68 MB as stored."""


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_three_machines_find_what_one_process_finds_and_the_driver_holds_no_features(
    s3_server: S3Server, bucket: str, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    assert NUM_IMAGES * DIM > MAX_COMPACT_VALUES
    local = tmp_path / "features"
    write_features(str(local), NUM_IMAGES, DIM, NUM_CLASSES, 2048)
    s3_server.upload_folder(local, bucket, "features/")
    features = open_features(str(local))
    request = HeadRequest(test_fraction=0.0)
    alone = fit_features(LocalWorkers(Worker()), features, request, rows_of(features))

    environment = s3_environment | {"NO_PROXY": "127.0.0.1"}
    head, log = tmp_path / "head", tmp_path / "log"
    with RayCluster(tmp_path, environment, apart=False) as cluster, log.open("wb") as out:
        for _ in range(NUM_WORKERS):
            cluster.add(num_cpus=1)
        arguments = ["fit", f"s3://{bucket}/features", head, "--num-workers", NUM_WORKERS, "--test-fraction", 0]
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs", "--json", *map(str, arguments)],
            env=cluster.environment | {"RAY_ADDRESS": cluster.address},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        process, peak_bytes = psutil.Process(driver.pid), 0
        while driver.poll() is None:
            peak_bytes = max(peak_bytes, process.memory_info().rss)
            time.sleep(0.1)
    assert driver.returncode == 0, log.read_text()
    found = Head.load(str(head))
    details = found.origin.details
    print(f"driver {peak_bytes / 1e6:.0f} MB, fit {details['seconds']} s, alone {alone.details['seconds']} s")
    assert (details["way"], details["num_workers"]) == ("sums", NUM_WORKERS)
    assert max(details["gap"], alone.details["gap"]) < 1e-17
    for name in ("coef_", "intercept_"):
        expected = getattr(alone.head, name)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert peak_bytes < DRIVER_BYTES
