"""Show the layers of a network, and the features that can be taken from them.

    bottleneck describe
    bottleneck describe inception_v3
    bottleneck describe mobilenet_0.5 --plot mobilenet.svg
    bottleneck describe onnx --weights model.onnx

Lists all bases if BASE is not given. Builds the network without weights, so nothing is downloaded.
"""

import logging
import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from bottleneck.catalog import ONNX_BASE, base_named
from bottleneck.errors import UsageError
from bottleneck.networks.describe import bases, describe, describe_onnx, draw_network, table, table_of_bases
from bottleneck.storage.store import place_of
from jobs.results import answer, show

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    base: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[BASE]")] = None
    """The network, as `vgg16`, `inception_v3` or `mobilenet_v2_0.35`. Default: list all names."""
    weights: str | None = None
    """Base `onnx`: the file or URI of the network."""
    image_size: int | None = None
    """Base `onnx`: side of the input in pixels, if the file leaves it open."""
    plot: str | None = None
    """Also draw the network, to a file or s3:// URI ending in .png or .svg."""


def main(config: Config) -> int:
    file_format = os.path.splitext(config.plot or "")[1].removeprefix(".")
    if config.plot and file_format not in ("png", "svg"):
        raise UsageError(f"--plot takes a file ending in .png or .svg. Received: {config.plot}.")
    if config.base is None:
        if config.plot:
            raise UsageError("--plot draws one network: give its BASE. `bottleneck describe` lists them.")
        for line in table_of_bases().split("\n"):
            show(line)
        answer({"bases": bases()})
        return 0
    if config.plot:
        place_of(config.plot)[0].try_writing()
    base = base_named(config.base)
    if (base == ONNX_BASE) != (config.weights is not None) or (config.image_size and base != ONNX_BASE):
        raise UsageError(
            f"`bottleneck describe onnx` takes --weights FILE.onnx, and no other base does. Received: {config.base}."
        )
    description = describe(base) if config.weights is None else describe_onnx(config.weights, config.image_size)
    for line in table(description).split("\n"):
        show(line)
    if config.plot:
        store, name = place_of(config.plot)
        store.replace(name, draw_network(description, file_format))
        show(f"plot: {config.plot}")
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "parameters": layer.num_parameters,
            "pooled_dim": layer.pooled_dim,
            "dim": layer.dim,
            "in_top": layer.in_top,
        }
        for layer in description.layers
    ]
    result = {
        "base": base,
        "input_shape": list(description.input_shape),
        "parameters": description.num_parameters,
        "parameters_without_top": description.num_body_parameters,
        "default_layer": description.default_layer,
        "plot": config.plot,
        "layers": layers,
    }
    answer(result)
    return 0
