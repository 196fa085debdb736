"""What an arm changed: test loss, or what else a study is judged by, minus the baseline's at the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adaptive_lora.reporting.figures.axes import points_each, reach
from adaptive_lora.reporting.figures.looks import (
    NARROW,
    Look,
    Looks,
    interval_mark,
    name_rows,
    seed_points,
    thick_interval,
)
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.assays import Assay
from adaptive_lora.stats.crossed import Crossed
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Judgement

CONTROLS = ("random", "shuffled")
"""Strategies without a reason: what they reach, chance reaches."""
HALF = "half the budget"
"""The row of the yardstick."""
_GREY = "#666666"
_HALF_LOOK = Look(_GREY, "-", "D", "full")
_GAP = 0.6
"""Of a row, before the controls and before the yardstick."""


@dataclass(frozen=True)
class Evidence:
    """What stands beside the arms' differences: both intervals, verdicts, and the baseline at half of each budget."""

    judged: Mapping[Comparison, Judgement] = field(default_factory=dict)
    differences: Mapping[tuple[str, str], Crossed] = field(default_factory=dict)
    """Of every arm and budget, for the equivalence intervals of those without a verdict."""
    assays: Sequence[Assay] = ()
    alpha: float = 0.05

    def half(self, budget: str) -> Assay | None:
        """The yardstick at a budget; None where the baseline was not trained at half of it."""
        own = (assay for assay in self.assays if assay.budget == budget and assay.difference is not None)
        return next(own, None)

    def intervals(self, arm: ArmSummary) -> tuple[Interval, Interval | None]:
        """Of level 1 - alpha and 1 - 2 alpha; those that a verdict rests on where the arm has one."""
        judged = self.judged.get(Comparison(arm.arm, arm.budget))
        if judged is not None and judged.interval is not None:
            return judged.interval, judged.equivalence_interval
        assert arm.difference is not None
        own = self.differences.get((arm.arm, arm.budget))
        return arm.difference, own.interval(1 - 2 * self.alpha) if own and arm.difference.low is not None else None


def paired_differences(
    arms: Sequence[ArmSummary],
    looks: Looks,
    baseline: str,
    margins: Mapping[str, float],
    metric: Metric = TEST_LOSS,
    evidence: Evidence | None = None,
    width: float = 7.2,
) -> Figure | None:
    """The metric minus the baseline's at the same seed: every seed, the mean, its 95 % and its equivalence interval.

    One panel a budget; controls stand last, and below them what half of the budget costs. Arms with a verdict have its
    word at the right. The band is the budget's margin, within which differences do not
    matter; where it has none there is no band. An arm far beyond all others is an arrow at the edge. `width` in inches:
    7.2 is a page's, 3.4 a column's. None where no arm has a difference.
    """
    shown = [arm for arm in arms if arm.difference is not None]
    if not shown:
        return None
    evidence = evidence or Evidence()
    controls_last = sorted(shown, key=lambda arm: arm.strategy in CONTROLS)
    budgets = dict.fromkeys(arm.budget for arm in shown)
    groups = {budget: [arm for arm in controls_last if arm.budget == budget] for budget in budgets}
    lengths = [_places(group)[-1] + 1.0 + (1.0 + _GAP) * (evidence.half(b) is not None) for b, group in groups.items()]
    limits = difference_limits(shown, margins, 0.05, evidence.assays)
    row, narrow = 0.36 if len(shown) <= 20 else 0.27, width < NARROW
    with themed():
        figure = Figure(figsize=(width, 1.0 + 0.3 * len(groups) + row * sum(lengths)), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=lengths)[:, 0]
        for ax, (budget, group) in zip(panels, groups.items(), strict=True):
            if margin := margins.get(budget):
                ax.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
            ax.axvline(0, color="black", lw=0.8)
            ax.set_xlim(*limits)
            _rows(ax, group, looks, points_each(len(shown)), evidence, narrow)
            if (half := evidence.half(budget)) is not None:
                _half_row(ax, _places(group)[-1] + 1.0 + _GAP, half, baseline, points_each(len(shown)), narrow)
            if narrow:
                ax.tick_params(labelsize=7)
            if len(groups) > 1:
                ax.set_title(budget, loc="left", fontweight="bold")
        direction = f"({metric.better_side}: better than {baseline})"
        unit = f"{metric.unit}{chr(10) if narrow else ' '}{direction}"
        panels[-1].set_xlabel(f"{metric.title} minus {baseline}, {unit}", fontsize=7.5 if narrow else 9)
        handles = _keys([margins[budget] for budget in groups if budget in margins], evidence.alpha)
        figure.legend(handles=handles, loc="outside upper left", ncols=1 if narrow else 3, fontsize=8 - narrow)
    return figure


def difference_limits(
    arms: Sequence[ArmSummary], margins: Mapping[str, float], room: float, halves: Sequence[Assay] = ()
) -> tuple[float, float]:
    """What an axis of differences shows: seeds, intervals and the margin (`axes.reach`), and a share of room beside.

    The yardsticks `halves` at the arms' budgets are shown wholly, but for single seeds.
    """
    groups = []
    for arm in arms:
        ends = (arm.difference.low, arm.difference.high) if arm.difference else ()
        groups.append([value for _, value in arm.differences] + [end for end in ends if end is not None])
    shown = [margins[arm.budget] for arm in arms if arm.budget in margins]
    low, high = reach(groups, max(shown, default=0.0))
    budgets = {arm.budget for arm in arms}
    sizes = [assay.difference for assay in halves if assay.budget in budgets and assay.difference is not None]
    of_halves = [end for size in sizes for end in (size.mean, size.low, size.high) if end is not None]
    low, high = min([low, *of_halves]), max([high, *of_halves])
    return low - room * (high - low), high + room * (high - low)


def _places(group: Sequence[ArmSummary]) -> list[float]:
    """The row of each arm, from the top; a gap stands before the first control."""
    gap = 0.0 if group[0].strategy in CONTROLS else _GAP
    return [place + (gap if arm.strategy in CONTROLS else 0.0) for place, arm in enumerate(group)]


def _rows(ax: Axes, group: Sequence[ArmSummary], looks: Looks, most: int, evidence: Evidence, narrow: bool) -> None:
    places, half = _places(group), evidence.half(group[0].budget)
    extra = [places[-1] + 1.0 + _GAP] if half is not None else []
    name_rows(ax, [*places, *extra], [*(arm.arm for arm in group), *([HALF] if extra else [])])
    ax.set_ylim([*places, *extra][-1] + 0.6, -0.6)
    ax.spines["left"].set_visible(False)
    for place, arm, label in zip(places, group, ax.get_yticklabels(), strict=False):
        _difference_row(ax, place, arm, looks, most, evidence, narrow)
        if arm.strategy in CONTROLS:
            label.set(color=_GREY, style="italic")
    if extra:
        label = ax.get_yticklabels()[-1]
        label.set_gid(None)  # no arm of its own
        label.set(color=_GREY)
    first = next((place for place, arm in zip(places, group, strict=True) if arm.strategy in CONTROLS), None)
    for start, name in ((first, "controls"), (extra[0] if extra else None, "yardstick")):
        if start:
            ax.axhline(start - 0.8, color=_GREY, lw=0.7, ls=(0, (1, 2)))
            ax.text(0, start - 0.77, f" {name}", transform=ax.get_yaxis_transform(), color=_GREY, fontsize=7, va="top")


def _difference_row(
    ax: Axes, place: float, arm: ArmSummary, looks: Looks, most: int, evidence: Evidence, narrow: bool
) -> None:
    look, at = looks[arm.arm], f"{arm.arm} at {arm.budget}"
    found, inner = evidence.intervals(arm)
    mark(ax.axhline(place, color="#eeeeee", lw=0.6, zorder=0), arm.arm)
    points = [(value, place + 0.22, f"{at}, seed {seed}: {value:+.4f}") for seed, value in arm.differences[:most]]
    seed_points(ax, points, arm.arm, look)
    numbers = formatted(found, "+±")
    thick_interval(ax, place - 0.1, inner, arm.arm, look)
    interval_mark(ax, place - 0.1, found, arm.arm, look, f"{at}, mean of {found.n}: {numbers}", across=True)
    judged = evidence.judged.get(Comparison(arm.arm, arm.budget))
    _said(ax, place, found, arm.arm, None if judged is None else str(judged.verdict), narrow)


def _said(ax: Axes, place: float, found: Interval, arm: str, verdict: str | None, narrow: bool) -> None:
    """At the right of a row: its numbers, in a column the mean alone, and above them its verdict where it has one."""
    sideways, numbers = ax.get_yaxis_transform(), formatted(found.mean, "+.4f") if narrow else formatted(found, "+±")
    if verdict is not None:
        word = ax.text(1.02, place - 0.2, verdict, transform=sideways, fontsize=8 - narrow, va="center", weight="bold")
        mark(word, arm)
    shift = 0.0 if verdict is None else 0.22
    mark(ax.text(1.02, place + shift, numbers, transform=sideways, fontsize=7.5 - narrow, va="center"), arm)


def _half_row(ax: Axes, place: float, half: Assay, baseline: str, most: int, narrow: bool) -> None:
    assert half.difference is not None
    at = f"{baseline} at {half.half}, half of {half.budget}"
    ax.axhline(place, color="#eeeeee", lw=0.6, zorder=0)
    points = [(value, place + 0.22, f"{at}, seed {seed}: {value:+.4f}") for seed, value in half.by_seed[:most]]
    seed_points(ax, points, baseline, _HALF_LOOK)
    numbers = formatted(half.difference, "+±")
    thick_interval(ax, place - 0.1, half.shown, baseline, _HALF_LOOK)
    title = f"{at}, mean of {half.difference.n}: {numbers}"
    interval_mark(ax, place - 0.1, half.difference, baseline, _HALF_LOOK, title, across=True)
    _said(ax, place, half.difference, baseline, None, narrow)


def _keys(margins: Sequence[float], alpha: float) -> list[Line2D | Patch]:
    sizes = {f"±{margin:.2g}" for margin in margins}
    label = f"margin {sizes.pop()}" if len(sizes) == 1 else "margin"
    band = [Patch(facecolor="#999999", alpha=0.2, lw=0, label=label)] if margins else []
    levels = f"{100 - 100 * alpha:g} % interval, thick {100 - 200 * alpha:g} %"
    return [
        Line2D([], [], ls="none", marker="o", ms=3.2, mfc="none", mec=_GREY, mew=0.7, label="one seed"),
        Line2D([], [], color=_GREY, marker="o", ms=5.5, lw=1.6, label=f"mean, {levels}"),
        *band,
    ]
