"""What a job is asked before it is sent to a cluster: that it exists and parses, holds no secret and names no folder of
this machine. All of it would go wrong there later, or be read by others."""

import dataclasses
import importlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from bottleneck.errors import UsageError
from jobs.__main__ import JOBS, check_name, split_json
from jobs.command_line import parse

log = logging.getLogger(__name__)

PLACES = {
    *("source", "output", "head", "features", "test", "images", "places", "file", "a", "b", "roots", "weights"),
    *("report", "sheet", "table", "plot", "names", "folder", "bucket"),
}
"""Options that name a file or folder; a test requires a decision for each new one."""
SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN")
CREDENTIALS = re.compile(
    r"://[^/]*@|[?&][^=&]*(key|secret|token|signature|credential|password|sig)[^=&]*=|aws_(secret|session)_", re.I
)


def check_job(words: tuple[str, ...], is_loopback: bool) -> None:
    """Raise if a job cannot be sent; wrong options exit with code 2, as in the job itself.

    Raises:
        UsageError: unknown job, credentials in an argument, a folder that the cluster's machines do not see.
    """
    if not words:
        raise UsageError("Expected a job after `--`. Received: nothing.")
    check_name(words[0], [job for job in JOBS if job != "submit"])
    for word in words:
        _check_secrets(word)
    config = parse(importlib.import_module(f"jobs.{words[0]}"), split_json(list(words[1:]))[1])
    for option, place in _places(config):
        _check_place(option, place, is_loopback)


def _check_secrets(word: str) -> None:
    held = [name for name in SECRET_VARIABLES if len(os.environ.get(name, "")) >= 8 and os.environ[name] in word]
    if held or CREDENTIALS.search(word):
        raise UsageError(  # without the word itself, which would be in logs then
            "A job's arguments hold no credentials, as everybody with access to the cluster reads them. Received one "
            f"that {f'holds the value of {held[0]}' if held else 'looks like it'}. Give credentials to the cluster's "
            "nodes, by a role or their own environment."
        )


def _places(config: Any) -> Iterator[tuple[str, str]]:
    """Every file and folder that a job's options name, as (option, place)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _places(value)
        elif field.name in PLACES:
            yield from ((field.name, one) for one in (value if isinstance(value, tuple) else (value,)) if one)


def _check_place(option: str, place: str, is_loopback: bool) -> None:
    if "://" in place:  # file:// too: whoever writes it means the cluster's machines
        return
    if option == "weights" and (place == "imagenet" or place.startswith("random:")):
        return
    if option == "places" and not os.path.exists(place):  # the key of an image of the dataset
        return
    if not os.path.isabs(place):
        raise UsageError(
            f"On the cluster nobody knows what folder {place} is relative to. Expected s3://..., or the whole path of "
            f"a folder that all machines of the cluster see. Received for {option}: {place}."
        )
    if not is_loopback:
        raise UsageError(
            "The cluster's machines do not see the folders of this one. Expected s3://..., or, where all of them see a "
            f"folder under the same name, file://{place}. Received for {option}: {place}."
        )
    log.warning("%s is a folder of the cluster's machines; it must be the same one for all of them.", place)
