"""What figures share about arms: one colour, dash and marker each, legends, rows, panels, intervals, raw points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptive_lora.reporting.figures.axes import wrapped
from adaptive_lora.reporting.figures.theme import COLOURS, DASHES, MARKERS, Dash, mark
from adaptive_lora.stats.estimators import Interval

FILLS = ("full", "open", "half")
GREY = "#666666"
"""Of what is beside the point: names of controls, what was not run."""
NARROW = 4.5
"""Inches below which a figure is for one column of a page: smaller letters, numbers without their intervals."""
CROWD = 8
"""More arms than this in one panel cannot be distinguished; a figure of lines then has a panel for each."""


@dataclass(frozen=True)
class Look:
    """How one arm is drawn."""

    colour: str
    dash: Dash
    marker: str
    fill: str
    """One of `FILLS`: how much of the marker is filled."""

    def marked(self, size: float = 5) -> dict[str, Any]:
        """Settings of a marker without a line."""
        faces = {"full": (self.colour, "white"), "open": ("white", "white"), "half": (self.colour, "white")}
        face, other = faces[self.fill]
        return {
            "color": self.colour, "ls": "none", "marker": self.marker, "ms": size, "mfc": face,
            "markerfacecoloralt": other, "mec": self.colour, "fillstyle": "bottom" if self.fill == "half" else "full",
        }  # fmt: skip

    def lined(self, size: float = 5, width: float = 1.5) -> dict[str, Any]:
        """Settings of a line with markers."""
        return {**self.marked(size), "ls": self.dash, "lw": width}


_LEGEND_WIDTH = 2.4
"""Inches that a name in a legend may take before it is broken."""
_LONG_NAME = 28
"""Characters from which on a row's name is set smaller."""
Looks = Mapping[str, Look]
"""Arm -> its look, in the order of the study."""


def looks_of(arms: Sequence[str]) -> Looks:
    """A look for each arm by its place in the study.

    Colour, marker and filling together are never the same for two of 147 arms, marker and filling (all that
    is left in grey) for two of 21.

    >>> looks_of(["uniform", "eva"])["eva"].marker
    's'
    """
    found = {}
    for place, arm in enumerate(dict.fromkeys(arms)):
        turn = place // len(COLOURS)
        found[arm] = Look(
            COLOURS[place % len(COLOURS)],
            DASHES[(place + 2 * turn) % len(DASHES)],
            MARKERS[(place + turn) % len(MARKERS)],
            FILLS[turn % len(FILLS)],
        )
    return found


def arms_in(table: pd.DataFrame, looks: Looks) -> list[str]:
    """The arms that a table has rows of, in the order of the study."""
    present = set(table["arm"])
    return [arm for arm in looks if arm in present]


def panel_grid(figure: Figure, count: int, columns: int, **settings: Any) -> list[Axes]:
    """So many panels, row by row; places left over stay blank."""
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False, **settings).flat)
    for ax in axes[count:]:
        ax.axis("off")
    return axes[:count]


def legend(figure: Figure, looks: Looks, arms: Sequence[str], below: bool = False) -> None:
    """The arms beside the figure or `below` it, never over its data; a figure too low for them grows."""
    more = 0.16 * -(-len(arms) // 2) if below else 0.0
    figure.set_figheight(max(figure.get_figheight() + more, 0.0 if below else 0.35 + 0.185 * len(arms)))
    handles = [Line2D([], [], label=wrapped(arm, _LEGEND_WIDTH), **looks[arm].lined()) for arm in arms]
    settings: dict[str, Any] = {"loc": "outside right upper", "fontsize": 8, "handlelength": 3.2}
    if below:
        settings |= {"loc": "outside lower center", "fontsize": 7, "ncols": 2}
    placed = figure.legend(handles=handles, **settings)
    for handle, text, arm in zip(placed.legend_handles, placed.get_texts(), arms, strict=True):
        if handle is not None:
            mark(handle, arm)
        mark(text, arm)


def name_rows(ax: Axes, places: Sequence[float], arms: Sequence[str]) -> None:
    """The arms' names beside their rows, long ones in smaller letters, so that each stays on its line."""
    ax.set_yticks(places, arms)
    ax.tick_params(axis="y", length=0)
    for label, arm in zip(ax.get_yticklabels(), arms, strict=True):
        mark(label, arm)
        label.set_fontsize(max(5.0, min(9.0, 9.0 * _LONG_NAME / len(arm))))


def join(ax: Axes, xs: Sequence[float], ys: Sequence[float], arm: str, looks: Looks, arms: int) -> None:
    """The line through an arm's means; faint where so many arms cross that only their points can be read."""
    look, crowded = looks[arm], arms > CROWD
    (line,) = ax.plot(xs, ys, color=look.colour, ls=look.dash, lw=0.8 if crowded else 1.1,
                      alpha=0.45 if crowded else 1.0, zorder=2)  # fmt: skip
    mark(line, arm)


def diverged_cross(ax: Axes, x: float, arm: str, look: Look, title: str) -> None:
    """A cross at the top edge, the arm's own marker under it: runs here have no loss to be drawn at."""
    cross = {"color": look.colour, "ls": "none", "marker": "x", "ms": 6, "mew": 1.6}
    for y, settings in ((0.99, cross), (0.93, look.marked(4.5))):
        (sign,) = ax.plot(x, y, **settings, transform=ax.get_xaxis_transform(), clip_on=False)
        mark(sign, arm, title)


def interval_mark(ax: Axes, at: float, found: Interval, arm: str, look: Look, title: str, across: bool = False) -> None:
    """A mean with its interval, upright at x = `at` or across at y = `at`; an arrow where the mean is off the axis."""
    low, high = ax.get_xlim() if across else ax.get_ylim()
    ends = [end for end in (found.low, found.high) if end is not None]
    mark(ax.plot(*((ends, [at] * len(ends))[:: 1 if across else -1]), color=look.colour, lw=1.6)[0], arm)
    place = (found.mean, at) if across else (at, found.mean)
    mark(ax.plot(*place, **look.marked(5.5), zorder=4)[0], arm, title)
    if not low <= found.mean <= high and not (ax.get_autoscalex_on() if across else ax.get_autoscaley_on()):
        edge, signs = (high, ">^") if found.mean > high else (low, "<v")
        place, sign = ((edge, at), signs[0]) if across else ((at, edge), signs[1])
        mark(ax.plot(*place, sign, ms=6.5, color=look.colour, clip_on=False, zorder=5)[0], arm)


def thick_interval(ax: Axes, at: float, found: Interval | None, arm: str, look: Look) -> None:
    """A narrower interval as a thick bar across at y = `at`, over the thin one of `interval_mark`."""
    if found is not None and found.low is not None and found.high is not None:
        (bar,) = ax.plot([found.low, found.high], [at, at], color=look.colour, lw=4.2, alpha=0.55, zorder=3)
        bar.set_solid_capstyle("butt")
        mark(bar, arm)


def cell_text(ax: Axes, row: int, column: int, text: str, size: float, bold: bool = False, light: bool = False) -> None:
    """A number in a cell of a heat map, light on dark colours."""
    weight, colour = "bold" if bold else "normal", "white" if light else "black"
    ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, fontweight=weight, color=colour)


def seed_points(ax: Axes, points: Sequence[tuple[float, float, str]], arm: str, look: Look, size: float = 3.2) -> None:
    """Faint raw points (x, y, what it is), each with its own title for pages that show it."""
    for x, y, title in points:
        (point,) = ax.plot(x, y, "o", ms=size, mfc="none", mec=look.colour, mew=0.7, alpha=0.6)
        mark(point, arm, title)
