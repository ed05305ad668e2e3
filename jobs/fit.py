"""Fit a head on a features dataset: cross-validation, the best C, and a judgement on images it has not seen.

    bottleneck fit features/ head/
    bottleneck fit s3://bucket/features s3://bucket/head --c 0.1 1 10 100 1000 10000 --folds 3 --num-workers 4

A Ray Train job; workers that die are replaced. The optimum is scikit-learn's (LogisticRegression, LinearSVC), whatever the
number of workers. 1,360 images of 25,088 dimensions with six values of C take about 20 s on two cores, most of it Ray's
start. HEAD gets head.safetensors and head.json, report.html and confusion.png. The JSON line has the figures.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import tyro

from bottleneck.errors import FingerprintError, UsageError
from bottleneck.evaluate import Evaluation
from bottleneck.features import Features, finished, open_features, read_footer
from bottleneck.fitting import Fitted, chosen_layer
from bottleneck.head import HEAD_JSON, Head
from bottleneck.leader import HeadRequest
from bottleneck.progress import duration
from bottleneck.store import open_store
from bottleneck.trainer import fit_head

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    features: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """The output of `bottleneck extract`."""
    head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")]
    """A folder or s3://bucket/prefix for the head."""
    request: HeadRequest = field(default_factory=HeadRequest)
    num_workers: int = 1
    """Workers, each of which owns a share of the features."""
    use_gpu: bool = False
    """Place each worker on a GPU's node."""
    allow_incomplete: bool = False
    """Also fit on features whose extraction is not finished."""


def main(config: Config) -> int:
    started = time.monotonic()
    features = open_features(config.features, allow_incomplete=config.allow_incomplete)
    layer = chosen_layer(features, config.request)
    if open_store(config.head).exists(HEAD_JSON):
        head = Head.load(config.head)
        _check_same(head, features, config.request, layer, config.head)
        log.info("%s is fitted already", config.head)
        print(json.dumps(_result(config.head, head)))
        return 0
    fitted = fit(config, features)
    fitted.head.save(config.head)
    evaluation = fitted.evaluator.result()
    tell(fitted, evaluation, config.head, time.monotonic() - started)
    print(json.dumps(_result(config.head, Head.load(config.head))))
    return 0
