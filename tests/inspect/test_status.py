"""How far an output is, seen from its store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fixtures_s3 import use_environment
from proxy import FaultProxy
from servers import S3Server

from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.requeue import requeue_plan
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import StoreError, UsageError
from bottleneck.extract.local import extract_images
from bottleneck.inspect.status import NUM_SAMPLED, look
from bottleneck.storage.store import cached_store, open_store


def planned(folder: Path, output: str, num_images: int = 20, shard_size: int = 2) -> Plan:
    return make_plan(str(tiny.photos(folder / "photos", num_images)), output, tiny.spec(), shard_size=shard_size)


def write(plan: Plan, shards: range, rejected: dict[int, str] | None = None) -> None:
    """Commit shards; `rejected` gives the first image of a shard a reason."""
    store = open_store(plan.output)
    for shard in plan.shards():
        if shard.number in shards:
            keys = [image.key for image in read_images(store, shard)]
            reasons = {keys[0]: (rejected or {})[shard.number]} if shard.number in (rejected or {}) else {}
            rows = tiny.data_rows(plan.spec, keys, reasons)
            write_shard(
                *[store, plan.data_name(shard.number), plan.spec, shard.number, rows],
                run_id="",
                device="",
                revision=shard.revision,
            )


def date(plan: Plan, ages_seconds: dict[int, float], now: float | None = None) -> None:
    """Have data files written so long ago."""
    now = time.time() if now is None else now
    for shard, age in ages_seconds.items():
        os.utime(Path(plan.output) / plan.data_name(shard), (now - age, now - age))


def status(output: str, *options: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "--json", "status", output, *options], capture_output=True, text=True, timeout=60
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_run_under_way_has_a_rate_and_an_end(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"))
    write(plan, range(6), {1: "truncated", 4: "truncated", 5: "empty"})
    date(plan, {shard: 10.0 * (6 - shard) for shard in range(6)})
    code, told, shown = status(plan.output)
    assert code == told["exit_code"] == 3
    assert (told["state"], told["holds"]) == ("running", "features")
    assert (told["images"], told["images_done"], told["shards"], told["shards_done"]) == (20, 12, 10, 6)
    assert told["images_per_second"] == told["images_per_second_overall"] == 0.2  # 2 images in 10 s
    assert told["eta_seconds"] == 40
    assert told["rejected"] == {"empty": 1, "truncated": 2}
    assert told["sampled_shards"] == told["shards_with_file"] == 6
    assert "running · 12 of 20 images · 6 of 10 shards · 0.2 images/s" in shown
    assert "ETA 40 s" in shown
    assert "rejected: 2 x truncated" in shown
    assert "about" not in shown


def test_the_rate_is_of_the_last_minutes_and_pauses_do_not_count(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"))
    write(plan, range(9))
    # 2 images in 100 s yesterday, then a night, then 2 images in 4 s.
    day = 86_400.0
    date(plan, {0: day + 300, 1: day + 200, 2: day + 100, 3: day, 4: 16, 5: 12, 6: 8, 7: 4, 8: 0})
    seen = look(plan.output)
    assert seen.images_per_second == 0.5
    assert seen.images_per_second_overall == pytest.approx(14 / 316, abs=0.01)
    assert seen.eta_seconds == 4


def test_a_run_that_commits_nothing_any_more_stands_still(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"))
    assert look(plan.output).state == "planned"
    write(plan, range(4))
    date(plan, {shard: 400.0 + shard for shard in range(4)})
    seen = look(plan.output)
    assert (seen.state, seen.eta_seconds) == ("standing still", None)
    assert seen.idle_seconds == pytest.approx(400, abs=5)
    # Unless that is how long its shards take.
    date(plan, {shard: 200.0 + 200 * shard for shard in range(4)})
    assert look(plan.output).state == "running"
    date(plan, {shard: 1100.0 + 200 * shard for shard in range(4)})
    code, _, shown = status(plan.output)
    assert code == 3
    assert "standing still, last shard 18 min" in shown
    assert "run the command that made it again" in shown


def test_a_clock_that_is_ahead_of_the_files_or_behind_does_not_matter(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"))
    write(plan, range(4))
    date(plan, {shard: 10.0 * shard for shard in range(4)}, time.time() + 3600)
    seen = look(plan.output)
    assert (seen.state, seen.idle_seconds, seen.images_per_second) == ("running", 0.0, 0.2)


def test_finished_is_what_the_success_file_says(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"))
    write(plan, range(10), {3: "missing"})
    before = look(plan.output)
    assert (before.state, before.images_done) == ("running", 20)
    finish(plan)
    code, told, shown = status(plan.output)
    assert (code, told["state"], told["rejected"], told["eta_seconds"]) == (0, "finished", {"missing": 1}, None)
    assert "finished · 20 of 20 images" in shown
    (Path(plan.output) / plan.data_name(7)).unlink()
    assert look(plan.output).state == "running"
    assert look(plan.output).images_done == 18


def test_of_many_shards_some_footers_are_read_and_it_is_called_an_estimate(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"), num_images=160, shard_size=1)
    write(plan, range(2 * NUM_SAMPLED), dict.fromkeys(range(0, 2 * NUM_SAMPLED, 4), "truncated"))
    seen = look(plan.output)
    assert (seen.sampled_shards, seen.shards_with_file) == (NUM_SAMPLED, 2 * NUM_SAMPLED)
    assert seen.rejected["truncated"] == pytest.approx(2 * NUM_SAMPLED / 4, rel=0.5)
    _, _, shown = status(plan.output)
    assert f"an estimate from {NUM_SAMPLED} of {2 * NUM_SAMPLED} shards" in shown
    assert "rejected: about" in shown


def test_requeued_and_added_shards_are_not_done(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    source = tiny.photos(tmp_path / "photos", 10)
    plan = make_plan(str(source), output, tiny.spec(), shard_size=2)
    write(plan, range(5), {1: "truncated"})
    finish(plan)
    requeue_plan(plan, ("truncated",))
    seen = look(output)
    # The files are new, but nobody has done anything since.
    assert (seen.state, seen.shards_done, seen.shards_again, seen.images_done) == ("planned", 4, 1, 8)
    assert seen.eta_seconds is None
    code, _, shown = status(output)
    assert code == 3
    assert " s ago, nothing done since · 8 of 10 images" in shown
    assert "requeued for some of their images: 1 shard\n" in shown
    again = load_plan(output)
    assert again is not None
    write(again, range(1, 2))
    assert (look(output).shards_done, look(output).shards_again) == (5, 0)
    finish(again)
    assert look(output).state == "finished"

    tiny.photos(source, 4, first=10)
    extend_plan(again)
    seen = look(output)
    assert (seen.state, seen.images, seen.images_done, seen.shards, seen.shards_done) == ("planned", 14, 10, 7, 5)
    added = load_plan(output)
    assert added is not None
    write(added, range(5, 6))
    assert (look(output).state, look(output).images_done) == ("running", 12)


def test_a_real_run_is_watched_to_its_end(tmp_path: Path) -> None:
    source, output = tiny.photos(tmp_path / "photos", 12), str(tmp_path / "out")
    make_plan(str(source), output, tiny.real_spec(), shard_size=2)
    command = [sys.executable, "-m", "jobs", "--json", "status", output, "--watch", "0.1"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        extract_images(str(source), output, tiny.REQUEST)
        shown, told = watching.communicate(timeout=60)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 0, told
    assert json.loads(shown.splitlines()[-1])["images_done"] == 12
    assert "finished · 12 of 12 images" in told


def test_ctrl_c_ends_watching_with_what_was_seen(tmp_path: Path) -> None:
    plan = planned(tmp_path, str(tmp_path / "out"))
    write(plan, range(2))
    command = [sys.executable, "-m", "jobs", "--json", "status", plan.output, "--watch", "0.05"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert watching.stderr is not None
        assert "2 of 10 shards" in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        shown, _ = watching.communicate(timeout=60)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 3
    assert json.loads(shown.splitlines()[-1])["shards_done"] == 2


def test_an_output_in_a_bucket_is_listed_once(
    tmp_path: Path, s3_server: S3Server, s3_environment: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        cached_store.cache_clear()
        plan = planned(tmp_path, f"s3://{bucket}/out")
        write(plan, range(3), {0: "empty"})
        before = proxy.count("GET", rf"/{bucket}/?$")
        seen = look(plan.output)
        # One page, and one object of it for the answer's date.
        assert proxy.count("GET", rf"/{bucket}/?$") - before == 2
        cached_store.cache_clear()
    assert (seen.state, seen.shards_done, seen.rejected) == ("running", 3, {"empty": 1})
    assert seen.idle_seconds < 60


def test_what_is_no_output_has_one_clear_error(
    tmp_path: Path, s3_server: S3Server, s3_environment: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match=r"has no plan\.json"):
        look(str(tmp_path))
    code, told, _ = status(str(tmp_path))
    assert (code, told["exit_code"]) == (2, 2)
    assert status("http://127.0.0.1:1/x")[0] == 2
    with pytest.raises(StoreError, match="no such bucket"):
        look("s3://there-is-no-such-bucket/out")


def test_predictions_have_a_status_as_well(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    plan = planned(tmp_path, output, num_images=8)
    write(plan, range(4))
    finish(plan)
    tiny.saved_head(
        tmp_path / "head",
        np.random.default_rng(0).standard_normal((20, 256)).astype(np.float32),
        np.array(["cats", "dogs"] * 10),
        plan.spec,
    )
    command = [
        sys.executable,
        "-m",
        "jobs",
        "--json",
        "--json",
        "predict",
        output,
        str(tmp_path / "head"),
        str(tmp_path / "predictions"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    seen = look(str(tmp_path / "predictions"))
    assert (seen.holds, seen.state, seen.images_done) == ("predictions", "finished", 8)
