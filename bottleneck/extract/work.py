"""What the workers of a run need to know beside the shard."""

import json
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bottleneck.dataset.footer import revision_in
from bottleneck.dataset.plan import Plan, data_name
from bottleneck.dataset.plan_parts import Shard
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureSpec, OutputSpec, PredictionSpec
from bottleneck.storage.store import open_store


@dataclass(frozen=True)
class Work:
    """What every worker needs besides the shard: small, and without secrets."""

    source: str
    output: str
    spec: FeatureSpec
    limits: Limits
    reading: Reading
    run_id: str
    predictions: PredictionSpec | None = None

    @classmethod
    def of(cls, plan: Plan, run_id: str = "") -> "Work":
        run_id = run_id or uuid.uuid4().hex[:12]
        return cls(plan.source, plan.output, plan.spec, plan.limits, plan.reading, run_id, plan.predictions)

    @property
    def holds(self) -> OutputSpec:
        """What the rows of the output contain."""
        return self.predictions or self.spec

    def to_text(self) -> str:
        """Encode as text, once per run; it travels unchanged between processes."""
        return json.dumps(self.to_json())

    @staticmethod
    @lru_cache(maxsize=4)
    def from_text(text: str) -> "Work":
        """Decode the text of `to_text`, once per process."""
        return Work.from_json(json.loads(text))

    def to_json(self) -> dict[str, Any]:
        predictions = self.predictions.to_json() if self.predictions else None
        return {
            **vars(self),
            "spec": self.spec.to_json(),
            "limits": self.limits.to_json(),
            "reading": self.reading.to_json(),
            "predictions": predictions,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Work":
        spec, limits = FeatureSpec.from_json(value["spec"]), Limits.from_json(value["limits"])
        predictions = PredictionSpec.from_json(spec, value["predictions"]) if value["predictions"] else None
        reading = Reading.from_json(value["reading"])
        return cls(**{**value, "spec": spec, "limits": limits, "reading": reading, "predictions": predictions})

    def is_committed(self, shard: Shard) -> bool:
        store, name = open_store(self.output), data_name(self.holds, shard.number)
        if not shard.revision:
            return store.exists(name)
        entry = store.stat(name)
        return entry is not None and revision_in(store, entry) >= shard.revision
