"""Where the rank goes: heat maps of block and module, and the overview with what that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from adaptive_lora.reporting.figures.differences import CONTROLS, difference_limits
from adaptive_lora.reporting.figures.looks import CROWD, Looks, cell_text, interval_mark, panel_grid, seed_points
from adaptive_lora.reporting.figures.theme import LEFT_OUT_COLOUR, RANK_COLOURS, mark, themed
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.run_table import Phase

_WIDEST = 10.4
"""Inches that a figure may take before its panels go to the next row."""


def draws_of(ranks: pd.DataFrame, arms: Sequence[ArmSummary], budget: str) -> dict[str, int]:
    """Arm whose plans are drawn by chance, anew for every seed -> how many draws there are at a budget."""
    chance = {arm.arm for arm in arms if arm.strategy in CONTROLS}
    own = ranks[(ranks["budget"] == budget) & (ranks["phase"] == Phase.EVALUATION) & ranks["arm"].isin(chance)]
    return {str(arm): int(count) for arm, count in own.groupby("arm", sort=False)["seed"].nunique().items()}


def rank_heat_maps(
    ranks: pd.DataFrame, arms: Sequence[str], budget: str, draws: Mapping[str, int] | None = None
) -> Figure | None:
    """Rank per block and module, one panel an arm, all on one colour scale: mean over seeds, of `draws_of` one draw.

    None where no run of the budget has finished.
    """
    draws = draws or {}
    grids, roles = _grids(ranks, arms, budget, draws)
    if not grids:
        return None
    highest, blocks = max(float(np.nanmax(grid)) for grid in grids.values()), len(next(iter(grids.values())))
    many = len(grids) > CROWD
    cell = 0.17 if many else 0.32
    # A panel is never narrower than a name; what does not fit in a row goes to the next.
    width = max(0.95, cell * len(roles)) + 0.35
    height = min(max(0.6, (0.12 if many else 0.17) * blocks), 2.2 if many else 3.2) + 0.4
    rows, columns = _even_grid(len(grids), max(1, int(_WIDEST // width)))
    with themed():
        labels = 0.65 * (1 + (len(grids) % columns > 0))  # named below each column, whichever row it ends in
        figure = Figure(figsize=(1.1 + columns * width, 0.1 + labels + rows * height), layout="constrained")
        axes = panel_grid(figure, len(grids), columns)
        for place, (ax, (arm, grid)) in enumerate(zip(axes, grids.items(), strict=True)):
            image = _heat_map(ax, arm, grid, roles, highest, numbers=not many, first=place % columns == 0)
            ax.set_title(wrapped(arm, width), fontsize=8.5 if many else 9.5)
            _say_draw(ax, draws.get(arm))
            if place + columns < len(grids):  # the panel below says it
                ax.set_xticklabels([])
        _colour_bar(figure, image, axes, "mean rank", min(1.0, 2.6 / (rows * height)))
    return figure


def overview(
    ranks: pd.DataFrame,
    arms: Sequence[ArmSummary],
    looks: Looks,
    baseline: str,
    margins: Mapping[str, float],
    metric: Metric = TEST_LOSS,
) -> Figure | None:
    """One column an arm: above where its rank goes, below what that changed by the study's metric, seed by seed.

    All arms spend the budget of the first; more than a row holds go on below. None where no run has finished.
    """
    shown = [arm for arm in arms if arm.budget == arms[0].budget and arm.loss is not None]
    draws = draws_of(ranks, shown, arms[0].budget) if shown else {}
    grids, roles = _grids(ranks, [arm.arm for arm in shown], arms[0].budget, draws) if shown else ({}, [])
    shown = [arm for arm in shown if arm.arm in grids]
    if not shown:
        return None
    highest = max(float(np.nanmax(grid)) for grid in grids.values())
    bands, columns = _even_grid(len(shown), 6)
    width = min(1.75, max(1.45, 0.3 * len(roles)))
    limits = difference_limits(shown, margins, room=0.1)
    with themed():
        figure = Figure(figsize=(1.2 + width * columns, 4.3 * bands), layout="constrained")
        axes = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=(1.15, 1) * bands)
        panels = list(zip(axes[::2].flat, axes[1::2].flat, strict=True))
        for place, ((above, below), arm) in enumerate(zip(panels, shown, strict=False)):
            first = place % columns == 0
            image = _heat_map(above, arm.arm, grids[arm.arm], roles, highest, numbers=len(shown) <= CROWD, first=first)
            above.set_title(wrapped(arm.arm, width), fontweight="bold")
            _say_draw(above, draws.get(arm.arm))
            below.set_ylim(*limits)
            _differences_below(below, arm, looks, margins.get(arm.budget), points_each(len(shown)))
            if first:
                below.set_ylabel(f"{metric.title} minus {baseline},\n{metric.unit}")
            else:
                below.set_yticklabels([])
        for ax in (ax for pair in panels[len(shown) :] for ax in pair):
            ax.axis("off")
        _colour_bar(figure, image, axes[0], "rank", 0.9)
    return figure


def _even_grid(count: int, most: int) -> tuple[int, int]:
    """Rows and columns of so many panels, at most `most` in a row and no row much shorter than the others."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def _say_draw(ax: Axes, draws: int | None) -> None:
    if draws:
        ax.set_xlabel(f"one draw of {draws}", fontsize=8, style="italic")


def _grids(
    ranks: pd.DataFrame, arms: Sequence[str], budget: str, draws: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Arm -> (blocks, roles) mean ranks of its evaluation runs, for arms that have any; and the roles.

    Of plans by chance (`draws`) that of the first seed: a mean of many would look uniform.

    0 where a module is left out, NaN where a block lacks it. Row i is block i.
    """
    own = ranks[(ranks["budget"] == budget) & (ranks["phase"] == Phase.EVALUATION) & ranks["arm"].isin(list(arms))]
    if own.empty:
        return {}, []
    first = own.groupby("arm")["seed"].transform("min")
    own = own[~own["arm"].isin(list(draws)) | (own["seed"] == first)]
    own = own.assign(role=[role_of(name) for name in own["module"]])
    roles, blocks = list(own["role"].unique()), range(int(own["depth"].max()) + 1)
    means = own.pivot_table(index=["arm", "depth"], columns="role", values="rank").reindex(columns=roles)
    return {arm: means.loc[arm].reindex(blocks).to_numpy(float) for arm in arms if arm in means.index}, roles


def _heat_map(
    ax: Axes, arm: str, grid: NDArray[np.float64], roles: Sequence[str], highest: float, *, numbers: bool, first: bool
) -> QuadMesh:
    """An arm's panel, block 0 on top; the first of a row names its blocks."""
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
    ax.set_yticks(rows + 0.5, [str(row) if first else "" for row in rows])
    ax.set_ylabel("block" if first else "")
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    mark(ax, arm)
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


def _differences_below(ax: Axes, arm: ArmSummary, looks: Looks, margin: float | None, most: int) -> None:
    look = looks[arm.arm]
    mark(ax, arm.arm)
    if margin:
        ax.axhspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
    ax.axhline(0, color="black", lw=0.8)
    shown, at = arm.differences[:most], f"{arm.arm} at {arm.budget}"
    points = [(x, value, f"{at}, seed {seed}: {value:+.4f}")
              for x, (seed, value) in zip(side_by_side(len(shown), 0.5), shown, strict=True)]  # fmt: skip
    seed_points(ax, points, arm.arm, look, size=4)
    if found := arm.difference:
        interval_mark(ax, 0.5, found, arm.arm, look, f"{at}, mean of {found.n}: {found.mean:+.4f}")
    if arm.is_baseline:
        ax.text(0.5, 0.0, "baseline\n", transform=ax.get_yaxis_transform(), fontsize=8, ha="center", va="center")
    loss = f"{arm.loss.mean:.4f}" if arm.loss else ""
    sizes = " / ".join(f"{n:,}" for n in arm.trainable_parameters)
    ax.set_xlabel(f"loss {loss}\n{sizes} parameters", fontsize=8)
    ax.set_xticks([])
    ax.set_xlim(-0.5, 0.8)
    ax.spines["bottom"].set_visible(False)
