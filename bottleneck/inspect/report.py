"""Write `report.html`: how good a head is, where it fails, and how it was made."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.dataset.features import Features
from bottleneck.dataset.footer import Footer, read_footer
from bottleneck.dataset.plan import Plan
from bottleneck.extract.decode import Decoded, decode
from bottleneck.heads.labels_evaluation import AnyEvaluation, LabelsEvaluation
from bottleneck.inspect.labels_report import labels_html
from bottleneck.inspect.plots import draw_confusion
from bottleneck.inspect.report_sections import LabelIssues, Rejections, Thumbnails, report_html
from bottleneck.sources.open import open_source
from bottleneck.storage.store import open_store
from bottleneck.text import counted

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head

REPORT_HTML = "report.html"
CONFUSION_PNG = "confusion.png"
EVALUATION_JSON = "evaluation.json"

MAX_THUMBNAILS = 72
"""About 10 kB each, so that a page stays near a megabyte."""
THUMBNAIL_PX = 224
"""Twice the displayed size: sharp on any screen, and useful when enlarged."""
NUM_ISSUES = 24
"""Likely mislabelled images that are shown."""
MAX_REJECTED_KEYS = 20
"""Keys listed per reason."""


class Material(TypedDict):
    """What `write_report` shows besides an evaluation; made by `report_of_features`."""

    details: dict[str, dict[str, Any]]
    thumbnails: Thumbnails
    rejected: dict[str, Rejections]
    label_issues: LabelIssues | None


def write_report(
    store_uri: str,
    title: str,
    evaluation: AnyEvaluation,
    *,
    grid: list[dict[str, Any]] | None = None,
    metric: str = "accuracy",
    details: dict[str, dict[str, Any]],
    thumbnails: Thumbnails,
    rejected: dict[str, Rejections],
    notes: Sequence[str] = (),
    label_issues: LabelIssues | None = None,
) -> None:
    """Write `report.html`, `confusion.png` and `evaluation.json` to a folder or s3:// prefix, replacing old ones.

    Images of several labels each have no confusion matrix.

        write_report(uri, "Flowers", evaluation, grid=grid, **report_of_features(features, head, evaluation))

    Args:
        grid: one dict a value of C: `C`, `folds` (score of each fold), `mean`, `std`, `seconds`, and `scale` where it
            was chosen, too. The best is marked.
        metric: of the grid's scores.
        details: how everything was made: heading -> name -> value.
        thumbnails: from `thumbnails_of`.
        rejected: by reason.
        notes: sentences shown on top, such as a warning of what the numbers do not say.
        label_issues: images that are likely mislabelled; without it there is no section of them.
    """
    store = open_store(store_uri)
    if isinstance(evaluation, LabelsEvaluation):
        html = labels_html(title, evaluation, grid, details, thumbnails, rejected, notes, metric)
        store.replace(EVALUATION_JSON, json.dumps(evaluation.to_json(), ensure_ascii=False).encode())
        store.replace(REPORT_HTML, html.encode())
        return
    html = report_html(title, evaluation, grid, details, thumbnails, rejected, notes, label_issues, metric)
    store.replace(CONFUSION_PNG, draw_confusion(evaluation))
    store.replace(EVALUATION_JSON, json.dumps(evaluation.to_json(), ensure_ascii=False).encode())
    store.replace(REPORT_HTML, html.encode())


def report_of_features(
    features: Features, head: "Head", evaluation: AnyEvaluation, issues: pa.Table | None = None
) -> Material:
    """Collect what a report shows besides the evaluation, from the plan, a data file's footer and the source.

    Args:
        issues: images that are likely mislabelled, the likeliest first, of `label_issues.ISSUE_SCHEMA`.
    """
    shown = None if issues is None else LabelIssues(len(issues), tuple(issues.slice(0, NUM_ISSUES).to_pylist()))
    plan, spec = features.plan, features.spec
    footer = _footer(features)
    made = {name: value for name, value in spec.to_json().items() if name not in ("layers", "dims")}
    layers = dict(zip(spec.layers, spec.dims, strict=True))
    details: dict[str, dict[str, Any]] = {
        "Features": {"source": plan.source, "output": plan.output, "images": plan.num_images, "layers": layers, **made},
        "Fingerprint": {"features": spec.fingerprint, "plan": plan.sha256},
        "Head": {
            "kind": head.kind,
            **({} if head.kind == "mlp" else {"C": head.C}),
            **({} if head.temperature_ == 1 else {"temperature": head.temperature_}),
            "scale": head.scale,
            "class_weight": head.class_weight,
            "layer": head.origin.layer,
            "classes": len(head.classes_),
            "fitted on": head.origin.features,
            "its plan": head.origin.plan_sha256,
        },
    }
    fitted = {name: value for name, value in head.origin.details.items() if value is not None and name != "split"}
    if fitted := {name: value for name, value in fitted.items() if not _is_long(value)}:
        details["Fitting"] = fitted
    if footer:
        details["Made with"] = {**footer["versions"], "device": footer["device"], "written": footer["written"]}
    return Material(
        details=details,
        thumbnails=thumbnails_of(plan, keys_shown(evaluation, shown)),
        rejected=rejections_of(features),
        label_issues=shown,
    )


def keys_shown(evaluation: AnyEvaluation, label_issues: LabelIssues | None = None) -> list[str]:
    """The keys whose pictures a report shows, most useful first."""
    keys = [mistake.key for mistake in evaluation.mistakes]
    keys += [issue["key"] for issue in label_issues.shown] if label_issues else []
    if isinstance(evaluation, LabelsEvaluation):
        return list(dict.fromkeys(keys))
    for pair in evaluation.confused:
        examples = (evaluation.examples.get(label) for label in (pair.label, pair.predicted))
        keys += [*pair.keys[:1], *(key for key in examples if key)]
    return list(dict.fromkeys(keys))[:MAX_THUMBNAILS]


def thumbnails_of(plan: Plan, keys: Sequence[str], side_px: int = THUMBNAIL_PX) -> Thumbnails:
    """Small pictures of planned images, from the source; unavailable ones are reported, never an error.

    Read by the plan's etags, so that no picture is shown that is not the one the features are of, and decoded within
    the plan's limits: the centre square, turned as for the features.
    """
    found: dict[str, bytes] = {}
    try:
        wanted = {key: image for key, (_, image) in plan.find(keys).items()}
        pictures = open_source(plan.source, plan.reading).read(list(wanted.values()))
        for key, data in zip(wanted, pictures, strict=True):
            if isinstance(data, bytes) and (picture := thumbnail(data, plan, side_px)):
                found[key] = picture
    except Exception as error:  # a source that has gone, a package that reads it, a list or container that is damaged
        return Thumbnails(found, f"The source {plan.source} cannot be read, so pictures are missing: {error}")
    if len(found) < len(keys):
        return Thumbnails(
            found,
            f"{len(keys) - len(found)} of {counted(len(keys), 'picture')} missing: the images are no longer in the "
            f"source {plan.source} as they were when the features were made.",
        )
    return Thumbnails(found)


def thumbnail(data: bytes, plan: Plan, side_px: int = THUMBNAIL_PX) -> bytes | None:
    """A small picture as JPEG; None for a rejected image."""
    spec = replace(plan.spec, image_size_px=side_px, resize="crop", interpolation="bilinear")
    decoded = decode(data, spec, plan.limits)
    return _jpeg(decoded) if isinstance(decoded, Decoded) else None


def rejections_of(features: Features) -> dict[str, Rejections]:
    """Rejected images by reason, with the first keys of each. Reads only shards that have some, where that is known."""
    plan = features.plan
    document = features.success
    names, totals = features.files, {}
    if document is not None:
        totals = document["rejected"]
        names = [plan.data_name(line["shard"]) for line in document["shards"] if line["rejected"]]
    counts: Counter[str] = Counter()
    keys: dict[str, list[str]] = {}
    for name in names:
        if totals and all(len(keys.get(reason, [])) == min(totals[reason], MAX_REJECTED_KEYS) for reason in totals):
            break
        table = features.table(name, ["key", "reason"])
        rows = table.filter(pc.is_valid(table.column("reason")))
        for key, reason in zip(rows.column("key").to_pylist(), rows.column("reason").to_pylist(), strict=True):
            counts[reason] += 1
            if len(kept := keys.setdefault(reason, [])) < MAX_REJECTED_KEYS:
                kept.append(key)
    counts = Counter(totals) or counts
    return {reason: Rejections(counts[reason], tuple(keys.get(reason, ()))) for reason in sorted(counts)}


def _footer(features: Features) -> Footer:
    files = features.entries
    if not files:
        return {}
    return read_footer(open_store(features.plan.output), files[min(files)])[1]


def _is_long(value: Any) -> bool:
    """Whether a value is too long for a line of a page, as grids and lists of keys are."""
    return len(json.dumps(value, default=str)) > 400


def _jpeg(decoded: Decoded) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(decoded.pixels_HWC).save(file, "JPEG", quality=72, optimize=True)
    return file.getvalue()
