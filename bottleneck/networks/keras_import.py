"""Import Keras without the optional libraries that it would load and this project never uses.

`import keras` loads scikit-learn (for its wrappers) and matplotlib (for its plots) wherever they are installed. There
is no setting against that, and no submodule can be imported alone: each one runs `keras/__init__.py` first, and the
wrappers inherit from scikit-learn's classes, so `importlib.util.LazyLoader` does not help either. On one core, Keras
with TensorFlow takes 2.5 s instead of 3.8 s without them, in every process that runs a network.

What is left is Python's documented switch: a module that is None in `sys.modules` counts as not installed
(https://docs.python.org/3/reference/import.html#the-module-cache). It is used in this file only, while Keras is
imported. A thread that imports one of the two for the first time in these seconds gets an ImportError.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

from bottleneck.console import quiet_start
from bottleneck.errors import UsageError

UNUSED = ("sklearn", "matplotlib")
"""Optional dependencies of Keras that nothing here uses through Keras."""


def import_keras(num_threads: int | None = None) -> Any:
    """Import Keras without its start-up messages and set the number of threads of its backend.

    Later calls return the same module.

    Args:
        num_threads: CPU threads of TensorFlow or torch. Default: the backend decides.

    Raises:
        UsageError: if the backend that KERAS_BACKEND names is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    backend = os.environ["KERAS_BACKEND"]
    try:
        with quiet_start(), _without_unused():
            import keras
    except ImportError as error:
        raise UsageError(
            f"Keras' backend {backend} is not installed ({error}). Expected tensorflow, torch or jax in KERAS_BACKEND."
        ) from error
    if num_threads and backend == "tensorflow":
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != num_threads:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
    elif num_threads and backend == "torch":
        import torch

        torch.set_num_threads(num_threads)
    return keras


@contextlib.contextmanager
def _without_unused() -> Iterator[None]:
    """Make the unused libraries count as not installed, and switch off garbage collection.

    Collections during the import take about 1 s and find nothing.
    """
    if "keras" in sys.modules:
        yield
        return
    hidden = [name for name in UNUSED if name not in sys.modules]
    was_enabled = gc.isenabled()
    gc.disable()
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
        if was_enabled:
            gc.enable()
