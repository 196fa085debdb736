"""What a difference is made of, in two steps: from the baseline to the control, from the control to the arm."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from adaptive_lora.reporting.figures.axes import reach
from adaptive_lora.reporting.figures.looks import name_rows
from adaptive_lora.reporting.figures.theme import COLOURS, mark, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.decomposition import Decomposition
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.metrics import TEST_LOSS, Metric

_PRICE, _VALUE, _TOTAL = COLOURS[1], COLOURS[0], COLOURS[6]
_GREY = "#666666"
_LANES = (-0.24, 0.04, 0.30)
"""Of price, value and the whole within a row, from the top."""
_HEIGHT = 0.24


def decomposition_bars(found: Sequence[Decomposition], baseline: str, metric: Metric = TEST_LOSS) -> Figure | None:
    """One row an arm, one panel a budget; None where there is nothing to draw.

    The first bar goes from 0 to the control, the second from there to the arm, each with its own interval at its end; a
    diamond is the arm with that of the whole difference. An arm far beyond all others is cut at the edge.
    """
    if not found:
        return None
    budgets = dict.fromkeys(d.budget for d in found)
    groups = {budget: [d for d in found if d.budget == budget] for budget in budgets}
    limits = reach([_ends(d) for d in found], room=0.04)
    with themed():
        height = 1.2 + 0.3 * len(groups) + 0.62 * len(found)
        figure = Figure(figsize=(7.6, height), layout="constrained")
        ratios = [len(group) for group in groups.values()]
        panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
        for ax, (budget, group) in zip(panels, groups.items(), strict=True):
            ax.axvline(0, color="black", lw=0.8, zorder=1)
            ax.set_xlim(*limits)
            _rows(ax, group)
            if len(groups) > 1:
                ax.set_title(budget, loc="left", fontweight="bold")
        panels[-1].set_xlabel(f"{metric.title} minus {baseline}, {metric.unit} ({metric.better_side}: better)")
        figure.legend(handles=_keys(), loc="outside upper left", ncols=3, fontsize=8)
    return figure


def _ends(d: Decomposition) -> list[float]:
    """All that a row shows."""
    ends = [0.0, d.price.size.mean, d.total.mean]
    shifted = ((d.price.size, 0.0), (d.value.size, d.price.size.mean), (d.total, 0.0))
    return ends + [end + by for part, by in shifted for end in (part.low, part.high) if end is not None]


def _rows(ax: Axes, group: Sequence[Decomposition]) -> None:
    name_rows(ax, range(len(group)), [d.arm for d in group])
    ax.set_ylim(len(group) - 0.45, -0.55)
    ax.spines["left"].set_visible(False)
    for place, d in enumerate(group):
        against = ax.text(-0.012, place + _LANES[2], f"against {d.control}", transform=ax.get_yaxis_transform(),
                          fontsize=6.5, ha="right", va="center", color=_GREY)  # fmt: skip
        mark(against, d.arm)
        at, start = f"{d.arm} at {d.budget}", d.price.size.mean
        price = f"{at}, price of unevenness ({d.control}): {formatted(d.price.size, '+.4f')}"
        value = f"{at}, value of information: {formatted(d.value.size, '+.4f')}"
        _bar(ax, (place + _LANES[0], 0.0), d.price.size, (_PRICE, "////"), (d.arm, price))
        _bar(ax, (place + _LANES[1], start), d.value.size, (_VALUE, ""), (d.arm, value))
        _whole(ax, place + _LANES[2], d.total, (d.arm, f"{at}, together: {formatted(d.total, '+.4f')}"))
        # The control, where one bar ends and the next begins.
        lanes = [place + _LANES[0] - _HEIGHT / 2, place + _LANES[1] + _HEIGHT / 2]
        mark(ax.plot([start, start], lanes, color=_GREY, lw=0.8, zorder=3)[0], d.arm)
        parts = zip(_LANES, (d.price.size, d.value.size, d.total), (_PRICE, _VALUE, _TOTAL), strict=True)
        for lane, part, colour in parts:
            words = ax.text(1.02, place + lane, formatted(part, "+.4f"), transform=ax.get_yaxis_transform(),
                            fontsize=7, va="center", color=colour)  # fmt: skip
            mark(words, d.arm)


def _bar(ax: Axes, origin: tuple[float, float], part: Interval, style: tuple[str, str], said: tuple[str, str]) -> None:
    """A bar of a part from (place, start), with its interval round its end."""
    (place, start), (colour, hatch), (arm, title) = origin, style, said
    face = "white" if hatch else colour
    bar = Rectangle((start, place - _HEIGHT / 2), part.mean, _HEIGHT, facecolor=face, edgecolor=colour, hatch=hatch,
                    lw=1.0, alpha=1.0 if hatch else 0.75, zorder=2)  # fmt: skip
    mark(ax.add_patch(bar), arm, title)
    if part.low is not None and part.high is not None:
        ends = [start + part.low, start + part.high]
        mark(ax.plot(ends, [place, place], color="black", lw=1.1, marker="|", ms=5, zorder=4)[0], arm)


def _whole(ax: Axes, place: float, total: Interval, said: tuple[str, str]) -> None:
    arm, title = said
    ends = [end for end in (total.low, total.high) if end is not None]
    mark(ax.plot(ends, [place] * len(ends), color=_TOTAL, lw=1.6, zorder=4)[0], arm)
    mark(ax.plot(total.mean, place, "D", ms=4.5, color=_TOTAL, zorder=5)[0], arm, title)


def _keys() -> list[Line2D | Patch]:
    return [
        Patch(facecolor="white", edgecolor=_PRICE, hatch="////", label="price of unevenness"),
        Patch(facecolor=_VALUE, edgecolor=_VALUE, alpha=0.75, label="value of information"),
        Line2D([], [], color=_TOTAL, marker="D", ms=4.5, lw=1.6, label="together"),
    ]
