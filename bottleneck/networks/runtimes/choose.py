"""Choose the runtime of a network: the one asked for, or the fastest one here by measurement."""

import logging

from bottleneck.catalog import ONNX_BASE
from bottleneck.errors import UsageError
from bottleneck.networks.prepared import MAX_DIFFERENCE, MIN_COSINES, PreparedNetwork
from bottleneck.networks.runtimes.probe import Probed, is_probed, known, probe
from bottleneck.networks.runtimes.table import RUNTIMES, is_installed
from bottleneck.spec import Precision, RuntimeName

log = logging.getLogger(__name__)

DEFAULT = "onnxruntime"
"""What runs float32 on a CPU where nothing was measured."""
MIN_IMAGES = 256
"""A job of fewer images ends before a probe has paid."""


def choose_runtime(
    asked: RuntimeName, network: PreparedNetwork, precision: Precision, num_threads: int | None, num_images: int
) -> str:
    """The runtime for a network on this machine's CPUs: a key of `RUNTIMES`, or `keras`.

    Args:
        num_images: that are to come; a probe has to pay.

    Raises:
        UsageError: if the one asked for is not installed, or does not take this network in this precision.
    """
    if network.base == ONNX_BASE and (asked == "keras" or (precision == "bfloat16" and not is_installed("openvino"))):
        raise UsageError(
            f"An ONNX file does not run with Keras; in bfloat16 it takes OpenVINO (`pip install openvino`). Received: "
            f"`runtime` {asked}, `precision` {precision}. Leave both out."
        )
    if network.graph is None:
        if asked in RUNTIMES:
            raise UsageError(
                f"There is no graph of {network.base} for `runtime` {asked}: graphs are made on Keras' TensorFlow "
                "backend, and only kept if they give Keras' features. Leave KERAS_BACKEND out, or give `runtime` keras."
            )
        return "keras"
    if asked in RUNTIMES:
        return _checked(asked, network, precision, num_threads)
    if precision == "bfloat16":
        return "openvino" if is_installed("openvino") else "keras"
    if num_images < MIN_IMAGES and not is_probed(network, precision, num_threads):
        return DEFAULT
    runtimes = candidates(network, precision)
    found = known(network, precision, runtimes, num_threads)
    if found is None and len(runtimes) > 1 and num_images >= MIN_IMAGES:
        found = probe(network, precision, runtimes, num_threads)
        log.info("runtimes on this machine, images/s: %s", ", ".join(map(_told, found)))
    chosen = fastest(found, precision) if found else DEFAULT
    if chosen == "keras" and precision == "int8":
        measured = ", ".join(f"{one.runtime} {one.error or f'{one.cosine:.5f}'}" for one in found or [])
        raise UsageError(
            f"No runtime here gives the features of {network.base} in int8. Expected a cosine of "
            f"{MIN_COSINES[precision]} to float32 at least. Received: {measured}. Give `precision` float32."
        )
    return chosen


def candidates(network: PreparedNetwork, precision: Precision) -> list[str]:
    """The installed runtimes that take a network."""
    assert network.graph is not None
    return [
        name
        for name, one in RUNTIMES.items()
        if is_installed(name) and precision in one.precisions and one.takes(network.graph)
    ]


def fastest(found: list[Probed], precision: Precision) -> str:
    """The fastest runtime among those whose features are right; `keras` if there is none."""
    right = [one for one in found if one.agrees(precision)]
    return max(right, key=lambda one: one.images_per_second).runtime if right else "keras"


def _checked(asked: str, network: PreparedNetwork, precision: Precision, num_threads: int | None) -> str:
    if not is_installed(asked):
        raise UsageError(
            f"`runtime` {asked} is not installed: `pip install {RUNTIMES[asked].package}` brings it. Installed: keras, "
            f"{', '.join(filter(is_installed, RUNTIMES))}. Or leave `runtime` out, which takes the fastest."
        )
    fitting = candidates(network, precision)
    valid = ", ".join([*fitting, *([] if network.base == ONNX_BASE or precision == "int8" else ["keras"])])
    if asked not in fitting:
        raise UsageError(
            f"`runtime` {asked} does not run {network.base} in {precision}. Expected auto, {valid}. Received: {asked}."
        )
    [found] = known(network, precision, [asked], num_threads) or probe(network, precision, [asked], num_threads)
    if not found.agrees(precision):
        what = found.error or (
            f"its features differ from the reference by {found.difference:.1e} of the largest value (at most "
            f"{MAX_DIFFERENCE:g})"
            if precision == "float32"
            else f"its features have a cosine of {found.cosine:.5f} to the reference (at least "
            f"{MIN_COSINES[precision]})"
        )
        raise UsageError(f"`runtime` {asked} is not offered for {network.base} here: {what}. Expected auto, {valid}.")
    return asked


def _told(one: Probed) -> str:
    if one.error:
        return f"{one.runtime} failed ({one.error})"
    return f"{one.runtime} {one.images_per_second:,.1f}"
