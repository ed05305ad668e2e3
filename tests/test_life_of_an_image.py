"""Read this first: what happens to one image, step by step, and to the bad one beside it."""

from pathlib import Path

import numpy as np
from tiny import REQUEST, jpeg, write_files

from bottleneck.audit.verify import verify
from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.success import finish
from bottleneck.extract.decode import Decoded, Rejected, decode
from bottleneck.extract.prepare import prepare_shard
from bottleneck.extract.shard import extract_prepared
from bottleneck.extract.work import Work
from bottleneck.networks.base import Base
from bottleneck.networks.resolve import resolve
from bottleneck.storage.store import Wanted, open_store


def test_the_life_of_an_image(tmp_path: Path) -> None:
    source, output = str(tmp_path / "photos"), str(tmp_path / "features")
    write_files(tmp_path / "photos", {"cats/tom.jpg": jpeg(1), "dogs/spike.jpg": b"<html>not found</html>"})

    # What features are is decided first, and known by a fingerprint.
    spec = resolve(REQUEST, "float32")
    assert (spec.layers, spec.dims, spec.image_size_px) == (("conv_pw_13_relu:avg",), (256,), 224)

    # Listed: the source is frozen as a plan of shards; labels are the folders' names.
    plan = make_plan(source, output, spec)
    [shard] = plan.shards()
    tom, spike = read_images(open_store(output), shard)
    assert (tom.key, tom.label) == ("cats/tom.jpg", "cats")
    assert (spike.key, spike.label) == ("dogs/spike.jpg", "dogs")

    # Read: bytes, if the object is still the one that was listed.
    data = open_store(source).get(Wanted(tom.key, tom.size, tom.etag))
    assert data == jpeg(1)

    # Decoded: uint8 RGB at the base's input size; or rejected, with a reason.
    decoded = decode(data, spec, plan.limits)
    assert isinstance(decoded, Decoded)
    assert (decoded.pixels_HWC.shape, decoded.pixels_HWC.dtype) == ((224, 224, 3), np.uint8)
    assert decode(b"<html>not found</html>", spec, plan.limits) == Rejected("not_an_image")

    # Batched: a CPU task does the same for a whole shard.
    work = Work.of(plan)
    prepared = prepare_shard(work, shard)
    assert prepared.pixels_NHWC.shape == (1, 224, 224, 3)
    assert prepared.rows.column("reason").to_pylist() == [None, "not_an_image"]

    # Extracted and written: an actor computes the features and creates one Parquet object, which is the commit.
    base = Base(spec, batch_size=4)
    receipt = extract_prepared(work, base, prepared)
    assert receipt.statuses == {"ok": 1, "not_an_image": 1}
    assert plan.committed() == {0: receipt.bytes}
    assert extract_prepared(work, base, prepared).created is False  # a second attempt changes nothing

    # Finished: every planned image is accounted for.
    assert finish(plan)["images"] == 2
    assert verify(output, full=True).exit_code == 0

    # Read again.
    features_ND, labels_N = open_features(output).arrays()
    keys_N = open_features(output).keys()
    assert (list(keys_N), list(labels_N)) == (["cats/tom.jpg"], ["cats"])
    np.testing.assert_array_equal(features_ND, base(decoded.pixels_HWC[None])[0])
