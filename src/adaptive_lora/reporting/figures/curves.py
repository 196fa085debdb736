"""How training went: loss by step and by time."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import plain_log, wrapped
from adaptive_lora.reporting.figures.looks import CROWD, Look, Looks, arms_in, legend, panel_grid
from adaptive_lora.reporting.figures.theme import mark, themed

_BEHIND = Look("#999999", "-", "", "full")
"""The baseline where it stands behind another arm."""


def learning_curves(curves: pd.DataFrame, looks: Looks, budget: str, baseline: str) -> Figure | None:
    """Training loss by step on a log scale, running mean over a tenth of the run, mean over seeds with their range.

    Many arms get a panel each, with the baseline in grey. None where no run of the budget has finished.
    """
    own = curves[curves["budget"] == budget]
    courses = {arm: _course(own[own["arm"] == arm]) for arm in arms_in(own, looks)}
    return _drawn(courses, looks, baseline, "step")


def curves_in_seconds(
    curves: pd.DataFrame, runs: pd.DataFrame, looks: Looks, budget: str, baseline: str
) -> Figure | None:
    """`learning_curves` against seconds: share of the run's steps · its `train_seconds`, mean over seeds.

    Runs whose time is not known are left out. None where there are none.
    """
    known = runs.loc[runs["train_seconds"].notna(), ["run_id", "train_seconds"]]
    own = curves[curves["budget"] == budget].merge(known, on="run_id")
    courses = {arm: _course(own[own["arm"] == arm], timed=True) for arm in arms_in(own, looks)}
    return _drawn(courses, looks, baseline, "seconds of training")


def _course(own: pd.DataFrame, timed: bool = False) -> pd.DataFrame:
    """Smoothed training loss of one arm: a row a step, or the second at which it was reached, a column a seed."""
    by_seed = own.pivot(index="step", columns="seed", values="loss")
    smooth = by_seed.rolling(max(1, len(by_seed) // 10), min_periods=1).mean()
    x = smooth.index.to_numpy(dtype=float) + 1
    if timed:
        x = x / x[-1] * float(own.drop_duplicates("seed")["train_seconds"].astype(float).mean())
    return smooth.set_axis(x)


def _drawn(courses: dict[str, pd.DataFrame], looks: Looks, baseline: str, across: str) -> Figure | None:
    if not courses:
        return None
    with themed():
        figure = _together(courses, looks) if len(courses) <= CROWD else _panel_each(courses, looks, baseline)
        figure.supxlabel(across, fontsize=9)
        figure.supylabel("training loss, nats per token", fontsize=9)
    return figure


def _together(courses: dict[str, pd.DataFrame], looks: Looks) -> Figure:
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    ax = figure.subplots()
    for arm, course in courses.items():
        _curve(ax, course, looks[arm], arm, marked=True)
    plain_log(ax)
    legend(figure, looks, list(courses))
    return figure


def _panel_each(courses: dict[str, pd.DataFrame], looks: Looks, baseline: str) -> Figure:
    columns = 6
    rows = -(-len(courses) // columns)
    figure = Figure(figsize=(10.4, 0.5 + 1.65 * rows), layout="constrained")
    axes = panel_grid(figure, len(courses), columns, sharex=True, sharey=True)
    for place, (ax, (arm, course)) in enumerate(zip(axes, courses.items(), strict=True)):
        if baseline in courses and arm != baseline:
            _curve(ax, courses[baseline], _BEHIND, baseline)
        _curve(ax, course, looks[arm], arm)
        ax.set_title(wrapped(arm, 1.7), fontsize=8.5)
        mark(ax, arm)
        # Shared axes label their last row only; above an empty place the labels would be missing.
        ax.xaxis.set_tick_params(labelbottom=place + columns >= len(courses))
    plain_log(axes[0])
    return figure


def _curve(ax: Axes, course: pd.DataFrame, look: Look, arm: str, marked: bool = False) -> None:
    plain = {"color": look.colour, "ls": "-", "lw": 1.2}
    settings = {**look.lined(4.5), "markevery": len(course) // 10 + 1} if marked else plain
    mean = course.mean(axis=1).to_numpy()
    (line,) = ax.plot(course.index, mean, **settings)
    mark(line, arm, f"{arm}: ends at {mean[-1]:.4f}, mean of {course.shape[1]}")
    band = ax.fill_between(course.index, course.min(axis=1), course.max(axis=1), color=look.colour, alpha=0.12, lw=0)
    mark(band, arm)
