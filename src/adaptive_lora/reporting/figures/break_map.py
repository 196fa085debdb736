"""Where training breaks: one cell an arm and learning rate, one panel a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adaptive_lora.reporting.figures.looks import cell_text
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.rate_sweeps import RateSweep, State, contrast, rate_sweeps, rows_at

_COLOURS, _STRONGEST = "RdBu_r", 1.0
_WIDTH, _ROW, _CELL, _NAMES = 7.2, 0.235, 0.48, 1.5
"""Inches: a page, and what a row, a cell and the arms' names need."""


def break_map(
    table: pd.DataFrame, baseline: str, margin: float, chosen: Mapping[tuple[str, str], float]
) -> Figure | None:
    """Mean excess of validation loss over the baseline at the same rate and seed, written into every cell.

    `table` is a `stability_table`. Framed: the arm breaks there (`stats.rate_sweeps.State`); bold: the rate that
    validation chooses. The baseline's own row has its loss less that at its chosen rate; budgets at which it trained
    alone are left out. None where no arm has an excess at two rates.
    """
    found = rate_sweeps(table, baseline, margin)
    budgets = list(dict.fromkeys(budget for arm, budget in found if arm != baseline))
    arms = list(dict.fromkeys(arm for arm, _ in found))
    rates = sorted({cell.learning_rate for course in found.values() for cell in course.cells})
    if len(rates) < 2 or all(cell.excess is None for course in found.values() for cell in course.cells):
        return None
    with themed():
        width = max(_WIDTH, _NAMES + _CELL * len(budgets) * len(rates))
        figure = Figure(figsize=(width, 0.75 + _ROW * len(arms)), layout="constrained")
        axes = figure.subplots(1, len(budgets), squeeze=False)[0]
        for place, (ax, budget) in enumerate(zip(axes, budgets, strict=True)):
            own = {arm: found[arm, budget] for arm in arms if (arm, budget) in found}
            _panel(ax, own, arms, rates, {arm: chosen.get((arm, budget)) for arm in arms})
            if baseline in own:
                _baseline_row(ax, table, (baseline, budget), (arms.index(baseline), rates), chosen)
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
    cells = [(arms.index(arm), rates.index(cell.learning_rate), arm, cell, state)
             for arm, course in own.items() for cell, state in course.paired]  # fmt: skip
    for row, column, _, cell, _ in cells:
        if cell.excess is not None:
            grid[row, column] = cell.excess.mean
    norm = SymLogNorm(linthresh=0.02, vmin=-_STRONGEST, vmax=_STRONGEST, clip=True)
    ax.pcolormesh(grid, cmap=_COLOURS, norm=norm, edgecolor="white", lw=0.8)
    for row, column, arm, cell, state in cells:
        text = f"{cell.diverged} of {cell.seeds} diverged" if cell.diverged else ""
        if cell.excess is not None and not cell.diverged:
            text = formatted(cell.excess.mean, "+.3f")
        strong = cell.excess is not None and abs(float(norm(cell.excess.mean)) - 0.5) > 0.38
        cell_text(ax, row, column, text, 6.8, bold=chosen[arm] == cell.learning_rate, light=strong)
        if state is State.BREAKS:
            ax.add_patch(Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, fill=False, ec="black", lw=1.1))
    ax.set_xticks(np.arange(len(rates)) + 0.5, [f"{rate:g}" for rate in rates])
    ax.set_yticks(np.arange(len(arms)) + 0.5, list(arms))
    ax.set_xlabel("learning rate")
    ax.set_ylim(len(arms), 0)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _baseline_row(
    ax: Axes, table: pd.DataFrame, key: tuple[str, str], place: tuple[int, Sequence[float]],
    chosen: Mapping[tuple[str, str], float],
) -> None:  # fmt: skip
    """The baseline has no excess over itself: its loss less that at its chosen rate, on grey."""
    row, rates = place
    ax.add_patch(Rectangle((0, row), len(rates), 1, fc="#ececec", ec="none", zorder=0.5))
    if key not in chosen:
        return
    best = rows_at(table, *key, chosen[key])
    for column, rate in enumerate(rates):
        difference = contrast(rows_at(table, *key, rate), best, "validation_loss").difference
        if difference is not None:
            bold = rate == chosen[key]
            cell_text(ax, row, column, "chosen" if bold else formatted(difference.mean, "+.3f"), 6.8, bold=bold)
