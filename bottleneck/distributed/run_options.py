"""The options of a run: how it uses its machines."""

from dataclasses import dataclass

from bottleneck import errors
from bottleneck.choices import check_choices
from bottleneck.spec import RuntimeName


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run uses its machines. Changes speed, never a feature."""

    num_actors: tuple[int, ...] = ()
    """Number of networks, or the minimum and maximum. The maximum is requested from the cluster; networks start as it
    grows. Default: one per GPU, or one per eight cores without GPUs."""
    use_gpu: bool = False
    """Wait for GPUs if the cluster has none yet. GPUs that it has are always used."""
    batch_size: int | None = None
    """Largest number of images in a batch; shards are divided evenly. Default: 32 on CPUs, 256 on GPUs."""
    runtime: RuntimeName = "auto"
    """What executes the network. `auto` is Keras on GPUs and for bfloat16, else the fastest on this machine, measured
    once; the features are the same. `ncnn` takes plain convolutions such as VGG16's."""

    def __post_init__(self) -> None:
        check_choices(self)
        if list(self.num_actors) != sorted(self.num_actors) or min(self.num_actors, default=1) < 1:
            raise errors.UsageError(f"`num_actors` takes a number from 1 up, or two. Received: {self._asked}.")
        if len(self.num_actors) > 2:
            raise errors.UsageError(
                f"`num_actors` takes one number, or the least and the most. Received: {self._asked}."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise errors.UsageError(f"`batch_size` takes a number from 1 up. Received: {self.batch_size}.")

    @property
    def _asked(self) -> str:
        return " ".join(map(str, self.num_actors))
