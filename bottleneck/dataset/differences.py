"""The message for a run whose settings are not those of the plan."""

from typing import Any

from bottleneck.dataset.plan import Plan
from bottleneck.text import counted, shown


def differences(plan: Plan, requested: dict[str, Any]) -> str | None:
    """The message for a refused run, with the planned and requested value of each differing field, or None."""
    planned: dict[str, Any] = {
        "spec": plan.spec.to_json(),
        "predictions": plan.predictions.to_json() if plan.predictions else None,
        "limits": plan.limits.to_json(),
        "reading": plan.reading.to_json(),
        "selection": plan.selection.to_json(),
        "source": plan.source,
        "shard_size": plan.shard_size,
    }
    lines: list[str] = []
    fields: set[str] = set()
    for name, value in requested.items():
        whole = planned[name]
        by_key = isinstance(value, dict) and isinstance(whole, dict)
        for key, old, new in [(key, whole.get(key), value[key]) for key in value] if by_key else [(name, whole, value)]:
            if old != new and key not in ("weights", "head"):  # where they are; their sha256 tells whether they differ
                lines.append(_differing(key, old, new))
                fields.add(name)
    if not lines:
        return None
    if "shard_size" in requested and lines == [_differing("shard_size", plan.shard_size, requested["shard_size"])]:
        return (
            f"{plan.output} was planned in shards of {counted(plan.shard_size, 'image')}, which stay as they were cut. "
            f"Differing: {lines[0]}. Leave `shard_size` out to go on with this output, or give another output."
        )
    if fields == {"selection"}:
        return (
            f"{plan.output} was planned with another selection of images. Differing: {'; '.join(lines)}. Leave the "
            "options out to go on with this output, extend it (`extract --extend`) to add images, or give another "
            "output."
        )
    return (
        f"{plan.output} was planned with other settings, so this run would mix two kinds of results. Differing: "
        + "; ".join(lines)
        + ". Give the planned values, or another output."
    )


def _differing(name: str, planned: Any, requested: Any) -> str:
    return f"{name}: planned {shown(planned)}, requested {shown(requested)}"
