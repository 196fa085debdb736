"""Which strategies recover planted ranks, and what it costs: a heat map of strategies by truths, with numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.looks import GREY
from adaptive_lora.reporting.figures.theme import themed
from adaptive_lora.reporting.formatting import formatted, interval_ends
from adaptive_lora.reporting.recovered import Recovered
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.recovery import CONTROLS

_COLOURS = "RdBu"
"""White at uniform's own loss, blue above, red below; told apart by the colour-blind, and the numbers stand there."""
_LIMIT = 1.0
_MEAN_WIDTH = 2.5
"""Of the first column, which has its interval too, in other columns."""
_MEAN, _COST = "mean", "cost of a plan"
_UNIFORM = "uniform"


def recovery_heat_map(found: Recovered) -> Figure:
    """Share of the oracle's gain over uniform, one row a strategy, one column a truth; 1 is the oracle, 0 uniform.

    First the mean over the concentrated truths, by which rows are sorted, then these, then the others, and the excess
    over uniform where uniform is right. At the side what a plan costs. Controls and the floor stand last.
    """
    names = [*found.order(), "floor"]
    excess = _UNIFORM in found.truths
    groups = [(_MEAN,), found.every_concentrated, found.shown[len(found.every_concentrated) :]]
    columns = [name for group in groups for name in group] + ([_UNIFORM] if excess else [])
    gaps = _gaps([len(group) for group in groups], excess)
    costly = any(found.cost(name) is not None for name in found.order())
    with themed():
        figure = Figure(figsize=(7.2, 1.25 + 0.2 * len(names)), layout="constrained")
        ax = figure.subplots()
        for row, name in enumerate(names):
            values = [found.concentrated_share(name), *(found.share(t, name) for t in columns[1:] if t != _UNIFORM)]
            _cells(ax, row, values, gaps, "share")
            if excess:
                _cells(ax, row, [found.excess(name)], gaps[-1:], "excess")
            if costly and name != "floor":
                _text(ax, gaps[-1] + 1.35, row, _cost_said(found.cost(name)), ha="left")
        _head(ax, found, [*columns, *([_COST] if costly else [])], gaps)
        ax.set_yticks(np.arange(len(names)) + 0.5, names)
        for label in ax.get_yticklabels():
            if label.get_text() in (*CONTROLS, "floor"):
                label.set(color=GREY, style="italic")
        ax.set(xlim=(0, gaps[-1] + (2.6 if costly else 1.0)), ylim=(len(names), 0))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return figure


def recovery_map_caption(found: Recovered) -> str:
    """What the heat map of a comparison shows."""
    costs = [found.cost(name) for name in found.order()]
    known = [cost for cost in costs if cost is not None]
    controls = [name for name in found.order() if name in CONTROLS]
    return render("captions.planted_map", found, controls, bool(known), len(known) < len(costs))


def _gaps(sizes: Sequence[int], excess: bool) -> list[float]:
    """Where each column begins: a little room stands between groups."""
    places, x = [0.0], _MEAN_WIDTH + 0.2
    for size in [size for size in sizes[1:] if size] + ([1] if excess else []):
        places += [x + at for at in range(size)]
        x += size + 0.2
    return places


def _cells(ax: Axes, row: int, values: Sequence[Interval | None], places: Sequence[float], what: str) -> None:
    for value, x in zip(values, places, strict=False):
        shown = np.nan if value is None else value.mean * (-1 if what == "excess" else 1)
        wide = _MEAN_WIDTH if x == 0 else 1.0
        ax.pcolormesh([x, x + wide], [row, row + 1], [[np.clip(shown, -_LIMIT, _LIMIT)]], cmap=_COLOURS, vmin=-_LIMIT,
                      vmax=_LIMIT, edgecolor="white", lw=0.8)  # fmt: skip
        dark = bool(abs(shown) > 0.62)  # False for what is missing
        text = "diverged" if value is None else formatted(value.mean, ".2f" if what == "share" else "+.2f")
        if x == 0 and value is not None and value.low is not None:
            text += f" {interval_ends(value, '.2f')}"
        ax.text(x + wide / 2, row + 0.5, text, ha="center", va="center", fontsize=7.5 if value else 6,
                color="white" if dark else "black")  # fmt: skip


def _head(ax: Axes, found: Recovered, columns: Sequence[str], places: Sequence[float]) -> None:
    """Names above; grey where a truth does not count."""
    names = {_MEAN: "concentrated, mean", _UNIFORM: "uniform:\nexcess"}
    middles = [_MEAN_WIDTH / 2, *(x + 0.5 for x in places[1:]), places[-1] + 1.5][: len(columns)]
    ax.set_xticks(middles, [names.get(name, name) for name in columns])
    ax.xaxis.tick_top()
    for label, name in zip(ax.get_xticklabels(), columns, strict=True):
        counts = name in (_MEAN, _UNIFORM, _COST) or name in found.counting
        label.set(rotation=35, ha="left", rotation_mode="anchor", fontsize=8, color="black" if counts else GREY)


def _cost_said(cost: float | None) -> str:
    """In trainings: few characters.

    >>> _cost_said(11.0), _cost_said(0.01), _cost_said(0.0), _cost_said(None)
    ('11', '0.01', '0', '?')
    """
    if cost is None:
        return "?"
    return formatted(cost, ".0f" if cost >= 10 or cost == 0 else ".2g")


def _text(ax: Axes, x: float, row: int, text: str, ha: str) -> None:
    ax.text(x, row + 0.5, text, ha=ha, va="center", fontsize=7.5)
