"""`--what growth`: planning, extracting and verifying with growing numbers of images.

The network is the base `stub`, which costs nothing, so that what is measured is everything else. Each command runs in a
process of its own. Times contain its start; what a further image costs, between two numbers of images, does not.
"""

import os
import shutil
import tempfile
from typing import Any

from bottleneck.dataset.make_plan import SHARD_SIZE
from bottleneck.distributed.local_ray import local_store_bytes
from jobs.benchmark import Config
from jobs.benchmark.process import Figures, describe_hardware, medians, run_job, tell, watched
from jobs.benchmark.tars import check_room, write_source
from jobs.results import answer

NUM_IMAGES = 1_000_000
FIRST_SIZE = 1000
OVERHEAD_SIZE = 10_000
"""Images that are extracted in small shards as well, to tell what a shard costs from what its images do."""
SMALL_SHARD = 32
"""One batch: more shards take no more calls of the network."""
NETWORK = ("--base", "stub", "--weights", "random:0")
OPTIONS = (*NETWORK, "--shard-size", str(SHARD_SIZE))
"""One size of shards for all numbers of images, so that growth is told from it."""
COMMANDS = ("plan", "extract", "resume", "half", "verify")


def main(config: Config) -> int:
    hardware = describe_hardware()
    sizes = sizes_up_to(config.num_images or NUM_IMAGES)
    rounds: list[Figures] = [{} for _ in range(config.rounds)]
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        check_room(folder, sizes)
        smaller = None
        for size in sizes:
            source = os.path.join(folder, f"images-{size}")
            write_source(source, size, smaller)
            smaller = source
            for figures in rounds:
                figures.update(measure(source, os.path.join(folder, "output"), size))
    result = {"what": config.what, "images": sizes[-1], **summarize(rounds, sizes)}
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def sizes_up_to(num_images: int) -> list[int]:
    """1,000, 10,000 and so on, and at last the number itself."""
    sizes = [FIRST_SIZE]
    while sizes[-1] * 10 < num_images:
        sizes.append(sizes[-1] * 10)
    return [size for size in sizes if size < num_images] + [num_images]


def measure(source: str, output: str, size: int) -> Figures:
    """Every command once on one number of images; the output is removed in the end."""
    found = {
        "plan": watched(f"{size:,} images: plan", command, ["plan", source, output, *OPTIONS, "--no-estimate"]),
        "extract": watched(f"{size:,} images: extract", command, ["extract", source, output, *OPTIONS]),
        "resume": watched(f"{size:,} images: extract, finished", command, ["extract", source, output, *OPTIONS]),
    }
    remove_half(output)
    found["half"] = watched(f"{size:,} images: extract, half done", command, ["extract", source, output, *OPTIONS])
    found["verify"] = watched(f"{size:,} images: verify", command, ["verify", output])
    shutil.rmtree(output)
    if size == OVERHEAD_SIZE:
        arguments = ["extract", source, output, *NETWORK, "--shard-size", str(SMALL_SHARD)]
        found["small"] = watched(f"{size:,} images: extract, small shards", command, arguments)
        shutil.rmtree(output)
    return {f"{name} {size}": figures for name, figures in found.items()}


def command(arguments: list[str]) -> Figures:
    """One command as a user runs it; of an extraction also its own clock, which begins with the first batch."""
    summary, figures = run_job(arguments)
    details = summary.get("details", {})
    return {
        **figures,
        "all_cpu_seconds": figures["cpu_seconds"],
        "shards": summary.get("shards"),
        "images_per_second": details.get("images_per_second"),
        "first_batch_seconds": details.get("first_batch_seconds"),
    }


def remove_half(output: str) -> None:
    """Leave what a run leaves that was killed half-way: every second data file, and no word of an end."""
    os.remove(os.path.join(output, "_SUCCESS.json"))
    data = os.path.join(output, "data")
    for name in sorted(os.listdir(data))[::2]:
        os.remove(os.path.join(data, name))


def summarize(rounds: list[Figures], sizes: list[int]) -> Figures:
    """The median of every figure over the rounds, by size, and what growth costs."""
    figures = medians(rounds)
    found = [{"images": size, **{name: figures[f"{name} {size}"] for name in COMMANDS}} for size in sizes]
    for before, row in zip([None, *found], found, strict=False):
        row["further"] = further(before, row) if before else None
    small = figures.get(f"small {OVERHEAD_SIZE}")
    overhead = a_shard(small, figures[f"extract {OVERHEAD_SIZE}"]) if small else None
    return {"sizes": found, "small": small, "a_shard": overhead}


def further(before: Figures, row: Figures) -> Figures:
    """What a further image took of each command, in seconds and bytes, and a further shard of extraction."""
    images: int = row["images"] - before["images"]
    shards: int = row["extract"]["shards"] - before["extract"]["shards"]

    def each(command: str, name: str) -> float:
        return float(row[command][name] - before[command][name]) / images

    return {
        **{f"{command}_seconds": each(command, "seconds") for command in COMMANDS},
        **{f"{what}_cpu_seconds": each("extract", f"{what}_cpu_seconds") for what in ("driver", "all")},
        **{f"{command}_bytes": each(command, "driver_peak_rss_bytes") for command in ("plan", "extract", "verify")},
        "extract_seconds_per_shard": each("extract", "seconds") * (images / shards) if shards else None,
    }


def a_shard(small: Figures, few: Figures) -> Figures:
    """What each of more shards of the same images took; its time is None where a run lost count of its first batch."""
    shards = small["shards"] - few["shards"]
    rates = small["images_per_second"], few["images_per_second"]
    seconds = None if None in rates else OVERHEAD_SIZE / rates[0] - OVERHEAD_SIZE / rates[1]
    return {
        "seconds": None if seconds is None else seconds / shards,
        "all_cpu_seconds": (small["all_cpu_seconds"] - few["all_cpu_seconds"]) / shards,
    }


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    hardware, sizes = result["hardware"], result["sizes"]
    lines = [
        f"made-up images in tars, base stub; {hardware['cpu']}, {hardware['cores']} cores",
        "",
        f"{'':9}  {' seconds of whole commands ':-^49}  {' extract ':-^33}  {' driver, MB ':-^22}",
        f"{'images':>9}{'plan':>9}{'extract':>9}{'finished':>10}{'half':>8}{'first':>7}{'verify':>8}"
        f"{'images/s':>11}{'driver CPU s':>14}{'store MB':>10}{'plan':>8}{'extract':>8}{'verify':>8}",
        *(_line(row) for row in sizes),
        "finished, half: extract again, when all is done and when every second shard is gone; first: its first batch",
        "store: pages of Ray's shared memory that were ever touched; it goes through all it may have, "
        f"{local_store_bytes() / 1e6:,.0f} MB, before it uses one again",
    ]
    if len(sizes) > 1:
        lines += [
            "",
            "a further image, from one line above to the next (linear: the same in every line; flat: near 0)",
            f"{'':9}  {' microseconds of whole commands ':-^42}  {' extract, CPU us ':-^15}  {' driver, bytes ':-^23}",
            f"{'images':>9}{'plan':>9}{'extract':>9}{'finished':>10}{'half':>8}{'verify':>8}{'driver':>9}{'all':>8}"
            f"{'plan':>9}{'extract':>8}{'verify':>8}{'ms a shard':>13}",
            *(_further_line(row) for row in sizes if row["further"]),
        ]
    if overhead := result["a_shard"]:
        seconds = overhead["seconds"]
        lines += [
            "",
            f"a shard costs {_or_dash(seconds and 1000 * seconds, ',.1f')} ms beside its images, "
            f"{1000 * overhead['all_cpu_seconds']:,.1f} ms of CPU time: what {OVERHEAD_SIZE:,} images took more in "
            f"{result['small']['shards']:,} shards",
        ]
    return lines


def _line(row: Figures) -> str:
    extract = row["extract"]
    seconds = (row[name]["seconds"] for name in ("plan", "extract", "resume", "half"))
    memory = (row[name]["driver_peak_rss_bytes"] / 1e6 for name in ("plan", "extract", "verify"))
    store = extract["store_touched_bytes"]
    return (
        "{:9,}{:9,.1f}{:9,.1f}{:10,.1f}{:8,.1f}".format(row["images"], *seconds)
        + f"{_or_dash(row['half']['first_batch_seconds'], ',.1f'):>7}{row['verify']['seconds']:8,.1f}"
        + f"{_or_dash(extract['images_per_second'], ',.0f'):>11}{extract['driver_cpu_seconds']:14,.1f}"
        + f"{_or_dash(store and store / 1e6, ',.0f'):>10}"
        + "".join(f"{value:8,.0f}" for value in memory)
    )


def _further_line(row: Figures) -> str:
    found = row["further"]
    times = [1e6 * found[f"{name}_seconds"] for name in (*COMMANDS, "driver_cpu", "all_cpu")]
    memory = [found[f"{name}_bytes"] for name in ("plan", "extract", "verify")]
    shard_seconds = found["extract_seconds_per_shard"]
    return (
        "{:9,}{:9,.0f}{:9,.0f}{:10,.0f}{:8,.0f}{:8,.0f}{:9,.0f}{:8,.0f}".format(row["images"], *times)
        + "{:9,.0f}{:8,.0f}{:8,.0f}".format(*memory)
        + f"{_or_dash(shard_seconds and 1000 * shard_seconds, ',.1f'):>13}"
    )


def _or_dash(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
