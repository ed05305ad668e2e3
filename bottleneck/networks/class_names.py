"""The names of a network's classes: ImageNet's from Keras' file, or a list of the user."""

import json
import os
from pathlib import Path

from bottleneck.errors import UsageError

CLASS_INDEX = "imagenet_class_index.json"


def class_names(num_classes: int, file: str | None = None) -> list[str]:
    """The names of a network's classes, in the order of its outputs. Nothing is downloaded.

    Args:
        file: a JSON file like Keras' imagenet_class_index.json (`{"0": ["n01440764", "tench"], ...}`), or a text file
            with a name a line; Keras' own file in its cache where left out.

    Raises:
        UsageError: if there is no file, or it does not name just these classes.
    """
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / CLASS_INDEX
    path = Path(file).expanduser() if file else cache
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        where = f"--names {file}" if file else f"Keras' cache ({cache})"
        raise UsageError(
            f"The names of the network's classes cannot be read from {where}: {error}. Give --names FILE: Keras' "
            f"{CLASS_INDEX} (https://storage.googleapis.com/download.tensorflow.org/data/{CLASS_INDEX}), or a text "
            "file with a name a line."
        ) from None
    names = _from_json(text, path) if text.lstrip().startswith("{") else text.split("\n")
    names = names[:-1] if names and not names[-1] else names
    if len(names) != num_classes:
        raise UsageError(f"Expected {num_classes} names, one for each class. Received: {len(names)} in {path}.")
    return names


def _from_json(text: str, path: Path) -> list[str]:
    try:
        index = json.loads(text)
        return [str(index[str(number)][1]) for number in range(len(index))]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UsageError(
            f'{path} is no index of classes: {error!r}. Expected {{"0": ["n01440764", "tench"], ...}}.'
        ) from None
