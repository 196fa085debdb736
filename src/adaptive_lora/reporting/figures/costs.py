"""What planning and training cost: time, and the memory that scores held."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adaptive_lora.reporting.figures.looks import Looks, name_rows
from adaptive_lora.reporting.figures.theme import mark, themed

_WIDE = 100.0
"""Times that span a factor of this are points on a log axis: bars, whose lengths add, have no log."""
_GREY = "#666666"
_MIB = 2**20


def costs(table: pd.DataFrame, looks: Looks) -> Figure | None:
    """Seconds of planning and training an arm, medians over runs, one row of panels a budget; beside it score memory.

    `table` is `costs_table`'s. Where times span a factor of 100 they are points on a log axis, else bars that add.
    What is not known is not drawn. None where no time is known.
    """
    numbers = ["plan_seconds", "train_seconds", "score_bytes"]
    runs = table.astype(dict.fromkeys(numbers, float)).groupby(["budget", "arm"], sort=False)
    medians = runs[numbers].median().assign(n=runs.size()).reset_index()
    medians = medians[medians["arm"].isin(list(looks)) & medians["train_seconds"].notna()]
    if medians.empty:
        return None
    places = {arm: place for place, arm in enumerate(looks)}
    by_budget = medians.groupby("budget", sort=False)
    groups = {budget: own.sort_values("arm", key=lambda names: names.map(places)) for budget, own in by_budget}
    totals = medians["plan_seconds"].fillna(0) + medians["train_seconds"]
    log, memory = bool(totals.max() > _WIDE * totals.min()), bool(medians["score_bytes"].notna().any())
    with themed():
        size = (9.4 if memory else 7.2), 0.9 + sum(0.35 + 0.23 * len(group) for group in groups.values())
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(
            len(groups), 1 + memory, squeeze=False, sharex="col", width_ratios=[2, 1][: 1 + memory],
            height_ratios=[len(group) + 0.2 for group in groups.values()],
        )  # fmt: skip
        for row, (budget, group) in zip(axes, groups.items(), strict=True):
            _times(row[0], group, looks, log)
            row[0].set_title(str(budget), loc="left", fontweight="bold")
            if memory:
                _memory(row[1], group, looks)
        axes[-1, 0].set_xlabel("seconds a run (median)")
        if memory:
            axes[-1, 1].set_xlabel("held by scores, MiB (median)")
        figure.legend(handles=_keys(log), loc="outside upper left", ncols=2, fontsize=8)
    return figure


def _times(ax: Axes, group: pd.DataFrame, looks: Looks, log: bool) -> None:
    if log:
        ax.set_xscale("log")
    for place, cost in enumerate(group.to_dict("records")):
        arm, planning, training = str(cost["arm"]), float(cost["plan_seconds"]), float(cost["train_seconds"])
        look, known = looks[arm], not math.isnan(planning)
        label = f"{_seconds(planning) if known else '?'} + {_seconds(training)} s"
        title = f"{arm} at {cost['budget']}, median of {cost['n']}: planning + training {label}"
        if log:
            drawn = [*ax.plot(training, place, "o", color=look.colour, ms=5)]
            if known and planning > 0:
                drawn += ax.plot(planning, place, "o", color=look.colour, mfc="white", ms=5)
        else:
            at, pale = planning if known else 0.0, _pale(look.colour)
            drawn = [*ax.barh(place, training, 0.62, left=at, color=pale, ec=look.colour, lw=0.8)]
            if known:
                drawn += ax.barh(place, planning, 0.62, color=look.colour, ec=look.colour, lw=0.8)
        for artist in drawn:
            mark(artist, arm, title)
        mark(ax.text(1.01, place, label, transform=ax.get_yaxis_transform(), fontsize=7, va="center"), arm)
    name_rows(ax, range(len(group)), group["arm"].tolist())
    ax.set_ylim(len(group) - 0.4, -0.6)


def _memory(ax: Axes, group: pd.DataFrame, looks: Looks) -> None:
    for place, (arm, size, n) in enumerate(zip(group["arm"], group["score_bytes"], group["n"], strict=True)):
        if pd.notna(size):
            (bar,) = ax.barh(place, size / _MIB, 0.62, color=_pale(looks[arm].colour), ec=looks[arm].colour, lw=0.8)
            mark(bar, arm, f"{arm}: {size / _MIB:.3g} MiB, median of {n}")
            mark(ax.text(size / _MIB, place, f" {size / _MIB:.3g}", fontsize=7, va="center"), arm)  # fmt: skip
    ax.set_yticks([])
    ax.set_ylim(len(group) - 0.4, -0.6)


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _pale(colour: str) -> tuple[float, float, float]:
    red, green, blue = (1 - 0.35 * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _keys(log: bool) -> list[Line2D | Patch]:
    faces: dict[str, Any] = (
        {"planning": "white", "training": _GREY} if log else {"planning": _GREY, "training": _pale(_GREY)}
    )
    if log:
        point: dict[str, Any] = {"ls": "none", "marker": "o", "ms": 5, "color": _GREY}
        return [Line2D([], [], **point, mfc=face, label=name) for name, face in faces.items()]
    return [Patch(facecolor=face, edgecolor=_GREY, lw=0.8, label=name) for name, face in faces.items()]
