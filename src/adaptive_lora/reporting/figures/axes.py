"""What several figures share: axes that read plainly, points side by side, a limit on raw points."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

RAW_POINTS = 2_000
"""Raw points in one figure at most: each is an element of its own in the page."""
_FAR = 4.0
"""Times what is usual: further out stand arrows at the edge."""
_NEAR = 1e-3
"""How far an axis goes on which nothing differs from zero."""
_CHARACTER = 0.078
"""Inches of one character of a title."""


def points_each(groups: int) -> int:
    """Raw points that each of so many groups may show.

    >>> points_each(40), points_each(5_000)
    (50, 1)
    """
    return max(1, RAW_POINTS // max(1, groups))


def cap(sizes: Sequence[int]) -> int | None:
    """How many raw points of each group are shown, where that is not all of them.

    >>> cap([10, 10]), cap([1500, 1500])
    (None, 1000)
    """
    most = points_each(len(sizes))
    return most if max(sizes, default=0) > most else None


def side_by_side(count: int, width: float) -> list[float]:
    """Shifts that part points which would lie upon each other, `width` from the first to the last.

    >>> side_by_side(3, 1.0), side_by_side(1, 1.0)
    ([-0.5, 0.0, 0.5], [0.0])
    """
    return np.linspace(-width / 2, width / 2, count).tolist() if count > 1 else [0.0] * count


def reach(groups: Sequence[Sequence[float]], least: float = 0.0, room: float = 0.0) -> tuple[float, float]:
    """From where to where an axis around zero goes, so that no group far from all others squashes the rest.

    It shows all values and `least` on either side, but none further out than four times the third quartile of the
    groups' farthest values; beside that a share of `room`. Where all is zero it goes a little to either side.

    >>> reach([[0.01, 0.02], [-0.02], [0.03], [0.8]])
    (-0.02, 0.12)
    """
    farthest = [max(map(abs, group)) for group in groups if group]
    limit = max(least, _FAR * float(np.quantile(farthest, 0.75, method="lower"))) if farthest else least
    values = [-least, least, *(value for group in groups for value in group)]
    low, high = max(-limit, min(values)), min(limit, max(values))
    if low == high:
        low, high = -_NEAR, _NEAR
    return low - room * (high - low), high + room * (high - low)


def plain_log(ax: Axes) -> None:
    """A log y axis with a handful of plain numbers, by what is drawn so far."""
    ax.set_yscale("log")
    axis, (low, high) = ax.yaxis, ax.get_ylim()
    decades = math.log10(high / low)
    if decades < 0.9:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value >= 1e-3 else short(value)))
    axis.set_minor_locator(NullLocator())


def log_ticks(ax: Axes, values: Sequence[float], labels: Sequence[str]) -> None:
    """A log x axis with ticks at these values, less those whose labels would touch the one before."""
    ax.set_xscale("log")
    low, high = (math.log10(edge) for edge in ax.get_xlim())
    kept: list[int] = []
    for place, value in enumerate(values):
        if not kept or math.log10(value / values[kept[-1]]) >= 0.15 * (high - low):
            kept.append(place)
    ax.set_xticks([values[place] for place in kept], [labels[place] for place in kept])
    ax.xaxis.set_minor_locator(NullLocator())


def rate_axis(ax: Axes, rates: Sequence[float], arms: int) -> list[float]:
    """A log x axis of learning rates; factors by which arms of one rate stand beside it."""
    rates = sorted(set(rates))
    step = min((b / a for a, b in itertools.pairwise(rates)), default=2.0)
    ax.set_xlim(rates[0] / step**0.6, rates[-1] * step**0.6)
    log_ticks(ax, rates, [short(rate) for rate in rates])
    return [step**shift for shift in side_by_side(arms, min(0.75, 0.07 * arms))]


def short(value: float) -> str:
    """A number in few characters, as learning rates are written.

    >>> short(0.003), short(1e-4), short(0.00025)
    ('3e-3', '1e-4', '2.5e-4')
    """
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def counted(parameters: float) -> str:
    """Trainable parameters in few characters.

    >>> counted(93_440), counted(6_291_456)
    ('93,440', '6.29M')
    """
    return f"{parameters:,.0f}" if parameters < 1e6 else f"{parameters / 1e6:.3g}M"


def wrapped(name: str, inches: float) -> str:
    """A title broken where it is wider than its panel, at hyphens if it has any."""
    return textwrap.fill(name, max(8, int(inches / _CHARACTER)))
