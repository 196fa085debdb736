"""What an arm changed: test loss, or what else a study is judged by, minus the baseline's at the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adaptive_lora.reporting.figures.axes import points_each, reach
from adaptive_lora.reporting.figures.looks import Looks, interval_mark, name_rows, seed_points
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.metrics import TEST_LOSS, Metric

CONTROLS = ("random", "shuffled")
"""Strategies without a reason: what they reach, chance reaches."""
_GREY = "#666666"


def paired_differences(
    arms: Sequence[ArmSummary], looks: Looks, baseline: str, margins: Mapping[str, float], metric: Metric = TEST_LOSS
) -> Figure | None:
    """The metric minus the baseline's at the same seed: every seed, the mean and its 95 % interval.

    One panel a budget; controls stand last. The band is the budget's margin, within which differences do not
    matter; where it has none there is no band. An arm far beyond all others is an arrow at the edge. None where no arm
    has a difference.
    """
    shown = [arm for arm in arms if arm.difference is not None]
    if not shown:
        return None
    controls_last = sorted(shown, key=lambda arm: arm.strategy in CONTROLS)
    budgets = dict.fromkeys(arm.budget for arm in shown)
    groups = {budget: [arm for arm in controls_last if arm.budget == budget] for budget in budgets}
    lengths = [_places(group)[-1] + 1.0 for group in groups.values()]
    limits = difference_limits(shown, margins, room=0.05)
    row = 0.36 if len(shown) <= 20 else 0.25
    with themed():
        figure = Figure(figsize=(7.6, 1.0 + 0.3 * len(groups) + row * sum(lengths)), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=lengths)[:, 0]
        for ax, (budget, group) in zip(panels, groups.items(), strict=True):
            if margin := margins.get(budget):
                ax.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
            ax.axvline(0, color="black", lw=0.8)
            ax.set_xlim(*limits)
            _rows(ax, group, looks, points_each(len(shown)))
            if len(groups) > 1:
                ax.set_title(budget, loc="left", fontweight="bold")
        direction = f"({metric.better_side}: better than {baseline})"
        panels[-1].set_xlabel(f"{metric.title} minus {baseline}, {metric.unit} {direction}")
        handles = _keys([margins[budget] for budget in groups if budget in margins])
        figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8)
    return figure


def difference_limits(arms: Sequence[ArmSummary], margins: Mapping[str, float], room: float) -> tuple[float, float]:
    """What an axis of differences shows: seeds, intervals and the margin (`axes.reach`), and a share of room beside."""
    groups = []
    for arm in arms:
        ends = (arm.difference.low, arm.difference.high) if arm.difference else ()
        groups.append([value for _, value in arm.differences] + [end for end in ends if end is not None])
    shown = [margins[arm.budget] for arm in arms if arm.budget in margins]
    return reach(groups, max(shown, default=0.0), room)


def _places(group: Sequence[ArmSummary]) -> list[float]:
    """The row of each arm, from the top; a gap stands before the first control."""
    gap = 0.0 if group[0].strategy in CONTROLS else 0.6
    return [place + (gap if arm.strategy in CONTROLS else 0.0) for place, arm in enumerate(group)]


def _rows(ax: Axes, group: Sequence[ArmSummary], looks: Looks, most: int) -> None:
    places = _places(group)
    name_rows(ax, places, [arm.arm for arm in group])
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.spines["left"].set_visible(False)
    for place, arm, label in zip(places, group, ax.get_yticklabels(), strict=True):
        _difference_row(ax, place, arm, looks, most)
        if arm.strategy in CONTROLS:
            label.set(color=_GREY, style="italic")
    first = next((place for place, arm in zip(places, group, strict=True) if arm.strategy in CONTROLS), None)
    if first:
        ax.axhline(first - 0.8, color=_GREY, lw=0.7, ls=(0, (1, 2)))
        ax.text(0, first - 0.77, " controls", transform=ax.get_yaxis_transform(), color=_GREY, fontsize=7, va="top")


def _difference_row(ax: Axes, place: float, arm: ArmSummary, looks: Looks, most: int) -> None:
    assert arm.difference is not None
    look, found, at = looks[arm.arm], arm.difference, f"{arm.arm} at {arm.budget}"
    mark(ax.axhline(place, color="#eeeeee", lw=0.6, zorder=0), arm.arm)
    points = [(value, place + 0.2, f"{at}, seed {seed}: {value:+.4f}") for seed, value in arm.differences[:most]]
    seed_points(ax, points, arm.arm, look)
    numbers = formatted(found, "+±")
    interval_mark(ax, place - 0.1, found, arm.arm, look, f"{at}, mean of {found.n}: {numbers}", across=True)
    mark(ax.text(1.02, place, numbers, transform=ax.get_yaxis_transform(), fontsize=7.5, va="center"), arm.arm)


def _keys(margins: Sequence[float]) -> list[Line2D | Patch]:
    sizes = {f"±{margin:.2g}" for margin in margins}
    label = f"margin {sizes.pop()}" if len(sizes) == 1 else "margin"
    band = [Patch(facecolor="#999999", alpha=0.2, lw=0, label=label)] if margins else []
    return [
        Line2D([], [], ls="none", marker="o", ms=3.2, mfc="none", mec=_GREY, mew=0.7, label="one seed"),
        Line2D([], [], color=_GREY, marker="o", ms=5.5, lw=1.6, label="mean, 95 % interval"),
        *band,
    ]
