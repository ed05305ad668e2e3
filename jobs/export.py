"""Write a head and its network as one model for other programs: uint8 images in, probabilities of the classes out.

    bottleneck export head/ flowers.keras
    bottleneck export head/ flowers.onnx

The network is built in float32 with the head's weights, put together with the head, compared with what the head says,
and saved: as Keras' own file of standard layers, or as ONNX (needs `bottleneck-features[onnx]`). FILE.json beside it
names the classes in the order of the outputs and how images are resized. About half a minute.
"""

import json
import logging
import os
from dataclasses import dataclass
from typing import Annotated, cast

import tyro

from bottleneck.errors import UsageError
from bottleneck.export import Format, export_head, facts_file
from bottleneck.head import Head
from bottleneck.store import open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")]
    """The head: a folder or s3:// prefix that `bottleneck fit` wrote."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """What to write: a new file or s3:// URI ending in .keras or .onnx."""
    weights: str | None = None
    """Where the network's weights are now, if they moved; others are refused. Default: where the head says."""


def main(config: Config) -> int:
    file_format = os.path.splitext(config.file)[1].removeprefix(".")
    if file_format not in ("keras", "onnx"):
        raise UsageError(f"Expected a file ending in .keras or .onnx. Received: {config.file}.")
    folder, slash, name = config.file.rpartition("/")
    store = open_store(folder or slash or ".")
    head = Head.load(config.head)
    if store.exists(name):  # before the seconds that building takes
        raise UsageError(f"{config.file} is there already. Give another name, or remove it.")
    data, facts = export_head(head, cast(Format, file_format), config.weights)
    if not store.create(name, data):
        raise UsageError(f"Another job wrote {config.file} at the same time. Give another name.")
    store.replace(f"{name}.json", facts_file(facts))
    log.info("%s: %s MB, %s classes, as %s", config.file, f"{len(data) / 1e6:,.1f}", len(facts["classes"]), file_format)
    log.info("its probabilities differ from the head's by %.1e at most", facts["max_difference"])
    print(json.dumps({"file": config.file, "bytes": len(data), **facts}, ensure_ascii=False))
    return 0
