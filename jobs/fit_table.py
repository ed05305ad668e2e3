"""The grid of a fit: a live table on a terminal while it fills, then lines of the result."""

import itertools
import logging
import time
from typing import Any

from bottleneck.console import PLAIN_SECONDS, duration, start_live
from bottleneck.heads.request import HeadRequest, Variant
from bottleneck.heads.solver.protocol import FitEvent
from bottleneck.text import counted
from jobs.results import show

log = logging.getLogger(__name__)


class GridTable:
    """Shows the grid."""

    def __init__(self, request: HeadRequest) -> None:
        self.request = request
        self.scores: dict[tuple[Variant, float, int], float] = {}
        self.state = "starting"
        self._live: Any = None
        self._told = time.monotonic()

    def __enter__(self) -> "GridTable":
        self._live = start_live(transient=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        for line in self.lines():
            show(line)

    def show(self, event: FitEvent) -> None:
        if "score" in event:
            self.scores[event["variant"], event["c"], event["fold"]] = event["score"]
            of = "".join(f"{getattr(event['variant'], name)}, " for name in self.request.varied)
            self.state = f"{of}C = {event['c']:g}, fold {event['fold'] + 1}"
        elif "read" in event:
            classes = counted(event["classes"], "class", "classes")
            self.state = f"{counted(event['read'], 'image')} of {classes} read in {duration(event['seconds'])}"
        elif "epoch" in event:
            self.state = f"epoch {event['epoch']} of {event['epochs']}"
        else:
            passes = counted(event["passes"], "pass", "passes")
            self.state = f"step {event['step']}, {passes}, at most {event['gap']:.0e} above the optimum"
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)
        elif "read" in event or time.monotonic() - self._told > PLAIN_SECONDS:
            self._told = time.monotonic()
            log.info("fit: %s", self.state)

    def columns(self) -> list[str]:
        """The headings of the table."""
        return [*self.request.varied, "C", *(f"fold {fold + 1}" for fold in range(self.request.folds)), "mean"]

    def rows(self) -> list[list[str]]:
        """For each kind and scaling, if there are several, and C: each fold's score and their mean, as text."""
        rows = []
        for variant, c in itertools.product(self.request.variants, self.request.c) if self.scores else []:
            found = [self.scores.get((variant, c, fold)) for fold in range(self.request.folds)]
            known = [value for value in found if value is not None]
            mean = f"{sum(known) / len(known):.4f}" if len(known) == len(found) else ""
            cell = [str(getattr(variant, name)) for name in self.request.varied]
            rows.append([*cell, f"{c:g}", *("" if value is None else f"{value:.4f}" for value in found), mean])
        return rows

    def lines(self) -> list[str]:
        """The table as plain text; it names the metric unless that is the accuracy."""
        if not self.scores:
            return []
        lines = ["".join(f"{cell:>10}" for cell in row) for row in [self.columns(), *self.rows()]]
        return lines if self.request.metric == "accuracy" else [f"{self.request.metric} of each fold:", *lines]

    def _drawn(self) -> Any:
        from rich.table import Table as Drawn

        metric = "" if self.request.metric == "accuracy" else f" by {self.request.metric}"
        drawn = Drawn(title=f"fit{metric}: {self.state}", title_justify="left")
        for name in self.columns():
            drawn.add_column(name, justify="right")
        for row in self.rows():
            drawn.add_row(*row)
        return drawn
