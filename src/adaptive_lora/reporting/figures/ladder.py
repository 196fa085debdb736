"""The ladder: what each choice of a practitioner changes at equal parameters, the largest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptive_lora.reporting.figures.axes import reach, wrapped
from adaptive_lora.reporting.figures.looks import GREY, NARROW
from adaptive_lora.reporting.figures.theme import COLOURS, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.metrics import TEST_LOSS, Metric


@dataclass(frozen=True)
class LadderRow:
    """One choice: what it changes against the baseline, by the study's metric.

    >>> LadderRow("query and value alone", "targets", 0.021, 0.015, 0.027, n=8).measured
    True
    """

    label: str
    """The choice, in a reader's words."""
    group: str
    """What kind of choice it is: targets, budget, scaling, rate, ..., allocation."""
    effect: float | None
    """Choice minus baseline; None where it was not run."""
    low: float | None = None
    high: float | None = None
    """Ends of its 95 % interval, or of the range; None where it is not known."""
    n: int = 0
    """Seeds."""
    note: str = ""
    """A few words beside the numbers."""
    kind: Literal["effect", "range"] = "effect"
    """A `range` is no estimate with an interval but how far values lie apart, as those of single seeds do."""

    @property
    def measured(self) -> bool:
        """Whether there is a number to draw; what was not run is listed, and is no zero."""
        return self.effect is not None

    @property
    def size(self) -> float:
        """By which rows are sorted: how far from the baseline it leads; of a range its farther end."""
        known = [self.effect] if self.kind == "effect" else [self.effect, self.low, self.high]
        return max((abs(value) for value in known if value is not None), default=-math.inf)


def ladder(
    rows: Sequence[LadderRow], baseline: str, metric: Metric = TEST_LOSS, highlight: str = "allocation",
    width: float = 7.2,
) -> Figure | None:  # fmt: skip
    """Effects at equal parameters with 95 % intervals, one row a choice, the largest on top; zero is the baseline.

    Rows of the group `highlight` have a colour of their own. Choices that were not run stand last and have no mark. An
    effect far beyond the others is an arrow at the edge. `width` in inches: 7.2 is a page's, 3.4 a column's. None where
    nothing was measured.
    """
    done = sorted((row for row in rows if row.measured), key=lambda row: -row.size)
    if not done:
        return None
    shown, narrow = [*done, *(row for row in rows if not row.measured)], width < NARROW
    limits = reach([_ends(row) for row in done], room=0.05)
    with themed():
        figure = Figure(figsize=(width, 1.0 + (0.3 if narrow else 0.25) * len(shown)), layout="constrained")
        ax = figure.subplots()
        ax.axvline(0, color="black", lw=0.8, zorder=1)
        ax.set(xlim=limits, ylim=(len(shown) - 0.4, -0.6))
        for place, row in enumerate(shown):
            _row(ax, place, row, COLOURS[1] if row.group == highlight else COLOURS[0], narrow)
        labels = [wrapped(row.label, 1.35) if narrow else row.label for row in shown]
        ax.set_yticks(range(len(shown)), labels, fontsize=7 if narrow else 8.5)
        for label, row in zip(ax.get_yticklabels(), shown, strict=True):
            label.set_color("black" if row.measured else GREY)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=7.5 if narrow else 9)
        ax.spines["left"].set_visible(False)
        where = f"{metric.title} minus {'baseline' if narrow else baseline},{chr(10) if narrow else ' '}{metric.unit}"
        ax.set_xlabel(f"{where} ({metric.better_side}: better)", fontsize=8 if narrow else 9)
        figure.legend(handles=_keys(done, highlight), loc="outside upper left", ncols=1 if narrow else 3, fontsize=7.5)
    return figure


def ladder_caption(rows: Sequence[LadderRow], baseline: str, metric: Metric = TEST_LOSS, width: float = 7.2) -> str:
    """What the figure of these rows shows; no word of what is not drawn."""
    done = [row for row in rows if row.measured]
    low, high = reach([_ends(row) for row in done], room=0.05)
    far = any(row.kind == "effect" and row.effect is not None and not low <= row.effect <= high for row in done)
    return render("captions.ladder_figure", rows, baseline, metric, far, width < NARROW)


def _ends(row: LadderRow) -> list[float]:
    return [value for value in (row.effect, row.low, row.high) if value is not None]


def _row(ax: Axes, place: int, row: LadderRow, colour: str, narrow: bool) -> None:
    ax.axhline(place, color="#eeeeee", lw=0.6, zorder=0)
    sideways, size = ax.get_yaxis_transform(), 6.5 if narrow else 7.5
    if row.effect is None:
        ax.text(1.02, place, "not run", transform=sideways, fontsize=size, va="center", color=GREY, style="italic")
        return
    low, high = ax.get_xlim()
    if row.low is not None and row.high is not None:
        wide = {"lw": 1.6} if row.kind == "effect" else {"lw": 5.0, "alpha": 0.35, "solid_capstyle": "butt"}
        ax.plot([row.low, row.high], [place, place], color=colour, zorder=3, **wide)
    if row.kind == "effect":
        inside = min(max(row.effect, low), high)
        sign = "<" if row.effect < low else ">" if row.effect > high else "o"
        ax.plot(inside, place, sign, ms=5.5, color=colour, clip_on=False, zorder=4)
    ax.text(1.02, place, _said(row, narrow), transform=sideways, fontsize=size, va="center")


def _said(row: LadderRow, narrow: bool) -> str:
    assert row.effect is not None
    found = Interval(row.effect, row.low, row.high, row.n, 0.95)
    if row.kind == "range":
        form = "+.3f" if narrow else "+.4f"
        numbers = f"{formatted(row.low, form)} to {formatted(row.high, form)}"
    else:
        numbers = formatted(found.mean, "+.4f") if narrow else formatted(found, "+±")
    return numbers if narrow or not row.note else f"{numbers}  {row.note}"


def _keys(rows: Sequence[LadderRow], highlight: str) -> list[Line2D]:
    keys = [Line2D([], [], color=COLOURS[0], marker="o", ms=5.5, lw=1.6, label="effect, 95 % interval")]
    if any(row.group == highlight and row.kind == "effect" for row in rows):
        keys.append(Line2D([], [], color=COLOURS[1], marker="o", ms=5.5, lw=1.6, label=highlight))
    if any(row.kind == "range" for row in rows):
        keys.append(Line2D([], [], color=COLOURS[0], lw=5, alpha=0.35, label="range"))
    return keys
