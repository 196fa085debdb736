"""What was measured before planning against the rank it was turned into."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptive_lora.reporting.figures.axes import plain_log, points_each, wrapped
from adaptive_lora.reporting.figures.looks import Looks, arms_in, panel_grid
from adaptive_lora.reporting.figures.theme import COLOURS, mark, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.run_table import Phase

KINDS = {"attention": (COLOURS[0], "o"), "mlp": (COLOURS[1], "s"), "other": (COLOURS[2], "^")}
_WIDE = 10.0
"""Scores that span a factor of this get a log axis."""


def score_against_rank(ranks: pd.DataFrame, looks: Looks, budget: str) -> Figure | None:
    """Measured score against allocated rank, one panel an arm, one point a module, both means over seeds.

    The title has Spearman's correlation of the points. None where no arm of the budget measured anything.
    """
    by_module = score_points(ranks, budget)
    names = arms_in(by_module, looks)
    if not names:
        return None
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with themed():
        figure = Figure(figsize=(0.6 + 2.25 * max(columns, 2), 0.7 + 2.2 * rows), layout="constrained")
        for ax, arm in zip(panel_grid(figure, len(names), columns), names, strict=True):
            _panel(ax, by_module[by_module["arm"] == arm], arm, points_each(len(names)))
        figure.supxlabel("rank (mean over seeds)", fontsize=9)
        figure.supylabel("score (mean over seeds)", fontsize=9)
        kinds = [kind for kind in KINDS if (by_module["kind"] == kind).any()]
        keys = [Line2D([], [], ls="none", marker=KINDS[k][1], color=KINDS[k][0], ms=4.5, label=k) for k in kinds]
        figure.legend(handles=keys, loc="outside upper left", ncols=3, fontsize=8)
    return figure


def score_points(ranks: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Arm, module, kind and the means over seeds of score and rank, where an arm's plans have measured scores."""
    own = ranks[(ranks["budget"] == budget) & (ranks["phase"] == Phase.EVALUATION)]
    own = own.assign(score=pd.to_numeric(own["score"])).dropna(subset=["score"])
    return own.groupby(["arm", "module", "kind"], sort=False, as_index=False)[["score", "rank"]].mean()


def spearman(own: pd.DataFrame) -> float | None:
    """Pearson's correlation of the places (ties share a mean place); None where either is constant."""
    if own["score"].nunique() < 2 or own["rank"].nunique() < 2:
        return None
    return float(own["score"].rank().corr(own["rank"].rank()))


def _panel(ax: Axes, own: pd.DataFrame, arm: str, most: int) -> None:
    shown = own.iloc[:: -(-len(own) // most)]  # every n-th, so that all depths are there
    for module, kind, score, rank in zip(shown["module"], shown["kind"], shown["score"], shown["rank"], strict=True):
        colour, marker = KINDS[kind]
        (point,) = ax.plot(rank, score, marker, color=colour, ms=4, mfc="none", mew=0.9)
        mark(point, arm, f"{arm}, {module}: rank {rank:g}, score {score:.3g}")
    mark(ax, arm)
    correlation = spearman(own)
    ax.set_title(f"{wrapped(arm, 2.1)}\nSpearman {formatted(correlation, '+.2f') or '–'}", fontsize=8.5)
    if own["score"].min() > 0 and own["score"].max() > _WIDE * own["score"].min():
        plain_log(ax)
    else:
        ax.locator_params(axis="y", nbins=5)
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    ax.locator_params(axis="x", nbins=6, integer=True)
    ax.tick_params(labelsize=7.5)
