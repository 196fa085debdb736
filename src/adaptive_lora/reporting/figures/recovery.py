"""Which strategies recover planted ranks: shares of the oracle's gain, and what unevenness costs where none is due."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.theme import COLOURS, MARKERS, themed
from adaptive_lora.reporting.recovered import Recovered
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.recovery import CONTROLS

_GREY = "#8c8c8c"
_SHARES, _EXCESSES = (-1.5, 1.5), (-1.5, 3.0)
"""Widest limits: means beyond stand at the edge, as arrows, single truths beyond are left to the table."""
_BELOW = 0.3
"""How far under the mean single truths stand, rows."""
_SIGNS = (*MARKERS[1:], "*")
"""Of single truths; the circle is the mean's."""
_COLUMNS = 3
"""Of the legend: as many as fit into the width of a text."""


def recovery_figure(found: Recovered) -> Figure:
    """Strategies by rows, controls last; left shares of the oracle's gain, right the excess on the uniform truth.

    Left stand the mean over the concentrated truths with its 95 % interval and, below it, every truth by itself:
    coloured where it counts, grey where it does not.
    """
    names = found.order()
    rows = {n: i + (0.6 if n in CONTROLS else 0) for i, n in enumerate(names)}
    entries = -(-(1 + len(found.shown)) // _COLUMNS)
    with themed():
        drawn = Figure(figsize=(7.2, 1.15 + 0.16 * entries + 0.27 * len(names)), layout="constrained")
        left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(2.1, 1))
        for ax in (left, right):
            _lay_rows(ax, rows)
        _shares(left, found, rows)
        _excess(right, found, rows)
        drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=_COLUMNS, fontsize=7.5)
    return drawn


def _lay_rows(ax: Axes, rows: Mapping[str, float]) -> None:
    """Names and faint lines, with a dashed one before the controls."""
    ax.set_yticks(list(rows.values()), list(rows))
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(max(rows.values(), default=0.0) + 0.6, -0.6)
    ax.spines["left"].set_visible(False)
    for row in rows.values():
        ax.axhline(row, color="#ececec", lw=0.6, zorder=0)
    controls = [row for name, row in rows.items() if name in CONTROLS]
    if 0 < len(controls) < len(rows):
        ax.axhline(min(controls) - 0.8, color=_GREY, lw=0.6, ls=(0, (4, 3)), zorder=0)
    for label in ax.get_yticklabels():
        if label.get_text() in CONTROLS:
            label.set_color(_GREY)


def _shares(ax: Axes, found: Recovered, rows: Mapping[str, float]) -> None:
    floor = found.concentrated_share("floor")
    _name_lines(ax, floor.mean if floor else None)
    which = "(provisional)" if found.provisional else "that count"
    label = f"mean of the concentrated truths {which},\n95 % interval over seeds"
    ax.plot([], [], "o-", ms=5.5, lw=1.6, color=COLOURS[0], label=label)
    for name, row in rows.items():
        _dot(ax, found.concentrated_share(name), row, name, _SHARES)
    low, high = _SHARES
    for place, truth in enumerate(found.shown):
        counts = truth in found.counting
        means = [share.mean if (share := found.share(truth, name)) else np.nan for name in rows]
        kept = [mean if low <= mean <= high else np.nan for mean in means]
        ax.plot(kept, [row + _BELOW for row in rows.values()], _SIGNS[place % len(_SIGNS)], ms=3.6, mfc="none",
                mec=COLOURS[1 + place % (len(COLOURS) - 1)] if counts else _GREY, mew=0.8, ls="none",
                zorder=3 if counts else 2, label=truth if counts else f"{truth} (does not count)")  # fmt: skip
    _limit(ax, _SHARES)
    ax.set_xlabel("share of the oracle's gain over uniform")


def _name_lines(ax: Axes, floor: float | None) -> None:
    """Lines at uniform, the oracle and the floor with their names, the floor's moved away from a near one."""
    lines = {"uniform": 0.0, "oracle": 1.0}
    sides = dict.fromkeys(("uniform", "oracle", "floor"), 0)
    if floor is not None and _SHARES[0] <= floor <= _SHARES[1]:
        for other, x in lines.items():
            if abs(floor - x) < 0.25:
                sides["floor"] = -1 if floor < x else 1
                sides[other] = -sides["floor"]
        lines["floor"] = floor
    for name, x in lines.items():
        side = sides[name]
        ax.axvline(x, color="black", lw=0.8, ls=":" if name == "floor" else "-", zorder=1)
        ax.annotate(
            name, (x, 1), xycoords=("data", "axes fraction"), xytext=(2 * side, 3), textcoords="offset points",
            ha={-1: "right", 0: "center", 1: "left"}[side], va="bottom", fontsize=7.5,
        )  # fmt: skip


def _excess(ax: Axes, found: Recovered, rows: Mapping[str, float]) -> None:
    ax.axvline(0, color="black", lw=0.8, zorder=1)
    ax.set_xlabel("excess over uniform\non the uniform truth")
    values = {name: found.excess(name) for name in rows}
    if not any(values.values()):
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=_GREY)
        return
    for name, row in rows.items():
        _dot(ax, values[name], row, name, _EXCESSES)
    _limit(ax, _EXCESSES)


def _dot(ax: Axes, value: Interval | None, row: float, name: str, limits: tuple[float, float]) -> None:
    """Mean and interval; an arrow at the edge where the mean lies beyond the limits."""
    if value is None:
        return
    (low, high), colour = limits, _GREY if name in CONTROLS else COLOURS[0]
    if value.low is not None and value.high is not None and value.low < high and value.high > low:
        ends = [max(value.low, low), min(value.high, high)]
        ax.plot(ends, [row, row], color=colour, lw=1.6, solid_capstyle="butt", zorder=4)
    mark = "<" if value.mean < low else ">" if value.mean > high else "o"
    ax.plot(min(max(value.mean, low), high), row, mark, ms=5.5, color=colour, mec="white", mew=0.5, zorder=5)


def _limit(ax: Axes, widest: tuple[float, float]) -> None:
    """What is drawn and a little more, within the widest limits and a little more."""
    low, high = max(ax.dataLim.intervalx[0], widest[0]), min(ax.dataLim.intervalx[1], widest[1])
    room = 0.03 * (high - low) or 0.1  # all may be 0
    ax.set_xlim(low - room, high + room)
