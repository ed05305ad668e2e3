"""Where a head comes from: the features it was fitted on, and how."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bottleneck.errors import FingerprintError
from bottleneck.spec import FeatureSpec, layers_in


@dataclass(frozen=True)
class Origin:
    """Where a head comes from; what another dataset must share with it, and what a report tells."""

    layer: str
    """Column of the features, as `block5_pool:avg`, or several that are taken side by side, joined by ` + `."""
    spec: FeatureSpec
    features: str
    """URI of the features it was fitted on."""
    plan_sha256: str
    """Digest of their plan."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON values: the split, the grid, the metrics on the held-out part, versions."""

    def taken(self, features: list[np.ndarray]) -> np.ndarray:
        """The features [N, D] that the head takes, of those of all layers of the spec."""
        parts = [features[self.spec.layers.index(one)] for one in layers_in(self.layer)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def check_fits(self, spec: FeatureSpec) -> None:
        """Raise FingerprintError, naming each differing field, unless features of this spec are the head's own kind."""
        if self.spec.fingerprint == spec.fingerprint:
            return
        differing = "; ".join(self.spec.differences(spec, "head", "features"))
        raise FingerprintError(
            f"The head was fitted on other features, so its answers would mean nothing. Differing: {differing}. "
            "Extract with the head's values, or fit a head on these features."
        )
