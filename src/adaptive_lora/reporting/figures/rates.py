"""How the choice of a learning rate came about: validation loss over tuning seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import plain_log, rate_axis, short
from adaptive_lora.reporting.figures.looks import CROWD, Looks, diverged_cross, join, legend, legend_height
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.stats.run_table import Phase, Status

_LONE = 3
"""Panels of a single arm in a row."""


def rate_curves(runs: pd.DataFrame, looks: Looks, chosen: Mapping[tuple[str, str], float]) -> Figure | None:
    """Mean validation loss over tuning seeds against learning rate, one line an arm, one panel a budget.

    Where many arms stand beside each other a panel takes the whole width, one with a single arm a third of it.

    Bars are the range over seeds; a ring is the rate in `chosen`, (arm, budget) -> rate; a cross at the top edge
    a rate that diverged with some seed, which is no candidate and has no mean. Nothing where nothing was tuned.
    """
    tuned = runs[(runs["phase"] == Phase.TUNING) & runs["status"].isin([Status.COMPLETED, Status.DIVERGED])]
    names = [arm for arm in looks if (tuned["arm"] == arm).any()]
    if not names:
        return None
    wide = len(names) > CROWD
    places = _places(tuned.groupby("budget", sort=False)["arm"].nunique(), wide)
    with themed():
        height = max(3.4 * len(places), legend_height(len(names)))
        figure = Figure(figsize=(10.4 if wide else 2.2 + 3.6 * len(places[0]), height), layout="constrained")
        axes = figure.subplot_mosaic(places, sharey=True, empty_sentinel="")
        for budget, ax in axes.items():
            _panel(ax, tuned[tuned["budget"] == budget], looks, budget, chosen)
            ax.set_xlabel("learning rate")
            ax.set_title(budget)
            ax.margins(y=0.12)  # crosses stand above the data
        for row in places:
            axes[row[0]].set_ylabel("validation loss, nats per token")
        if tuned["validation_loss"].notna().any():
            plain_log(axes[places[0][0]].yaxis)
        legend(figure, looks, names)
    return figure


def _places(arms: pd.Series, wide: bool) -> list[list[Any]]:
    """Which budget stands where in a grid, by how many arms each has."""
    if not wide:
        return _rows(list(arms.index), min(2, len(arms)))
    full = [[budget] * _LONE for budget in arms.index[arms > 1]]
    return full + _rows(list(arms.index[arms == 1]), _LONE)


def _rows(budgets: list[str], columns: int) -> list[list[Any]]:
    padded = budgets + [""] * (-len(budgets) % columns)
    return [padded[start : start + columns] for start in range(0, len(padded), columns)]


def _panel(ax: Axes, tuned: pd.DataFrame, looks: Looks, budget: str, chosen: Mapping[tuple[str, str], float]) -> None:
    names = [arm for arm in looks if (tuned["arm"] == arm).any()]
    for name, shift in zip(names, rate_axis(ax, tuned["learning_rate"].tolist(), len(names)), strict=True):
        _arm(ax, tuned[tuned["arm"] == name], looks, shift, len(names), chosen.get((name, budget)))


def _arm(ax: Axes, own: pd.DataFrame, looks: Looks, shift: float, crowd: int, chosen: float | None) -> None:
    arm = str(own["arm"].iloc[0])
    look = looks[arm]
    xs, ys = [], []
    for rate in sorted(set(own["learning_rate"].astype(float))):
        runs = own[own["learning_rate"] == rate]
        x, losses = rate * shift, runs["validation_loss"].astype(float)
        if (runs["status"] == Status.DIVERGED).any():
            count = int((runs["status"] == Status.DIVERGED).sum())
            diverged_cross(ax, x, arm, look, f"{arm}, rate {short(rate)}: {count} of {len(runs)} seeds diverged")
            xs.append(x)
            ys.append(float("nan"))  # the line is broken here
            continue
        mean = float(losses.mean())
        mark(ax.plot([x, x], [losses.min(), losses.max()], color=look.colour, lw=1.3)[0], arm)
        title = f"{arm}, rate {short(rate)}: mean {mean:.4f} of {len(runs)}"
        mark(ax.plot(x, mean, **look.marked(5), zorder=4)[0], arm, title)
        if chosen is not None and abs(rate - chosen) <= 1e-9 * chosen:
            (ring,) = ax.plot(x, mean, "o", ms=11, mfc="none", mec=look.colour, mew=1.2, zorder=5)
            mark(ring, arm, f"{title}, chosen")
        xs.append(x)
        ys.append(mean)
    join(ax, xs, ys, arm, looks, crowd)
