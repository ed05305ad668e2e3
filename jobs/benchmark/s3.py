"""`--what s3`: extraction from disk to disk, and from a bucket to a bucket.

The images are put below the prefix given, in a folder of this run's own, and that is removed in the end. Where the
bucket is follows from the environment (AWS_ENDPOINT_URL and the rest), as for `extract` itself.
"""

import os
import shutil
import tempfile
import uuid

from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from bottleneck.networks.device import has_bfloat16
from bottleneck.networks.prepare import resolve_apart
from bottleneck.networks.resolve import choose_precision
from bottleneck.storage.store import open_store
from jobs.benchmark import Config
from jobs.benchmark.extract import NUM_IMAGES, choose_shard_size, copy_images, measure_job
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, tell, watched
from jobs.results import answer


def main(config: Config) -> int:
    num_images = config.num_images or NUM_IMAGES
    hardware = describe_hardware()
    spec = resolve_apart(config.features, choose_precision(config.features, has_bfloat16))
    shard_size = choose_shard_size(num_images, GPU_BATCH_SIZE if hardware["gpus"] else CPU_BATCH_SIZE)
    bucket = f"{config.bucket.rstrip('/')}/benchmark-{uuid.uuid4().hex}"
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        images = os.path.join(folder, "images")
        apart(copy_images, config.source, images, num_images, spec)
        try:
            put(images, f"{bucket}/images")
            for number in range(config.rounds):
                output = os.path.join(folder, "output")
                given = (config.features, shard_size)
                disk = watched("from disk to disk", measure_job, images, output, *given)
                shutil.rmtree(output)
                output = f"{bucket}/output{number}"
                store = watched("from S3 to S3", measure_job, f"{bucket}/images", output, *given)
                rounds.append({"disk": disk, "s3": store})
        finally:
            remove(bucket)
    figures = medians(rounds)
    result = {
        "what": config.what,
        "source": config.source,
        "bucket": config.bucket,
        "images": num_images,
        "spec": spec.to_json(),
        **figures,
        "s3_to_disk": figures["s3"]["images_per_second"] / figures["disk"]["images_per_second"],
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def put(folder: str, prefix: str) -> None:
    """Copy the files of a folder below a prefix of a bucket."""
    store = open_store(prefix)
    for entry in os.scandir(folder):
        with open(entry.path, "rb") as file:
            store.create(entry.name, file.read())


def remove(prefix: str) -> None:
    """Remove everything below a prefix of a bucket."""
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False)
    for entry in open_store(prefix).list():
        files.rm_file(f"{prefix}/{entry.key}")


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    spec, hardware = result["spec"], result["hardware"]
    return [
        f"{result['images']:,} images of {result['source']}: {spec['base']}, {spec['precision']}; {hardware['cpu']}, "
        f"{hardware['cores']} cores; {os.environ.get('AWS_ENDPOINT_URL', 'AWS')}",
        "",
        f"{'':20}{'images/s':>10}{'first batch s':>15}{'whole command s':>17}",
        _line("disk to disk", result["disk"]),
        _line("S3 to S3", result["s3"]),
        "",
        f"S3 reaches {result['s3_to_disk']:.2f} of the disk",
    ]


def _line(title: str, one: Figures) -> str:
    first_batch = one["first_batch_seconds"]
    shown = "-" if first_batch is None else f"{first_batch:,.1f}"
    return f"{title:20}{one['images_per_second']:10,.1f}{shown:>15}{one['seconds']:17,.1f}"
