"""The figures of a study: where the rank went, what it changed, how training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from adaptive_lora.judging.arms import ArmSummary
from adaptive_lora.planning.modules import role_labels, role_of
from adaptive_lora.telling.figures.theme import COLOURS, DASHES, LEFT_OUT_COLOUR, MARKERS, RANK_COLOURS, mark, themed


def rank_heat_maps(ranks: pd.DataFrame, arms: Sequence[str], budget: str) -> Figure | None:
    """Mean rank over seeds per block and module, one panel an arm, all on one colour scale.

    Nothing where no run of the budget has finished.
    """
    ranks = ranks[(ranks["budget"] == budget) & (ranks["phase"] == "evaluation")]
    ranks = ranks.assign(role=[role_of(name) for name in ranks["module"]])
    shown = [arm for arm in arms if (ranks["arm"] == arm).any()]
    if not shown:
        return None
    roles = list(dict.fromkeys(ranks["role"]))
    highest = max(float(np.nanmax(_grid(ranks, arm, roles))) for arm in shown)
    columns = min(len(shown), 3 if len(roles) > 4 else 5)
    rows = -(-len(shown) // columns)
    depths = ranks["depth"].nunique()
    with themed():
        width = 1.5 + columns * (0.9 + 0.32 * len(roles))
        figure = Figure(figsize=(width, rows * (1.35 + 0.16 * depths)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax, arm in zip(axes.flat, shown, strict=False):
            image = _heat_map(ax, _grid(ranks, arm, roles), roles, highest)
            ax.set_title(arm)
            ax.invert_yaxis()
        for ax in axes.flat[len(shown) :]:
            ax.axis("off")
        for ax in axes[:, 0]:
            ax.set_ylabel("block")
        _colour_bar(figure, image, axes, "rank (mean over seeds)", shrink=0.8, aspect=20)
    return figure


def overview(ranks: pd.DataFrame, arms: Sequence[ArmSummary], baseline: str, margin: float) -> Figure | None:
    """One column an arm: above where its rank goes, below what that changed in test loss, seed by seed.

    All arms spend the budget of the first; nothing where no run of it has finished.
    """
    shown = [arm for arm in arms if arm.budget == arms[0].budget and arm.loss is not None]
    ranks = ranks[(ranks["budget"] == arms[0].budget) & (ranks["phase"] == "evaluation")] if shown else ranks[:0]
    ranks = ranks.assign(role=[role_of(name) for name in ranks["module"]])
    if not shown or ranks.empty:
        return None
    roles = list(dict.fromkeys(ranks["role"]))
    highest = max(float(np.nanmax(_grid(ranks, arm.arm, roles))) for arm in shown)
    with themed():
        figure = Figure(figsize=(1.2 + 1.75 * len(shown), 4.4), layout="constrained")
        axes = figure.subplots(2, len(shown), squeeze=False, sharey="row", height_ratios=(1.15, 1))
        for ax, below, arm in zip(axes[0], axes[1], shown, strict=True):
            image = _heat_map(ax, _grid(ranks, arm.arm, roles), roles, highest)
            ax.set_title(arm.arm, fontweight="bold")
            _differences_below(below, arm, margin)
        axes[0, 0].invert_yaxis()  # shared by the row, so turned once for all
        axes[0, 0].set_ylabel("block")
        axes[1, 0].set_ylabel(f"test loss minus {baseline},\nnats per token")
        _colour_bar(figure, image, axes[0], "rank", shrink=0.9, aspect=16)
    return figure


def _colour_bar(figure: Figure, image: QuadMesh, axes: Any, label: str, shrink: float, aspect: float) -> None:
    bar = figure.colorbar(image, ax=axes, label=label, shrink=shrink, aspect=aspect)
    if bar.solids is not None:
        # Rasterised by default, and the page's policy admits no images.
        bar.solids.set_rasterized(False)
        bar.solids.set_edgecolor("face")


def _differences_below(ax: Axes, arm: ArmSummary, margin: float) -> None:
    ax.axhspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
    ax.axhline(0, color="black", lw=0.8)
    values = [difference for _, difference in arm.differences]
    ax.plot(np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0] * len(values), values, "o", ms=4,
            mfc="none", color=COLOURS[0])  # fmt: skip
    if arm.difference:
        ax.plot(0.5, arm.difference.mean, "D", ms=5, color=COLOURS[1])
        if arm.difference.low is not None and arm.difference.high is not None:
            ax.plot([0.5, 0.5], [arm.difference.low, arm.difference.high], color=COLOURS[1], lw=1.6)
    loss = f"{arm.loss.mean:.4f}" if arm.loss else ""
    sizes = " / ".join(f"{n:,}" for n in arm.trainable_parameters)
    ax.set_xlabel(f"loss {loss}\n{sizes} parameters", fontsize=8)
    ax.set_xticks([])
    ax.set_xlim(-0.5, 0.8)
    ax.spines["bottom"].set_visible(False)


def _grid(ranks: pd.DataFrame, arm: str, roles: Sequence[str]) -> NDArray[np.float64]:
    """(blocks, roles) mean ranks; 0 where a module is left out, NaN where a block lacks it. Row i is block i."""
    mean = ranks[ranks["arm"] == arm].pivot_table(index="depth", columns="role", values="rank", aggfunc="mean")
    return mean.reindex(index=range(int(ranks["depth"].max()) + 1), columns=list(roles)).to_numpy(dtype=float)


def _heat_map(ax: Axes, grid: NDArray[np.float64], roles: Sequence[str], highest: float) -> QuadMesh:
    # A mesh, not an image: cells stay sharp at any size, and nothing raster enters the page.
    ranked, left_out = np.where(grid > 0, grid, np.nan), np.where(grid == 0, 1.0, np.nan)
    image = ax.pcolormesh(ranked, cmap=RANK_COLOURS, vmin=0, vmax=highest, edgecolor="white", lw=0.5)
    if np.isfinite(left_out).any():
        ax.pcolormesh(left_out, cmap=ListedColormap([LEFT_OUT_COLOUR]), edgecolor="white", lw=0.5)
    ax.set_xticks(
        np.arange(len(roles)) + 0.5, role_labels(roles), rotation=60, ha="right", rotation_mode="anchor", fontsize=7
    )
    rows = np.arange(0, len(grid), max(1, len(grid) // 6))
    ax.set_yticks(rows + 0.5, [str(row) for row in rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if grid.size <= 80:
        for (block, module), rank in np.ndenumerate(grid):
            if np.isfinite(rank):
                light = rank > 0.6 * highest or rank == 0
                label = f"{rank:.0f}" if rank else "–"
                ax.text(module + 0.5, block + 0.5, label, ha="center", va="center", fontsize=6.5,
                        color="black" if light else "white")  # fmt: skip
    return image


def paired_differences(arms: Sequence[ArmSummary], baseline: str, margin: float) -> Figure | None:
    """Test loss minus the baseline's at the same seed: every seed, the mean and its 95 % t interval.

    The band is the margin within which differences do not matter. Nothing where there is nothing to compare.
    """
    shown = [arm for arm in arms if arm.difference is not None]
    if not shown:
        return None
    several = len({arm.budget for arm in shown}) > 1
    with themed():
        figure = Figure(figsize=(6.4, 1.1 + 0.38 * len(shown)), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0, label=f"margin ±{margin:g}")
        ax.axvline(0, color="black", lw=0.8)
        for row, arm in enumerate(shown):
            _difference_row(ax, row, arm)
        ax.set_yticks(range(len(shown)), [f"{a.arm} ({a.budget})" if several else a.arm for a in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlabel(f"test loss minus {baseline}, nats per token (left: better than {baseline})")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return figure


def _difference_row(ax: Axes, row: int, arm: ArmSummary) -> None:
    assert arm.difference is not None
    first = row == 0
    for seed, value in arm.differences:
        (point,) = ax.plot(value, row + 0.18, "o", ms=3.5, mfc="none", color=COLOURS[0])
        mark(point, arm.arm, f"{arm.arm} at {arm.budget}, seed {seed}: {value:+.4f}")
    if first:
        ax.plot([], [], "o", ms=3.5, mfc="none", color=COLOURS[0], label="one seed")
    ax.plot(
        arm.difference.mean,
        row - 0.08,
        "D",
        ms=5,
        color=COLOURS[1],
        label="mean, 95 % interval" if first else None,
    )
    if arm.difference.low is not None and arm.difference.high is not None:
        ax.plot([arm.difference.low, arm.difference.high], [row - 0.08] * 2, color=COLOURS[1], lw=1.6)


def learning_curves(curves: pd.DataFrame, arms: Sequence[str], budget: str) -> Figure | None:
    """Training loss by step on a log scale, running mean over a tenth of the run, mean over seeds with their range.

    Nothing where no run of the budget has finished.
    """
    curves = curves[curves["budget"] == budget]
    shown = [arm for arm in arms if (curves["arm"] == arm).any()]
    if not shown:
        return None
    with themed():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        ax = figure.subplots()
        for index, arm in enumerate(shown):
            by_seed = curves[curves["arm"] == arm].pivot(index="step", columns="seed", values="loss")
            smooth = by_seed.rolling(max(1, len(by_seed) // 10), min_periods=1).mean()
            colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
            ax.plot(
                smooth.index + 1, smooth.mean(axis=1), color=colour, ls=dash, lw=1.5, ms=3.5, label=arm,
                marker=MARKERS[index % len(MARKERS)], markevery=len(smooth) // 10 + 1,
            )  # fmt: skip
            ax.fill_between(smooth.index + 1, smooth.min(axis=1), smooth.max(axis=1), color=colour, alpha=0.1, lw=0)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_formatter(ScalarFormatter())
        ax.tick_params(axis="y", which="minor", labelsize=7)
        ax.set_xlabel("step")
        ax.set_ylabel("training loss, nats per token")
        ax.legend(fontsize=8)
    return figure
