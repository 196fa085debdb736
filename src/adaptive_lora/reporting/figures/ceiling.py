"""The ceiling: the most that ranks in the right places gain, beside what half and double the budget change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adaptive_lora.reporting.figures.axes import reach
from adaptive_lora.reporting.figures.looks import GREY
from adaptive_lora.reporting.figures.theme import COLOURS, MARKERS, themed
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval

HALF, DOUBLE = "half the budget costs", "double the budget gains"
NOT_RUN = "not run"
_ROW, _BESIDE = 0.16, 0.42
"""Inches of a row, and of what a panel needs beside its rows."""
_NAMES, _PANEL = 1.5, 2.1


@dataclass(frozen=True)
class CeilingCell:
    """One task at one budget.

    Gains are over uniform at equal parameters, positive is better, in nats per token of test loss or whatever the study
    is judged by.
    """

    task: str
    budget: str
    gains: Mapping[str, Interval | None]
    """What was planned how -> its gain, in the order to be drawn; None where that was not run."""
    half: Interval | None = None
    """What half of the budget costs the uniform plan, positive is worse."""
    double: Interval | None = None
    """What double the budget gains it, positive is better."""
    threshold: float | None = None
    """The locked one: below it allocation is closed."""
    verdict: str = NOT_RUN
    """`closed`, `open: pays 0.003`, `not run`, as the rule has it."""

    @property
    def ran(self) -> bool:
        """Whether there is anything to draw."""
        return any(gain is not None for gain in self.gains.values())


def ceiling(cells: Sequence[CeilingCell], unit: str = "nats per token", width: float | None = None) -> Figure | None:
    """One panel a cell, budgets by rows and tasks by columns: every gain with its interval, and the yardsticks below.

    The band reaches from zero to the locked threshold. A cell that was not run says so and has no mark. Panels of a
    task share their axis. `width` in inches, by default what the tasks need. None where no cell was run.
    """
    if not any(cell.ran for cell in cells):
        return None
    tasks, budgets = (list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("task", "budget"))
    names = [*dict.fromkeys(name for cell in cells for name in cell.gains), HALF, DOUBLE]
    height = 0.6 + len(budgets) * (_BESIDE + _ROW * (len(names) + 0.5))
    with themed():
        figure = Figure(figsize=(width or _NAMES + _PANEL * len(tasks), height), layout="constrained")
        panels = figure.subplots(len(budgets), len(tasks), squeeze=False, sharex="col", sharey=True)
        for column, task in enumerate(tasks):
            own = {cell.budget: cell for cell in cells if cell.task == task}
            limits = reach(
                [_ends(value) for cell in own.values() for value in _values(cell, names) if value], room=0.06
            )
            for row, budget in enumerate(budgets):
                _panel(panels[row, column], own.get(budget), budget, names, limits)
            panels[0, column].annotate(task, (0.5, 1.0), (0, 17), xycoords="axes fraction", ha="center",
                                       textcoords="offset points", fontweight="bold", fontsize=9)  # fmt: skip
            panels[-1, column].set_xlabel(f"gain over uniform, {unit}\n(right: better)", fontsize=8)
        for row in range(len(budgets)):
            panels[row, 0].set_yticks(_places(names), names, fontsize=7.5)
        figure.legend(handles=_keys(), loc="outside upper left", ncols=2, fontsize=7.5)
    return figure


def ceiling_caption(cells: Sequence[CeilingCell]) -> str:
    """What the figure of these cells shows; no word of what is not drawn."""
    values = [(cell, value) for cell in cells for value in _values(cell, [*cell.gains, HALF, DOUBLE])]
    known = [value for _, value in values if value is not None]
    levels = sorted({value.level for value in known if value.low is not None})
    over = sorted({value.over for value in known})
    not_run = [f"{cell.task} at {cell.budget}" for cell in cells if not cell.ran]
    return render("captions.ceiling_figure", cells, levels, over, not_run)


def _values(cell: CeilingCell, names: Sequence[str]) -> list[Interval | None]:
    known = {**cell.gains, HALF: cell.half, DOUBLE: cell.double}
    return [known.get(name) for name in names]


def _ends(value: Interval) -> list[float]:
    return [end for end in (value.mean, value.low, value.high) if end is not None]


def _places(names: Sequence[str]) -> list[float]:
    """Yardsticks stand half a row apart."""
    return [place + 0.5 * (name in (HALF, DOUBLE)) for place, name in enumerate(names)]


def _panel(ax: Axes, cell: CeilingCell | None, budget: str, names: Sequence[str], limits: tuple[float, float]) -> None:
    ax.set_title(budget, loc="left", fontsize=8)
    ax.set(xlim=limits, ylim=(_places(names)[-1] + 0.6, -0.6))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=7.5)
    if cell is None or not cell.ran:
        ax.text(0.5, 0.5, NOT_RUN, transform=ax.transAxes, ha="center", va="center", color=GREY, style="italic")
        return
    ax.set_title(cell.verdict, loc="right", fontsize=8, fontweight="bold")
    ax.axvline(0, color="black", lw=0.8, zorder=1)
    if cell.threshold is not None:
        ax.axvspan(0, cell.threshold, color="#999999", alpha=0.2, lw=0, zorder=0)
    for name, place, value, number in zip(names, _places(names), _values(cell, names), range(len(names)), strict=True):
        ax.axhline(place, color="#eeeeee", lw=0.5, zorder=0)
        if value is None:
            ax.text(0.99, place, NOT_RUN, transform=ax.get_yaxis_transform(), fontsize=6, ha="right", va="center",
                    color=GREY, style="italic")  # fmt: skip
            continue
        yardstick = name in (HALF, DOUBLE)
        colour, marker = ("#666666", "D") if yardstick else (COLOURS[number % 6], MARKERS[number % 6])
        mark_interval(ax, place, value, colour, marker)


def mark_interval(ax: Axes, place: float, value: Interval, colour: str, marker: str) -> None:
    """Mean and interval; an arrow at the edge where the mean lies beyond it."""
    low, high = ax.get_xlim()
    if value.low is not None and value.high is not None:
        ax.plot([value.low, value.high], [place, place], color=colour, lw=1.5, zorder=3)
    sign = "<" if value.mean < low else ">" if value.mean > high else marker
    ax.plot(min(max(value.mean, low), high), place, sign, ms=4.5, color=colour, clip_on=False, zorder=4)


def _keys() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=GREY, marker="o", ms=4.5, lw=1.5, label="gain, interval"),
        Patch(facecolor="#999999", alpha=0.2, lw=0, label="up to the locked threshold"),
    ]
