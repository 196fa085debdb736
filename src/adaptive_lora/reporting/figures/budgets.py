"""Test loss against the number of trainable parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import counted, log_ticks, points_each, reach, side_by_side
from adaptive_lora.reporting.figures.looks import CROWD, Looks, interval_mark, join, legend, seed_points
from adaptive_lora.reporting.figures.theme import mark, themed
from adaptive_lora.stats.arms import ArmSummary, evaluations, frozen_loss

_STEP, _SPREAD = 0.07, 0.75
"""From one arm to the next, and of all arms at most, as a share of the way to the next size on the log axis."""
_Places = Mapping[tuple[str, str], float]


def loss_by_budget(runs: pd.DataFrame, arms: Sequence[ArmSummary], looks: Looks) -> Figure | None:
    """Mean test loss against trainable parameters (log axis), one line an arm over its budgets.

    Bars are 95 % t intervals over seeds, faint points seeds. Budgets that the baseline alone was trained at are
    on its line. Arms of one size stand side by side. None where no run has finished.
    """
    shown = [arm for arm in arms if arm.loss is not None and arm.trainable_parameters]
    names = [arm for arm in looks if any(found.arm == arm for found in shown)]
    if not names:
        return None
    done = evaluations(runs, completed=True)
    sizes = sorted({_size(arm) for arm in shown})
    step = min((b / a for a, b in itertools.pairwise(sizes) if b / a > 1.2), default=2.0)
    places = _places(shown, names, step)
    beside = step ** -(0.35 * min(_STEP, _SPREAD / len(names)))  # seeds stand left of their interval
    with themed():
        figure = Figure(figsize=(7.2 if len(names) <= CROWD else 10.4, 4.2), layout="constrained")
        ax = figure.subplots()
        if far_losses(shown):  # they are arrows at the edge, with their numbers
            ax.set_ylim(*_limits(shown))
        for arm in names:
            own = sorted((s for s in shown if s.arm == arm), key=lambda s: s.trainable_parameters)
            _line(ax, own, done, looks, places, beside, points_each(len(shown)))
            join(ax, [places[arm, s.budget] for s in own], [s.loss.mean for s in own if s.loss], arm, looks, len(names))
        _frozen(ax, runs)
        ax.set_xlim(sizes[0] / step**0.5, sizes[-1] * step**0.5)
        log_ticks(ax, sizes, [counted(size) for size in sizes])
        ax.set_xlabel("trainable parameters")
        ax.set_ylabel("test loss, nats per token")
        legend(figure, looks, names)
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


def _places(shown: Sequence[ArmSummary], names: Sequence[str], step: float) -> _Places:
    """Where an arm stands at a budget: at its size, or beside it where several arms have about that size."""
    places = {}
    for here in shown:
        near = [arm for arm in shown if abs(math.log(_size(arm) / _size(here))) < 0.1 * math.log(step)]
        beside = sorted({arm.arm for arm in near}, key=names.index)
        shifts = side_by_side(len(beside), min(_SPREAD, _STEP * len(beside)))
        places[here.arm, here.budget] = _size(here) * step ** shifts[beside.index(here.arm)]
    return places


def _line(
    ax: Axes, own: Sequence[ArmSummary], done: pd.DataFrame, looks: Looks, places: _Places, beside: float, most: int
) -> None:
    arm = own[0].arm
    look = looks[arm]
    for found in own:
        assert found.loss is not None
        x, loss = places[arm, found.budget], found.loss
        rows = done[(done["arm"] == arm) & (done["budget"] == found.budget)].head(most)
        points = [
            (x * beside, float(value), f"{arm} at {found.budget}, seed {seed}: {value:.4f}")
            for seed, value in zip(rows["seed"], rows["test_loss"], strict=True)
        ]
        seed_points(ax, points, arm, look, size=2.6)
        title = f"{arm} at {found.budget}, {found.trainable_parameters[-1]:,} parameters: mean {loss.mean:.4f}"
        interval_mark(ax, x, loss, arm, look, f"{title} of {loss.n}")
        low, high = ax.get_ylim()
        if not low <= loss.mean <= high:
            number = ax.annotate(f"{loss.mean:.2f}", (x, max(low, min(high, loss.mean))), (7, 0), fontsize=7.5,
                                 textcoords="offset points", va="center", annotation_clip=False)  # fmt: skip
            mark(number, arm)


def _frozen(ax: Axes, runs: pd.DataFrame) -> None:
    frozen = frozen_loss(runs)
    if frozen is not None and frozen_fits(runs):
        ax.axhline(frozen, color="black", lw=0.8, ls=(0, (4, 3)))
        ax.annotate(f"frozen model {frozen:.4f}", (0.01, frozen), xycoords=("axes fraction", "data"),
                    xytext=(0, 3), textcoords="offset points", fontsize=7.5)  # fmt: skip
