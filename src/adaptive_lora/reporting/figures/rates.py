"""Means over learning rates: the choice of a rate on validation, and how stably arms train at each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import plain_log, rate_axis, short
from adaptive_lora.reporting.figures.looks import CROWD, Look, Looks, arms_in, diverged_cross, join, legend
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.stats.run_table import Phase, Status

_LONE = 3
"""Panels of a single arm in a row."""
_MEASURES = {
    "excess": "validation loss minus\nthe baseline's, nats per token",
    "clipped": "share of clipped steps",
    "gradient_norm": "gradient norm\n(median of a run)",
}
Chosen = Mapping[tuple[str, str], float]


def rate_curves(runs: pd.DataFrame, looks: Looks, chosen: Chosen) -> Figure | None:
    """Mean validation loss over tuning seeds against learning rate, one line an arm, one panel a budget.

    Where many arms stand beside each other a panel takes the whole width, one with a single arm a third of it.

    Bars are the range over seeds; a ring is the rate in `chosen`, (arm, budget) -> rate. The axis ends at the frozen
    model's loss, where it is known: a caret there is a rate that is no better than it, an open one a rate that diverged
    with some seed, which is no candidate and has no mean. None where nothing was tuned.
    """
    tuned = runs[(runs["phase"] == Phase.TUNING) & runs["status"].isin([Status.COMPLETED, Status.DIVERGED])]
    tuned = tuned.assign(diverged=tuned["status"] == Status.DIVERGED)
    names = arms_in(tuned, looks)
    if not names:
        return None
    wide = len(names) > CROWD
    places = _places(tuned.groupby("budget", sort=False)["arm"].nunique(), wide)
    with themed():
        width = 10.4 if wide else 2.2 + 3.6 * len(places[0])
        figure = Figure(figsize=(width, 3.4 * len(places)), layout="constrained")
        axes = figure.subplot_mosaic(places, sharey=True, empty_sentinel="")
        clip = clip_of(tuned)
        for budget, ax in axes.items():
            own = {arm: rate for (arm, at), rate in chosen.items() if at == budget}
            _by_rate(ax, tuned[tuned["budget"] == budget], "validation_loss", looks, own, clip)
            ax.set(xlabel="learning rate", title=budget)
            ax.margins(y=0.12)  # crosses stand above the data
        if clip is not None:
            low = float(tuned["validation_loss"].astype(float).min())
            axes[places[0][0]].set_ylim(low - 0.06 * (clip - low), clip)
        for row in places:
            axes[row[0]].set_ylabel("validation loss, nats per token")
        if tuned["validation_loss"].notna().any():
            plain_log(axes[places[0][0]])
        legend(figure, looks, names)
    return figure


def _places(arms: pd.Series, wide: bool) -> list[list[Any]]:
    """Which budget stands where in a grid, by how many arms each has."""
    columns = _LONE if wide else min(2, len(arms))
    full = list(arms.index[arms > 1]) if wide else []
    rest = [budget for budget in arms.index if budget not in full]
    rest += [""] * (-len(rest) % columns)
    return [[budget] * columns for budget in full] + [rest[i : i + columns] for i in range(0, len(rest), columns)]


def clip_of(tuned: pd.DataFrame) -> float | None:
    """The frozen model's validation loss, where tuning runs reach it or diverged; None where it is far or not known."""
    frozen, losses = tuned["base_loss"].dropna().astype(float), tuned["validation_loss"].dropna().astype(float)
    if frozen.empty or losses.empty or losses.min() >= frozen.iloc[0]:
        return None
    reached = bool((losses >= frozen.iloc[0]).any()) or bool((tuned["status"] == Status.DIVERGED).any())
    return float(frozen.iloc[0]) if reached else None


def stability(table: pd.DataFrame, looks: Looks) -> Figure | None:
    """Over learning rates, mean and range over runs: excess loss, share of clipped steps, median gradient norm (log).

    `table` is a `stability_table`. One column of panels a budget, and a scaling where there are several; where one arm
    trained alone there is nothing to compare and no panel, unless that is so everywhere. A cross at the top edge is a
    rate at which some run diverged; its mean is over the others. None where there are no runs.
    """
    table = table[table["arm"].isin(list(looks))].assign(diverged=table["diverged"].astype(bool))
    names = arms_in(table, looks)
    if not names:
        return None
    settings = compared_settings(table)
    scalings = table["scaling"].nunique() > 1
    with themed():
        # Many arms need the whole width for their points to stand beside each other.
        stacked = len(names) > CROWD
        size = (10.4, 6.4 * len(settings)) if stacked else (1.8 + 3.2 * len(settings), 6.6)
        figure = Figure(figsize=size, layout="constrained")
        if stacked:
            panels = figure.subplots(3 * len(settings), 1, squeeze=False).reshape(len(settings), 3)
        else:
            panels = figure.subplots(3, len(settings), squeeze=False, sharex="col", sharey="row").T
        for column, (budget, scaling) in zip(panels, settings, strict=True):
            own = table[(table["budget"] == budget) & (table["scaling"] == scaling)]
            for ax, measure in zip(column, _MEASURES, strict=True):
                _by_rate(ax, own, measure, looks)
            column[0].set_title(f"{budget}, {scaling}" if scalings else budget)
            column[-1].set_xlabel("learning rate")
        for column in panels if stacked else panels[:1]:
            for ax, (measure, label) in zip(column, _MEASURES.items(), strict=True):
                ax.set_ylabel(label)
                if measure == "gradient_norm" and (table[measure] > 0).any():
                    plain_log(ax)
        legend(figure, looks, names)
    return figure


def compared_settings(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(budget, scaling) at which several arms trained; all where they did so nowhere."""
    arms = table.groupby(["budget", "scaling"], sort=False)["arm"].nunique()
    return [(str(budget), str(scaling)) for budget, scaling in arms.index[(arms > 1) | (arms.max() == 1)]]


def _diverged(ax: Axes, place: tuple[float, float | None], arm: str, look: Look, title: str) -> None:
    """An open caret at the frozen model's loss, or where that is not shown a cross at the top edge."""
    x, clip = place
    if clip is None:
        diverged_cross(ax, x, arm, look, title)
    else:
        _caret(ax, (x, clip), arm, look, title, filled=False)


def _frozen_line(ax: Axes, clip: float) -> None:
    ax.axhline(clip, color="black", lw=0.8, ls=(0, (4, 3)), zorder=1)
    ax.annotate(f"frozen model {clip:.3f}", (0.01, clip), xycoords=("axes fraction", "data"), xytext=(0, -3),
                textcoords="offset points", fontsize=7.5, va="top")  # fmt: skip


def _caret(ax: Axes, place: tuple[float, float], arm: str, look: Look, title: str, filled: bool) -> None:
    face = look.colour if filled else "white"
    settings: dict[str, Any] = {"color": look.colour, "mfc": face, "mec": look.colour, "mew": 1.2, "ms": 6.5}
    mark(ax.plot(*place, "^", **settings, clip_on=False, zorder=5)[0], arm, title)


def _by_rate(
    ax: Axes,
    runs: pd.DataFrame,
    measure: str,
    looks: Looks,
    chosen: Mapping[str, float] | None = None,
    clip: float | None = None,
) -> None:
    """Mean and range of a measure by arm and rate; with `chosen`, a rate with a diverged run has no mean.

    Nothing is drawn above `clip`, at which carets stand.
    """
    top = math.inf if clip is None else clip
    names = arms_in(runs, looks)
    shifts = rate_axis(ax, runs["learning_rate"].tolist(), len(names))
    if measure == "excess":
        ax.margins(y=0.15)  # crosses stand above the data
        ax.axhline(0, color="black", lw=0.8)
    for arm, shift in zip(names, shifts, strict=True):
        look, xs, ys = looks[arm], list[float](), list[float]()
        for value, here in runs[runs["arm"] == arm].groupby(runs["learning_rate"].astype(float)):
            rate, diverged = float(str(value)), int(here["diverged"].sum())
            values = here.loc[~here["diverged"], measure].dropna().astype(float)
            label = f"{arm}, rate {short(rate)}"
            if diverged and measure in ("excess", "validation_loss"):
                what = f"{diverged} of {len(here)} {'runs' if chosen is None else 'seeds'} diverged"
                _diverged(ax, (rate * shift, clip), arm, look, f"{label}: {what}")
            xs.append(rate * shift)
            if values.empty or (diverged and chosen is not None):
                ys.append(math.nan)  # the line is broken here
                continue
            mean = float(values.mean())
            ys.append(min(mean, top))
            ends = [min(value, top) for value in (values.min(), values.max())]
            mark(ax.plot([xs[-1]] * 2, ends, color=look.colour, lw=1.3)[0], arm)
            label += f": mean {mean:.4g} of {len(values)}"
            if mean >= top:
                _caret(ax, (xs[-1], top), arm, look, f"{label}, no better than the frozen model", filled=True)
            else:
                mark(ax.plot(xs[-1], ys[-1], **look.marked(4.5), zorder=4)[0], arm, label)
            if chosen and math.isclose(rate, chosen.get(arm, 0.0)):
                (ring,) = ax.plot(xs[-1], ys[-1], "o", ms=11, mfc="none", mec=look.colour, mew=1.2, zorder=5)
                mark(ring, arm, f"{label}, chosen")
        join(ax, xs, ys, arm, looks, len(names))
    if clip is not None:
        _frozen_line(ax, clip)
    if measure == "clipped":
        ax.set_ylim(-0.04, 1.04)
