"""Ceilings of several studies side by side: what the best ranks gain, by model, task and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adaptive_lora.reporting.figures.axes import reach
from adaptive_lora.reporting.figures.ceiling import mark_interval
from adaptive_lora.reporting.figures.theme import COLOURS, MARKERS, themed
from adaptive_lora.stats.ceiling import Ceiling

_ROW, _WIDTH = 0.17, 6.5
"""Inches of an arm's line, and of the figure."""


def several_ceilings(studies: Mapping[str, Sequence[Ceiling]], unit: str = "nats per token") -> Figure | None:
    """Every study's budgets from top to bottom, each with the gains of the arms that stand for the best.

    Lines are the intervals of the locked rule, bands reach to its threshold, and the verdict stands at the right. None
    without any budget.
    """
    cells = [(label, own) for label, found in studies.items() for own in found]
    if not cells:
        return None
    arms = list(dict.fromkeys(own.arm for _, cell in cells for own in cell.arms))
    ends = [[v for v in (own.gain.mean, own.gain.low, own.gain.high) if v is not None]
            for _, cell in cells for own in cell.arms]  # fmt: skip
    low, high = reach([*ends, *([cell.threshold] for _, cell in cells)], room=0.04)
    with themed():
        figure = Figure(figsize=(_WIDTH, 0.9 + _ROW * (len(arms) + 1) * len(cells)), layout="constrained")
        ax = figure.subplots()
        ax.set(xlim=(low, high), ylim=((len(arms) + 1) * len(cells) - 0.5, -1))
        ax.axvline(0, color="black", lw=0.8, zorder=1)
        for number, (_, cell) in enumerate(cells):
            _cell(ax, cell, arms, (len(arms) + 1) * number)
        middles = [(len(arms) + 1) * n + (len(arms) - 1) / 2 for n in range(len(cells))]
        ax.set_yticks(middles, [f"{label}, {cell.budget}" for label, cell in cells], fontsize=8)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"gain over uniform, {unit} (right: better)")
        figure.legend(handles=_keys(arms), loc="outside upper left", ncols=len(arms) + 1, fontsize=8)
    return figure


def _cell(ax: Axes, cell: Ceiling, arms: Sequence[str], top: float) -> None:
    ax.axhline(top - 1, color="#dddddd", lw=0.5, zorder=0)
    ax.barh(top + (len(arms) - 1) / 2, cell.threshold, len(arms), color="#999999", alpha=0.25, lw=0, zorder=0)
    ax.text(1.01, top + (len(arms) - 1) / 2, str(cell.verdict), transform=ax.get_yaxis_transform(), fontsize=8,
            fontweight="bold", va="center")  # fmt: skip
    for own in cell.arms:
        number = arms.index(own.arm)
        mark_interval(ax, top + number, own.gain, COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])


def _keys(arms: Sequence[str]) -> list[Line2D | Patch]:
    marks = [
        Line2D([], [], color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)], ms=4.5, lw=1.5, label=arm)
        for n, arm in enumerate(arms)
    ]
    return [*marks, Patch(facecolor="#999999", alpha=0.25, lw=0, label="up to a quarter of what half costs")]
