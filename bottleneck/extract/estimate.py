"""Forecast the rate and time of an extraction, from a sample or from a run's first batches."""

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from bottleneck.console import duration
from bottleneck.text import counted, size

STARTUP_SECONDS = 8.0
"""From a command's start to its first batch: Ray takes half of it, its workers and the network the other half."""
MIN_SHARE, MIN_BATCHES, MIN_LEFT = 0.05, 2, 0.25
"""A run predicts itself once it has done this share of its images and this many batches after each network's first, if
this share is still to come: before there is too little to go by, later nothing to compare."""

Stage = Literal["network", "decode", "read"]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The average cost of an image, rejected ones included, and the available resources.

    The rate is the least of three:

    - `networks / network_seconds`: the networks side by side, each never waiting;
    - `cores / (network_core_seconds + decode_core_seconds)`: network and decoding share the cores; on a GPU the network
      takes of them what its process needs to feed it;
    - `cores / (read_seconds + decode_core_seconds)`: each core has one reader, which decodes what it has waited for.
    """

    network_seconds: float
    """Seconds of one network per image, on its share of the cores or on its own GPU."""
    network_core_seconds: float
    decode_core_seconds: float
    read_seconds: float
    """Seconds per image that one reader waits for its requests."""
    cores: int
    networks: int

    def _rates(self) -> list[tuple[float, Stage]]:
        shared: Stage = "decode" if self.decode_core_seconds > self.network_core_seconds else "network"
        prepared: Stage = "read" if self.read_seconds > self.decode_core_seconds else "decode"
        return [
            (self.networks / max(1e-9, self.network_seconds), "network"),
            (self.cores / max(1e-9, self.network_core_seconds + self.decode_core_seconds), shared),
            (self.cores / max(1e-9, self.read_seconds + self.decode_core_seconds), prepared),
        ]

    @property
    def images_per_second(self) -> float:
        return min(self._rates())[0]

    @property
    def limiting(self) -> Stage:
        return min(self._rates())[1]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimate for the rest of a plan, on a machine like the measured one."""

    costs: Costs
    sampled: int
    """Measured images."""
    images: int
    """Images of the plan that are not done yet."""
    bytes_per_image: float
    """Bytes of a data file per image, compressed, with the footer."""
    output_bytes: int
    """Bytes of all data files in the end, including existing ones."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `asdict` wrote."""
        return cls(**{**value, "costs": Costs(**value["costs"])})

    @property
    def seconds(self) -> float:
        return STARTUP_SECONDS + self.images / self.costs.images_per_second

    def to_json(self) -> dict[str, Any]:
        return {
            "images_per_second": round(self.costs.images_per_second, 2),
            "limiting": self.costs.limiting,
            "hours": round(self.seconds / 3600, 4),
            "output_bytes": self.output_bytes,
            "images": self.images,
            "sampled": self.sampled,
            "bytes_per_image": round(self.bytes_per_image, 1),
            **{name: round(value, 6) for name, value in asdict(self.costs).items()},
        }

    def line(self) -> str:
        """For a person to read."""
        return (
            f"{self.costs.images_per_second:,.1f} images/s on this machine, limited by {self.costs.limiting}: about "
            f"{duration(self.seconds)}, output about {size(self.output_bytes)} (measured on "
            f"{counted(self.sampled, 'image')})"
        )


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """A run's forecast for its remaining images, made after its first batches."""

    at: float
    """When, in seconds since the epoch."""
    done: int
    """Images this run had done by then."""
    left: int
    images_per_second: float
    limiting: Stage

    @property
    def seconds(self) -> float:
        return self.left / self.images_per_second

    def line(self) -> str:
        """For a person to read."""
        return (
            f"expected: {self.images_per_second:,.1f} images/s, limited by {self.limiting}, about "
            f"{duration(self.seconds)} for the other {counted(self.left, 'image')} (from the first {self.done:,})"
        )

    def compared(self, images: int, ended: float) -> dict[str, Any]:
        """For the details of a summary: what was predicted, and how it came.

        Args:
            images: done by this run in all; less than expected where another run shared the work.
            ended: when the last of them was, in seconds since the epoch.
        """
        if images <= self.done or ended <= self.at:
            return {}
        return {
            "predicted_after_images": self.done,
            "predicted_images_per_second": round(self.images_per_second, 2),
            "predicted_seconds": round(self.seconds, 2),
            "actual_images_per_second": round((images - self.done) / (ended - self.at), 2),
            "actual_seconds": round(ended - self.at, 2),
        }


def forecast_run(spent: dict[str, float], *, done: int, planned: int, cores: int, networks: int) -> RunForecast | None:
    """A run's prediction for the rest of itself, by the formula of `Costs`; None while, or if, there is none to make.

    Decoding runs ahead of the network, so images that are decoded already cost the rest nothing.

    Args:
        spent: as `live.Live` counts it.
        done: images of this run that are through the network.
        planned: images this run began with, done and not done.
        cores, networks: of all machines of the run.
    """
    left = planned - done
    if spent["batches"] < MIN_BATCHES or done < MIN_SHARE * planned or left < MIN_LEFT * planned:
        return None
    if spent["accepted"] < spent["images"]:  # the counter was restarted amid a shard, and has forgotten its costs
        return None
    accepted = spent["accepted"] / spent["prepared"]
    undecoded = max(0.0, planned - spent["prepared"]) / left
    costs = Costs(
        network_seconds=accepted * spent["network"] / spent["images"],
        network_core_seconds=accepted * spent["network_core"] / spent["images"],
        decode_core_seconds=undecoded * spent["decode_core"] / spent["prepared"],
        read_seconds=undecoded * spent["read"] / spent["prepared"],
        cores=cores,
        networks=networks,
    )
    return RunForecast(
        at=time.time(), done=done, left=left, images_per_second=costs.images_per_second, limiting=costs.limiting
    )
