"""Test loss against the number of trainable parameters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import counted, log_ticks, reach
from adaptive_lora.reporting.figures.looks import NARROW, Looks, interval_mark, join, legend
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.stats.arms import ArmSummary, evaluations, frozen_loss


def loss_by_budget(runs: pd.DataFrame, arms: Sequence[ArmSummary], looks: Looks, width: float = 7.2) -> Figure | None:
    """Mean test loss against trainable parameters (log axis), every arm at what its runs really trained.

    The baseline is a line over all its sizes, half and double budgets too, with 95 % t intervals over seeds and a band
    between them; other arms are signs beside it, whose distance from the line along the axis is what they are worth in
    parameters. `width` in inches: 7.2 is a page's, 3.4 a column's. None where no run has finished.
    """
    shown = [arm for arm in arms if arm.loss is not None and arm.trainable_parameters]
    names = [arm for arm in looks if any(found.arm == arm for found in shown)]
    if not names:
        return None
    sizes = sorted({_size(arm) for arm in shown})
    step = min((b / a for a, b in itertools.pairwise(sizes) if b / a > 1.2), default=2.0)
    with themed():
        figure = Figure(figsize=(width, 3.8 if width >= NARROW else 3.2), layout="constrained")
        ax = figure.subplots()
        if far_losses(shown):  # they are arrows at the edge, with their numbers
            ax.set_ylim(*_limits(shown))
        for arm in names:
            own = sorted((s for s in shown if s.arm == arm), key=_size)
            _line(ax, own, looks, len(names))
        _frozen(ax, runs)
        ax.set_xlim(sizes[0] / step**0.5, sizes[-1] * step**0.5)
        log_ticks(ax, sizes, [counted(size) for size in sizes])
        ax.set_xlabel("trainable parameters")
        ax.set_ylabel("test loss, nats per token")
        legend(figure, looks, names, below=width < NARROW)
    return figure


def far_losses(arms: Sequence[ArmSummary]) -> bool:
    """Whether a mean loss lies so far from all others that it is an arrow at the edge."""
    means = [arm.loss.mean for arm in arms if arm.loss and arm.trainable_parameters]
    low, high = _limits(arms) if means else (0.0, 0.0)
    return any(not low <= mean <= high for mean in means)


def _limits(arms: Sequence[ArmSummary]) -> tuple[float, float]:
    losses = [arm.loss for arm in arms if arm.loss and arm.trainable_parameters]
    centre = float(np.median([loss.mean for loss in losses]))
    ends = [[end - centre for end in (loss.low, loss.mean, loss.high) if end is not None] for loss in losses]
    low, high = reach(ends, room=0.1)
    return centre + low, centre + high


def frozen_fits(runs: pd.DataFrame) -> bool:
    """Whether the frozen model's loss is near enough to nearly all others to stand beside them."""
    losses, frozen = evaluations(runs, completed=True)["test_loss"].astype(float), frozen_loss(runs)
    if frozen is None or losses.empty:
        return False
    low, high = losses.quantile([0.05, 0.95])
    return bool(abs(frozen - losses.median()) <= 1.5 * (high - low))


def _size(arm: ArmSummary) -> float:
    return float(np.mean(arm.trainable_parameters))


def _line(ax: Axes, own: Sequence[ArmSummary], looks: Looks, arms: int) -> None:
    arm, look = own[0].arm, looks[own[0].arm]
    xs, losses = [_size(found) for found in own], [found.loss for found in own if found.loss]
    if own[0].is_baseline:
        known = [(x, loss) for x, loss in zip(xs, losses, strict=True) if loss.low is not None]
        lows, highs = [
            [end for _, loss in known if (end := getattr(loss, name)) is not None] for name in ("low", "high")
        ]
        mark(ax.fill_between([x for x, _ in known], lows, highs, color=look.colour, alpha=0.13, lw=0, zorder=1), arm)
    for x, found, loss in zip(xs, own, losses, strict=True):
        title = f"{arm} at {found.budget}, {_sizes_of(found)} parameters: mean {loss.mean:.4f} of {loss.n}"
        # Intervals of arms on one size would lie upon each other, and say less than those of paired differences.
        drawn = loss if found.is_baseline else replace(loss, low=None, high=None)
        interval_mark(ax, x, drawn, arm, look, title)
        low, high = ax.get_ylim()
        if not low <= loss.mean <= high:
            number = ax.annotate(f"{loss.mean:.2f}", (x, max(low, min(high, loss.mean))), (7, 0), fontsize=7.5,
                                 textcoords="offset points", va="center", annotation_clip=False)  # fmt: skip
            mark(number, arm)
    join(ax, xs, [loss.mean for loss in losses], arm, looks, arms)


def _sizes_of(arm: ArmSummary) -> str:
    return " / ".join(f"{n:,}" for n in arm.trainable_parameters)


def _frozen(ax: Axes, runs: pd.DataFrame) -> None:
    frozen = frozen_loss(runs)
    if frozen is not None and frozen_fits(runs):
        ax.axhline(frozen, color="black", lw=0.8, ls=(0, (4, 3)))
        ax.annotate(f"frozen model {frozen:.4f}", (0.01, frozen), xycoords=("axes fraction", "data"),
                    xytext=(0, 3), textcoords="offset points", fontsize=7.5)  # fmt: skip
