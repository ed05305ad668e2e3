"""Collect what a run's actors report, for the display and the forecast."""

import math
import time
from collections import deque
from typing import Any, TypedDict

from bottleneck.distributed.metrics import NoMetrics, RayMetrics
from bottleneck.extract.estimate import RunForecast
from bottleneck.extract.summary import Tally

NUM_BATCHES = 64
"""Recent batches, whose lower quartile is the time of a batch with the cores to itself: in slower ones decoding had
them, which is counted separately, or Ray, which starts its workers during the first batches."""


class Snapshot(TypedDict, total=False):
    """What a `Live` counter knows; without an answer, nothing."""

    images: dict[int, int]
    """Images of each shard in progress."""
    limiting: str
    resolved: dict[str, Any] | None
    emitted: bool
    spent: dict[str, float]
    placed: int
    networks: int
    first_batch_at: float


class Live:
    """A counter to which the actors report their progress, for the display and the forecast.

    It also exports the metrics to Prometheus.
    """

    def __init__(self, with_metrics: bool = False) -> None:
        self.metrics = RayMetrics() if with_metrics else NoMetrics()
        self.images: dict[int, int] = {}
        self.seconds = {"network": 0.0, "decode": 0.0, "read": 0.0}
        self.idle_seconds = 0.0
        self.batch_seconds: deque[float] = deque(maxlen=NUM_BATCHES)
        self.spent = dict.fromkeys(
            ("batches", "images", "commit", "network_core", "prepared", "accepted", "decode_core", "read"), 0.0
        )
        self.first_batch_at = math.inf
        self.resolved: dict[str, Any] | None = None
        self.num_placed = 0
        self.num_networks = 0
        self.order: list[Any] | None = None
        self.emitted = False

    def report_emitted(self) -> None:
        self.emitted = True

    def report_placed(self) -> None:
        """Count a network that was placed and is being loaded."""
        self.num_placed += 1

    def report_resolved(self, resolved: dict[str, Any]) -> None:
        self.resolved = resolved
        self.num_networks += 1

    def what_to_do(self) -> list[Any] | None:
        """The handle of an `RunOrder` in a list, or None before there is one."""
        return self.order

    def report(self, shard: int, images: int, network: float, idle: float, decode: float, read: float) -> None:
        self.first_batch_at = min(self.first_batch_at, time.time() - network)
        self.images[shard] = images
        for name, seconds in (("network", network), ("decode", decode), ("read", read)):
            self.seconds[name] += seconds
            self.metrics.add("bottleneck_stage_seconds_total", seconds, stage=name)
        self.idle_seconds += idle
        self.metrics.add("bottleneck_stage_seconds_total", idle, stage="idle")

    def report_committed(self, statuses: dict[str, int], bytes_read: int, bytes_written: int) -> None:
        """Count a committed shard for Prometheus; the run itself counts receipts."""
        ok = statuses.get("ok", 0)
        self.metrics.add("bottleneck_images_total", ok, status="ok")
        self.metrics.add("bottleneck_images_total", sum(statuses.values()) - ok, status="rejected")
        for reason, count in statuses.items():
            if reason != "ok":
                self.metrics.add("bottleneck_rejected_total", count, reason=reason)
        self.metrics.add("bottleneck_shards_total", 1)
        self.metrics.add("bottleneck_bytes_read_total", bytes_read)
        self.metrics.add("bottleneck_bytes_written_total", bytes_written)

    def report_prepared(self, images: int, accepted: int, decode_core: float, read: float) -> None:
        """Count the cost of preparing a shard that an actor begins."""
        for name, value in (("prepared", images), ("accepted", accepted), ("decode_core", decode_core), ("read", read)):
            self.spent[name] += value

    def report_network(self, images: int, seconds: float, core_seconds: float) -> None:
        """Count the time of a batch, or of committing a shard (0 images); a network's first batch is not counted."""
        self.spent["images"] += images
        self.spent["network_core"] += core_seconds
        if images:
            self.spent["batches"] += 1
            self.batch_seconds.append(seconds / images)
        else:
            self.spent["commit"] += seconds
            self.metrics.add("bottleneck_stage_seconds_total", seconds, stage="write")

    def snapshot(self, forget: list[int], order: list[Any] | None, queued: int | None = None) -> Snapshot:
        """The current counts.

        Args:
            forget: shards whose receipts have arrived.
            order: what `what_to_do` answers from now on.
            queued: shards that are not committed yet.
        """
        self.order = order
        if queued is not None:
            self.metrics.set("bottleneck_shards_queued", queued)
        for shard in forget:
            self.images.pop(shard, None)
        result: Snapshot = {
            "images": self.images,
            "limiting": "start",
            "resolved": self.resolved,
            "emitted": self.emitted,
            "spent": self._spent(),
            "placed": self.num_placed,
            "networks": self.num_networks,
        }
        seconds = self.seconds
        if seconds["network"]:
            # Where the networks hardly wait they are the limit, else what they wait for.
            waiting = self.idle_seconds > 0.15 * (seconds["network"] + self.idle_seconds)
            slower = "decode" if seconds["decode"] > seconds["read"] else "read"
            result["limiting"] = slower if waiting else "network"
            result["first_batch_at"] = self.first_batch_at
        return result

    def _spent(self) -> dict[str, float]:
        """All counts, with the network's seconds as if every batch were as fast as the quick ones."""
        quick = sorted(self.batch_seconds)[len(self.batch_seconds) // 4] if self.batch_seconds else 0.0
        return self.spent | {"network": quick * self.spent["images"] + self.spent["commit"]}


def run_details(
    live: Snapshot, tally: Tally, forecast: RunForecast | None, started: float, last_receipt_at: float
) -> dict[str, Any]:
    """A run's own measurements: time to its first batch, and rate from there to its last shard.

    Args:
        started: by time.monotonic().
        last_receipt_at: in seconds since the epoch.
    """
    if "first_batch_at" not in live:
        return {}
    began = time.time() - (time.monotonic() - started)
    images = sum(receipt.images for receipt in tally.receipts.values() if receipt.created)
    # Where another run did part of it, this one was not alone with the machine: there is nothing to compare.
    alone = all(receipt.created for receipt in tally.receipts.values())
    return {
        "first_batch_seconds": round(live["first_batch_at"] - began, 2),
        "images_per_second": round(images / max(1e-9, last_receipt_at - live["first_batch_at"]), 2),
        "limiting": live["limiting"],
        **(forecast.compared(images, last_receipt_at) if forecast and alone else {}),
    }
