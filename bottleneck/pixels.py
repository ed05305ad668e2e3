"""How a network of an ONNX file takes pixels: what its file does not say.

A value of the network's input is `(pixel * scale - mean) / std`, for pixels 0 to 255.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from bottleneck.choices import check_choices
from bottleneck.errors import UsageError

PixelsName = Literal["imagenet", "caffe", "tf", "unit", "raw", "clip"]
Channels = Literal["rgb", "bgr"]
MAX_SIZE_PX = 2048


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The input of a network, fully resolved; part of the fingerprint."""

    channels: Channels
    scale: float
    mean: tuple[float, float, float]
    """In the order of the channels."""
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        check_choices(self)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        if set(value) != {"channels", "scale", "mean", "std"}:
            raise UsageError(f"The pixels of this feature spec are not known: {value}.")
        mean, std = (tuple(map(float, value[name])) for name in ("mean", "std"))
        return cls(channels=value["channels"], scale=float(value["scale"]), mean=mean, std=std)  # type: ignore[arg-type]


NONE, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
USUAL: dict[PixelsName, Pixels] = {
    "imagenet": Pixels(channels="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "clip": Pixels(
        channels="rgb",
        scale=1 / 255,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    "caffe": Pixels(channels="bgr", scale=1.0, mean=(103.939, 116.779, 123.68), std=ONE),
    "tf": Pixels(channels="rgb", scale=1 / 127.5, mean=ONE, std=ONE),
    "unit": Pixels(channels="rgb", scale=1 / 255, mean=NONE, std=ONE),
    "raw": Pixels(channels="rgb", scale=1.0, mean=NONE, std=ONE),
}


@dataclass(frozen=True, kw_only=True)
class PixelsRequest:
    """The input of a network of an ONNX file (base `onnx`); those of the catalog know theirs."""

    pixels: PixelsName | None = None
    """Base `onnx`: how its input is made from pixels 0 to 255. `imagenet` (torchvision, timm, DINOv2: RGB / 255, less
    mean, over deviation), `clip` (likewise, with CLIP's), `caffe` (BGR less mean), `tf` (-1 to 1), `unit` (0 to 1) or
    `raw` (0 to 255)."""
    channels: Channels | None = None
    """Base `onnx`: order of the channels, in place of that of --pixels."""
    scale: float | None = None
    """Base `onnx`: factor of the pixels, in place of that of --pixels."""
    mean: tuple[float, ...] = ()
    """Base `onnx`: three values to subtract after scaling, in the order of the channels."""
    std: tuple[float, ...] = ()
    """Base `onnx`: three values to divide by."""
    image_size: int | None = None
    """Side of the input in pixels. Default: that of the base, or what the ONNX file says. Not for layers of the top."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                given = " ".join(map(str, getattr(self, name)))
                raise UsageError(f"`{name}` takes three numbers, one a channel. Received: {given}.")
        if 0 in self.std or self.scale == 0:
            raise UsageError("`std` and `scale` take numbers other than 0.")
        if self.image_size is not None and not 8 <= self.image_size <= MAX_SIZE_PX:
            raise UsageError(f"`image_size` takes 8 to {MAX_SIZE_PX} pixels. Received: {self.image_size}.")

    @property
    def has_values(self) -> bool:
        """Whether more than the size is given."""
        return replace(self, image_size=None) != PixelsRequest()

    def resolved(self) -> Pixels:
        """What was asked for, with the parts that were given one by one in place of the usual ones."""
        if self.pixels is None and (self.scale is None or not self.mean or not self.std):
            raise UsageError(
                f"An ONNX file does not say how it takes pixels. Expected `pixels` {', '.join(USUAL)}, or `scale`, "
                "`mean` and `std`. torchvision's, timm's and DINOv2's networks take imagenet, Keras' ResNet and VGG "
                "caffe, Keras' MobileNet and Inception tf."
            )
        usual = USUAL[self.pixels or "raw"]
        return Pixels(
            channels=self.channels or usual.channels,
            scale=usual.scale if self.scale is None else self.scale,
            mean=self.mean or usual.mean,  # type: ignore[arg-type]  # three, as checked above
            std=self.std or usual.std,  # type: ignore[arg-type]
        )
