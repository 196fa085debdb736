"""Where training breaks: one cell an arm and learning rate, one panel a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adaptive_lora.reporting.figures.looks import cell_text
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.rate_sweeps import RateSweep, State, rate_sweeps

_COLOURS = "RdBu"
"""White at half, the share below which an arm is said to break."""
_WIDTH, _ROW, _CELL, _NAMES = 7.2, 0.235, 0.48, 1.5
"""Inches: a page, and what a row, a cell and the arms' names need."""


def break_map(
    table: pd.DataFrame, baseline: str, alpha: float, chosen: Mapping[tuple[str, str], float]
) -> Figure | None:
    """Share kept of what the arm gains over the frozen model at its own best rate, written into every cell, in percent.

    `table` is a `stability_table`. Framed: the arm breaks there (`stats.rate_sweeps.State`, intervals of level
    1 - alpha); bold: the rate that validation chooses. Budgets at which the baseline trained alone are left out. None
    where there are no two rates, or no arm gains anything.
    """
    found = rate_sweeps(table, alpha)
    budgets = list(dict.fromkeys(budget for arm, budget in found if arm != baseline))
    arms = list(dict.fromkeys(arm for arm, _ in found))
    rates = sorted({cell.learning_rate for course in found.values() for cell in course.cells})
    gaining = any(course.kept(cell) is not None for course in found.values() for cell in course.cells)
    if len(rates) < 2 or not budgets or not gaining:
        return None
    with themed():
        width = max(_WIDTH, _NAMES + _CELL * len(budgets) * len(rates))
        figure = Figure(figsize=(width, 0.75 + _ROW * len(arms)), layout="constrained")
        axes = figure.subplots(1, len(budgets), squeeze=False)[0]
        for place, (ax, budget) in enumerate(zip(axes, budgets, strict=True)):
            own = {arm: course for (arm, of), course in found.items() if of == budget}
            _panel(ax, own, arms, rates, {arm: chosen.get((arm, budget)) for arm in arms})
            ax.set_title(budget)
            mark(ax, budget)
            if place:
                ax.set_yticklabels([])
    return figure


def _panel(
    ax: Axes, own: Mapping[str, RateSweep], arms: Sequence[str], rates: Sequence[float],
    chosen: Mapping[str, float | None],
) -> None:  # fmt: skip
    grid = np.full((len(arms), len(rates)), np.nan)
    for arm, course in own.items():
        for cell in course.cells:
            kept = course.kept(cell)
            grid[arms.index(arm), rates.index(cell.learning_rate)] = np.nan if kept is None else kept
    ax.pcolormesh(grid, cmap=_COLOURS, vmin=0.0, vmax=1.0, edgecolor="white", lw=0.8)
    for arm, course in own.items():
        for cell, state in course.paired:
            row, column = arms.index(arm), rates.index(cell.learning_rate)
            kept = grid[row, column]
            text = "" if np.isnan(kept) else f"{formatted(100 * kept, '.0f')} %"
            text = f"{cell.diverged} of {cell.seeds} diverged" if cell.diverged else text
            strong = abs(kept - 0.5) > 0.38  # False for what is missing
            cell_text(ax, row, column, text, 6.8, bold=chosen[arm] == cell.learning_rate, light=bool(strong))
            if state is State.BREAKS:
                place = (column + 0.04, row + 0.06)
                ax.add_patch(Rectangle(place, 0.92, 0.88, fill=False, ec="black", lw=1.1))
    ax.set_xticks(np.arange(len(rates)) + 0.5, [f"{rate:g}" for rate in rates])
    ax.set_yticks(np.arange(len(arms)) + 0.5, list(arms))
    ax.set_xlabel("learning rate")
    ax.set_ylim(len(arms), 0)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
