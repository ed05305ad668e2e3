"""Export a run's metrics to Prometheus, through Ray."""

from typing import Any

METRICS = {
    "bottleneck_images_total": ("counter", "Images whose outcome is committed.", ("status",)),
    "bottleneck_rejected_total": ("counter", "Images committed as rejected.", ("reason",)),
    "bottleneck_shards_total": ("counter", "Shards this run has committed.", ()),
    "bottleneck_shards_queued": ("gauge", "Shards of the plan that are not committed yet.", ()),
    "bottleneck_bytes_read_total": ("counter", "Bytes of images read from the source.", ()),
    "bottleneck_bytes_written_total": ("counter", "Bytes of data files committed.", ()),
    "bottleneck_stage_seconds_total": ("counter", "Seconds spent, summed over all workers.", ("stage",)),
}
"""Name: kind, meaning, labels. `status` is `ok` or `rejected`; `stage` is `read`, `decode`, `network`, `write`, or
`idle`, a network's waiting. cluster/grafana.json draws them."""


class RayMetrics:
    """`METRICS` as Ray metrics; one process of a run reports them, so that nothing is counted twice."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        kinds = {"counter": Counter, "gauge": Gauge}
        self._metrics: dict[str, Any] = {
            name: kinds[kind](name, description=text, tag_keys=tags) for name, (kind, text, tags) in METRICS.items()
        }

    def add(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter, except 0, which Ray refuses."""
        if value > 0:
            self._metrics[name].inc(value, tags=tags)

    def set(self, name: str, value: float) -> None:
        self._metrics[name].set(value)


class NoMetrics(RayMetrics):
    """A stand-in for `RayMetrics` without Ray."""

    def __init__(self) -> None:
        self._metrics = {}

    def add(self, name: str, value: float, **tags: str) -> None:
        pass

    def set(self, name: str, value: float) -> None:
        pass
