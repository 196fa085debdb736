"""Where the rank goes: heat maps of block and module, and the overview with what that changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adaptive_lora.planning.modules import role_labels, role_of
from adaptive_lora.reporting.figures.axes import points_each, side_by_side, wrapped
from adaptive_lora.reporting.figures.differences import difference_limits
from adaptive_lora.reporting.figures.looks import CROWD, Looks, cell_text, interval_mark, panel_grid, seed_points
from adaptive_lora.reporting.figures.theme import LEFT_OUT_COLOUR, RANK_COLOURS, mark, themed
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.run_table import Phase

_WIDEST = 10.4
"""Inches that a figure may take before its panels go to the next row."""


def rank_heat_maps(ranks: pd.DataFrame, arms: Sequence[str], budget: str) -> Figure | None:
    """Mean rank over seeds per block and module, one panel an arm, all on one colour scale.

    None where no run of the budget has finished.
    """
    grids, roles = _grids(ranks, arms, budget)
    if not grids:
        return None
    highest = max(float(np.nanmax(grid)) for grid in grids.values())
    blocks = max(len(grid) for grid in grids.values())
    many = len(grids) > CROWD
    cell = 0.17 if many else 0.32
    # A panel is never narrower than a name; what does not fit in a row goes to the next.
    width = max(0.95, cell * len(roles)) + 0.35
    height = min(max(0.6, (0.12 if many else 0.17) * blocks), 2.2 if many else 3.2) + 0.4
    columns = min(len(grids), max(1, int(_WIDEST // width)))
    rows = -(-len(grids) // columns)
    columns = -(-len(grids) // rows)
    with themed():
        labels = 0.65 * (1 + (len(grids) % columns > 0))  # named below each column, whichever row it ends in
        figure = Figure(figsize=(1.1 + columns * width, 0.1 + labels + rows * height), layout="constrained")
        axes = panel_grid(figure, len(grids), columns)
        for place, (ax, (arm, grid)) in enumerate(zip(axes, grids.items(), strict=True)):
            image = _heat_map(ax, grid, roles, highest, numbers=not many)
            ax.set_title(wrapped(arm, width), fontsize=8.5 if many else 9.5)
            ax.invert_yaxis()
            mark(ax, arm)
            if place + columns < len(grids):  # the panel below says it
                ax.set_xticklabels([])
            if place % columns:
                ax.set_yticklabels([])
            else:
                ax.set_ylabel("block")
        _colour_bar(figure, image, axes, "mean rank", min(1.0, 2.6 / (rows * height)))
    return figure


def overview(
    ranks: pd.DataFrame, arms: Sequence[ArmSummary], looks: Looks, baseline: str, margin: float
) -> Figure | None:
    """One column an arm: above where its rank goes, below what that changed in test loss, seed by seed.

    All arms spend the budget of the first; more than a row holds go on below. None where no run has finished.
    """
    shown = [arm for arm in arms if arm.budget == arms[0].budget and arm.loss is not None]
    grids, roles = _grids(ranks, [arm.arm for arm in shown], arms[0].budget) if shown else ({}, [])
    shown = [arm for arm in shown if arm.arm in grids]
    if not shown:
        return None
    highest = max(float(np.nanmax(grid)) for grid in grids.values())
    columns = min(len(shown), 6)
    bands = -(-len(shown) // columns)
    columns = -(-len(shown) // bands)
    width = min(1.75, max(1.45, 0.3 * len(roles)))
    limits = difference_limits(shown, margin, room=0.1)
    with themed():
        figure = Figure(figsize=(1.2 + width * columns, 4.3 * bands), layout="constrained")
        axes = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=(1.15, 1) * bands)
        panels = [(axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns])
                  for i in range(bands * columns)]  # fmt: skip
        for place, ((above, below), arm) in enumerate(zip(panels, shown, strict=False)):
            image = _heat_map(above, grids[arm.arm], roles, highest, numbers=len(shown) <= CROWD)
            above.set_title(wrapped(arm.arm, width), fontweight="bold")
            above.invert_yaxis()
            below.set_ylim(*limits)
            _differences_below(below, arm, looks, margin, points_each(len(shown)))
            mark(above, arm.arm)
            mark(below, arm.arm)
            if place % columns:
                above.set_yticklabels([])
                below.set_yticklabels([])
            else:
                above.set_ylabel("block")
                below.set_ylabel(f"test loss minus {baseline},\nnats per token")
        for ax in (ax for pair in panels[len(shown) :] for ax in pair):
            ax.axis("off")
        _colour_bar(figure, image, axes[0], "rank", 0.9)
    return figure


def _grids(ranks: pd.DataFrame, arms: Sequence[str], budget: str) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Arm -> (blocks, roles) mean ranks of its evaluation runs, for arms that have any; and the roles."""
    own = ranks[(ranks["budget"] == budget) & (ranks["phase"] == Phase.EVALUATION) & ranks["arm"].isin(list(arms))]
    own = own.assign(role=[role_of(name) for name in own["module"]])
    roles = list(dict.fromkeys(own["role"]))
    return {arm: _grid(own, arm, roles) for arm in arms if (own["arm"] == arm).any()}, roles


def _grid(ranks: pd.DataFrame, arm: str, roles: Sequence[str]) -> NDArray[np.float64]:
    """(blocks, roles) mean ranks; 0 where a module is left out, NaN where a block lacks it. Row i is block i."""
    mean = ranks[ranks["arm"] == arm].pivot_table(index="depth", columns="role", values="rank", aggfunc="mean")
    return mean.reindex(index=range(int(ranks["depth"].max()) + 1), columns=list(roles)).to_numpy(dtype=float)


def _heat_map(
    ax: Axes, grid: NDArray[np.float64], roles: Sequence[str], highest: float, numbers: bool = True
) -> QuadMesh:
    # A mesh, not an image: cells stay sharp at any size, and nothing raster enters the page.
    ranked, left_out = np.where(grid > 0, grid, np.nan), np.where(grid == 0, 1.0, np.nan)
    image = ax.pcolormesh(ranked, cmap=RANK_COLOURS, vmin=0, vmax=highest, edgecolor="white", lw=0.5)
    if np.isfinite(left_out).any():
        ax.pcolormesh(left_out, cmap=ListedColormap([LEFT_OUT_COLOUR]), edgecolor="white", lw=0.5)
    ax.set_xticks(
        np.arange(len(roles)) + 0.5, role_labels(roles), rotation=60, ha="right", rotation_mode="anchor",
        fontsize=7 if len(roles) <= 12 else 5,
    )  # fmt: skip
    rows = np.arange(0, len(grid), max(1, len(grid) // 6))
    ax.set_yticks(rows + 0.5, [str(row) for row in rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if numbers and grid.size <= 80:
        for (block, module), rank in np.ndenumerate(grid):
            if np.isfinite(rank):
                dark = bool(0 < rank <= 0.6 * highest)
                cell_text(ax, block, module, f"{rank:.0f}" if rank else "–", 6.5, light=dark)
    return image


def _colour_bar(figure: Figure, image: QuadMesh, axes: Any, label: str, shrink: float) -> None:
    bar = figure.colorbar(image, ax=axes, label=label, shrink=shrink, aspect=16, anchor=(0.0, 1.0))
    if bar.solids is not None:
        # Rasterised by default, and the page's policy admits no images.
        bar.solids.set_rasterized(False)
        bar.solids.set_edgecolor("face")


def _differences_below(ax: Axes, arm: ArmSummary, looks: Looks, margin: float, most: int) -> None:
    look = looks[arm.arm]
    ax.axhspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
    ax.axhline(0, color="black", lw=0.8)
    shown = arm.differences[:most]
    seed_points(
        ax,
        [(x, value, f"{arm.arm} at {arm.budget}, seed {seed}: {value:+.4f}")
         for x, (seed, value) in zip(side_by_side(len(shown), 0.5), shown, strict=True)],
        arm.arm, look, size=4,
    )  # fmt: skip
    if found := arm.difference:
        interval_mark(ax, 0.5, found, arm.arm, look, f"{arm.arm} at {arm.budget}, mean of {found.n}: {found.mean:+.4f}")
    if arm.is_baseline:
        ax.text(0.5, 0.0, "baseline\n", transform=ax.get_yaxis_transform(), fontsize=8, ha="center", va="center")
    loss = f"{arm.loss.mean:.4f}" if arm.loss else ""
    sizes = " / ".join(f"{n:,}" for n in arm.trainable_parameters)
    ax.set_xlabel(f"loss {loss}\n{sizes} parameters", fontsize=8)
    ax.set_xticks([])
    ax.set_xlim(-0.5, 0.8)
    ax.spines["bottom"].set_visible(False)
