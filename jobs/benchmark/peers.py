"""`--what peers`: the same photos through other programs.

One after the other, each a program of its own that writes its features to disk: `bottleneck extract`, Ray Data as its
documentation writes it, PyTorch, and a plain loop over ONNX Runtime. A peer whose package is not installed, or that
lacks the base, is left out.
"""

import importlib.util
import logging
import os
import shutil
import tempfile

from bottleneck.errors import BottleneckError, UsageError
from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from bottleneck.networks.device import has_bfloat16
from bottleneck.networks.prepare import prepare_network, resolve_apart
from bottleneck.networks.resolve import choose_precision
from bottleneck.spec import FeatureSpec
from jobs.benchmark import Config
from jobs.benchmark.extract import NUM_IMAGES, choose_shard_size, copy_images, measure_job
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, run_program, tell, watched
from jobs.results import answer

log = logging.getLogger(__name__)

TITLES = {
    "job": "bottleneck extract, {precision}",
    "ray": "Ray Data + Keras, float32",
    "torch": "torch DataLoader, {torch_precision}",
    "onnx": "ONNX Runtime, plain loop, float32",
}


def main(config: Config) -> int:
    num_images = config.num_images or NUM_IMAGES
    hardware = describe_hardware()
    spec = resolve_apart(config.features, choose_precision(config.features, has_bfloat16))
    left_out = without(spec)
    for name, reason in left_out.items():
        log.warning("%s is left out: %s", name, reason)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        images = os.path.join(folder, "images")
        apart(copy_images, config.source, images, num_images, spec)
        for _ in range(config.rounds):
            rounds.append(measure(config, images, os.path.join(folder, "output"), num_images, spec, hardware, left_out))
    result = {
        "what": config.what,
        "source": config.source,
        "images": num_images,
        "spec": spec.to_json(),
        "left_out": left_out,
        **medians(rounds),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def without(spec: FeatureSpec) -> dict[str, str]:
    """The peers that cannot take part, and why."""
    if spec.base == "stub":
        raise UsageError("Other programs do not have the base stub. Expected one of keras.applications.")
    if importlib.util.find_spec("torch") is None:
        return {"torch": "it is not installed; `pip install torch` in the environment of this command brings it."}
    if spec.base != "vgg16":
        return {"torch": f"its program has vgg16 only. Received: --base {spec.base}."}
    return {}


def measure(
    config: Config,
    images: str,
    output: str,
    num_images: int,
    spec: FeatureSpec,
    hardware: Figures,
    left_out: dict[str, str],
) -> Figures:
    """One round: everything once, nothing at the same time."""
    shard_size = choose_shard_size(num_images, GPU_BATCH_SIZE if hardware["gpus"] else CPU_BATCH_SIZE)
    found = {"job": watched("bottleneck extract", measure_job, images, output, config.features, shard_size)}
    shutil.rmtree(output)
    ray = ["jobs.benchmark.peer_ray", images, output, spec.base]
    found["ray"] = watched("Ray Data", measure_peer, ray, num_images)
    shutil.rmtree(output)
    graph = f"{output}.onnx"
    with open(graph, "wb") as file:
        file.write(prepare_network(config.features).graph or b"")
    onnx = ["jobs.benchmark.peer_onnx", images, f"{output}.npy", graph]
    found["onnx"] = watched("ONNX Runtime", measure_peer, onnx, num_images)
    os.remove(f"{output}.npy")
    os.remove(graph)
    if "torch" not in left_out:
        torch = ["jobs.benchmark.peer_torch", images, f"{output}.parquet"]
        found["torch"] = watched("PyTorch", measure_peer, torch, num_images)
        os.remove(f"{output}.parquet")
    return found


def measure_peer(module: list[str], num_images: int) -> Figures:
    """A peer's program from its start to its end, and its own clock from its first batch on."""
    summary, figures = run_program(module[0], module)
    if summary["images"] != num_images:
        raise BottleneckError(
            f"{module[0]} lost images. Expected features of {num_images}. Received those of {summary['images']}."
        )
    return {**figures, **summary}


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    spec, hardware, num_images = result["spec"], result["hardware"], result["images"]
    lines = [
        f"{num_images:,} images of {result['source']}: {spec['base']}, random weights; {hardware['cpu']}, "
        f"{hardware['cores']} cores",
        "",
        f"{'':32}{'images/s':>10}{'with start-up':>15}{'seconds':>10}{'driver MB':>11}{'all MB':>9}",
    ]
    for name, title in TITLES.items():
        if name not in result:
            continue
        one = result[name]
        named = title.format(**spec, torch_precision="bfloat16" if has_bfloat16() else "float32")
        lines.append(
            f"{named:32}{one['images_per_second']:10,.1f}{num_images / one['seconds']:15,.1f}"
            f"{one['seconds']:10,.1f}{one['driver_peak_rss_bytes'] / 1e6:11,.0f}{one['peak_pss_bytes'] / 1e6:9,.0f}"
        )
    return [*lines, *(f"{name} is left out: {reason}" for name, reason in result["left_out"].items())]
