"""A head on several layers side by side is one on their features in one row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_fit import LAYER, features_of, names

from bottleneck.dataset.features import Features
from bottleneck.dataset.plan import load_plan
from bottleneck.distributed.fit import fit_head
from bottleneck.errors import UsageError
from bottleneck.heads.export import export_head
from bottleneck.heads.fit import evaluate_head
from bottleneck.heads.head import Head
from jobs import predict

BOTH = f"{LAYER} + fc2:none"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("two"), names(160), gap=0.7, beside=4)


def stacked(features: Features) -> np.ndarray:
    return np.hstack([features.arrays(layer)[0] for layer in features.layers])


@pytest.fixture(scope="module")
def head(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Head:
    folder = str(tmp_path_factory.mktemp("heads") / "head")
    fit_head(features, layer=BOTH, scale="l2", c=(0.1, 1.0)).save(folder)
    return Head.load(folder)


@pytest.mark.parametrize("scale", ["none", "standard", "l2"])
def test_the_optimum_is_that_of_the_features_in_one_row(features: Features, scale: str) -> None:
    found = fit_head(features, layer=BOTH, scale=scale, test_fraction=0)  # type: ignore[arg-type]
    _, labels_N = features.arrays(LAYER)
    expected = Head(scale=scale).fit(stacked(features), labels_N)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-8)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, atol=1e-8)
    assert found.origin.layer == BOTH


def test_the_order_is_that_of_the_request(features: Features) -> None:
    turned = fit_head(features, layer=f"fc2:none + {LAYER}", test_fraction=0)
    straight = fit_head(features, layer=BOTH, test_fraction=0)
    np.testing.assert_allclose(np.roll(turned.coef_, -4, axis=1), straight.coef_, atol=1e-8)


def test_it_is_evaluated_and_predicts_as_any_other(features: Features, head: Head, tmp_path: Path) -> None:
    assert evaluate_head(head, features, held_out=True).num_images == head.origin.details["held_out"]
    uri, output = tmp_path / "head", str(tmp_path / "predictions")
    head.save(str(uri))
    predict.predict(predict.Config(source=features.plan.output, head=str(uri), output=output))
    plan = load_plan(output)
    assert plan is not None
    files = [f"{output}/{plan.data_name(shard)}" for shard in range(plan.num_shards)]
    found = [row for file in files for row in pq.ParquetFile(file).read(columns=["predicted"]).column(0).to_pylist()]
    assert found == head.predict(stacked(features)).tolist()
    layers = [features.arrays(layer)[0] for layer in features.layers]
    np.testing.assert_array_equal(head.origin.taken(layers), stacked(features))


@pytest.mark.parametrize("layer", [f"{LAYER} + fc9", f"{LAYER} + {LAYER}", None])
def test_layers_that_are_not_there_or_twice_are_refused(features: Features, layer: str | None) -> None:
    with pytest.raises(UsageError, match=r"Expected `layer` to be one of .*, or different ones joined by ' \+ '"):
        fit_head(features, layer=layer)


def test_it_is_not_exported_as_one_model(head: Head) -> None:
    with pytest.raises(UsageError, match="several layers side by side is not exported"):
        export_head(head, "onnx")
