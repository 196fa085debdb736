"""Differences of results made elsewhere, with their intervals: one panel a question, for each has its own unit."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.foreign.judging import Outcome
from adaptive_lora.foreign.scores import Question
from adaptive_lora.reporting.figures.axes import reach
from adaptive_lora.reporting.figures.looks import Looks, interval_mark, looks_of, name_rows, seed_points
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.reporting.formatting import formatted

_MOST_POINTS = 50
"""Raw points in a row."""


def differences(outcomes: Sequence[Outcome], baseline: str) -> Figure:
    """Arm minus baseline: every seed, the mean and its interval; the band is the margin, where there is one."""
    questions = list(dict.fromkeys(o.paired.question for o in outcomes))
    groups = [[o for o in outcomes if o.paired.question == question] for question in questions]
    looks = looks_of([o.paired.arm for o in outcomes])
    heights = [len(group) + 1.6 for group in groups]
    with themed():
        figure = Figure(figsize=(7.6, 0.4 + 0.36 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, question, group in zip(panels, questions, groups, strict=True):
            _panel(ax, question, group, looks, baseline)
    return figure


def _panel(ax: Axes, question: Question, group: Sequence[Outcome], looks: Looks, baseline: str) -> None:
    margin = group[0].margin
    if margin is not None:
        ax.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlim(*reach([_values(o) for o in group], margin or 1e-12, room=0.05))
    name_rows(ax, list(range(len(group))), [o.paired.arm for o in group])
    ax.set_ylim(len(group) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    for place, o in enumerate(group):
        _row(ax, place, o, looks)
    side, unit = "right" if question.higher_is_better else "left", f", {question.unit}" if question.unit else ""
    ax.set_xlabel(f"{question.metric} minus {baseline}{unit} ({side}: better than {baseline})")
    if question.task:
        ax.set_title(question.task, loc="left", fontweight="bold")


def _values(o: Outcome) -> list[float]:
    ends = [end for end in (o.shown.low, o.shown.high) if end is not None]
    return [o.difference, *ends, *(o.paired.table.by_seed.tolist() if len(o.paired.table.seeds) > 1 else [])]


def _row(ax: Axes, place: int, o: Outcome, looks: Looks) -> None:
    arm, found = o.paired.arm, o.shown
    mark(ax.axhline(place, color="#eeeeee", lw=0.6, zorder=0), arm)
    by_seed = list(zip(o.paired.table.seeds, o.paired.table.by_seed.tolist(), strict=True))
    points = [(value, place + 0.2, f"{arm}, seed {seed}: {value:+.4f}") for seed, value in by_seed[:_MOST_POINTS]]
    if len(by_seed) > 1:
        seed_points(ax, points, arm, looks[arm])
    numbers = formatted(found, "+.4f")
    interval_mark(ax, place - 0.1, found, arm, looks[arm], f"{arm}: {numbers}", across=True)
    mark(ax.text(1.02, place, numbers, transform=ax.get_yaxis_transform(), fontsize=7.5, va="center"), arm)
