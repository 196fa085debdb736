"""Arms at equal cost: the parameters that the baseline needs for an arm's loss, and the baseline at equal compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.stats.arms import ArmSummary, evaluations, having
from adaptive_lora.stats.estimators import Interval, interval_of
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.run_table import Status


@dataclass(frozen=True)
class LossCurve:
    """The baseline's mean test loss by trainable parameters, from few to many."""

    parameters: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def falls(self) -> bool:
        """Whether every budget is better than the smaller ones: without that, a loss names no size."""
        return len(self.losses) > 1 and all(a > b for a, b in zip(self.losses, self.losses[1:], strict=False))

    def parameters_at(self, loss: float) -> float | None:
        """The size at which the baseline has this loss, linear between log sizes; None beyond the curve's ends."""
        if not self.losses[-1] <= loss <= self.losses[0]:
            return None
        logs = np.log(np.asarray(self.parameters, dtype=np.float64))
        return float(math.exp(np.interp(-loss, -np.asarray(self.losses), logs)))


@dataclass(frozen=True)
class ParameterEquivalent:
    """How many parameters more the baseline needs to be as good as an arm; negative: how many fewer."""

    arm: str
    budget: str
    percent: float | None
    """None beyond the curve's ends."""
    low: float | None
    high: float | None
    """For the ends of the difference's 95 % interval over seeds; the curve is taken as it is."""
    ends: tuple[float, float]
    """What the curve covers, in percent around the budget."""


def baseline_curve(arms: Sequence[ArmSummary]) -> LossCurve:
    """All budgets that the baseline was trained at, those of the controls among them."""
    points = {arm.trainable_parameters[0]: arm.loss.mean for arm in arms if arm.is_baseline and arm.loss}
    ordered = sorted(points.items())
    return LossCurve(tuple(size for size, _ in ordered), tuple(loss for _, loss in ordered))


def parameter_equivalents(arms: Sequence[ArmSummary]) -> list[ParameterEquivalent]:
    """One for each arm whose difference has an interval; none where the curve does not fall."""
    curve = baseline_curve(arms)
    if not curve.falls:
        return []
    own = {arm.budget: arm for arm in arms if arm.is_baseline}
    found = []
    for arm in arms:
        base = own.get(arm.budget)
        if arm.difference is None or arm.difference.low is None or base is None or base.loss is None:
            continue
        size, loss = base.trainable_parameters[0], base.loss.mean

        def percent(difference: float | None, loss: float = loss, size: int = size) -> float | None:
            at = None if difference is None else curve.parameters_at(loss + difference)
            return None if at is None else 100 * (at / size - 1)

        ends = 100 * (curve.parameters[0] / size - 1), 100 * (curve.parameters[-1] / size - 1)
        # A lower loss is worth more parameters, so that the interval turns round.
        low, high = percent(arm.difference.high), percent(arm.difference.low)
        found.append(ParameterEquivalent(arm.arm, arm.budget, percent(arm.difference.mean), low, high, ends))
    return found


@dataclass(frozen=True)
class AtEqualCompute:
    """An arm that trains before it has a plan, against the baseline with as many updates in all to spend."""

    arm: str
    budget: str
    control: str
    difference: Interval
    """Paired by seed, arm minus the baseline with that compute, by the study's metric."""
    stopped: int
    """Seeds on which validation chose the usual length, because training on made the baseline worse."""


def at_equal_compute(
    runs: pd.DataFrame, controls: Mapping[str, str], baseline: str, metric: Metric = TEST_LOSS
) -> list[AtEqualCompute]:
    """`controls` names the longer baseline of each such arm, as the lock has it.

    Compute may be spent as one likes, so no one is held to training on into overfitting: on each seed the baseline with
    the compute is its longer run or its usual one, whichever has the lower *validation* loss (the longer where that is
    not known), and what it has on test counts. A longer run that diverged is not chosen.
    """
    cells: dict[tuple[str, str], _Cell] = {}
    counting = having(evaluations(runs), metric)
    if not metric.is_loss:  # what has still to be scored is not done
        counting = counting[counting[metric.column].notna() | (counting["status"] != Status.COMPLETED)]
    for run in counting.to_dict("records"):
        cells.setdefault((str(run["arm"]), str(run["budget"])), {})[int(run["seed"])] = run
    found = []
    for (arm, budget), own in cells.items():
        longer = cells.get((controls.get(arm, ""), budget))
        if longer is None:
            continue
        chosen = _best_spent(longer, cells.get((baseline, budget), {}), metric.column)
        shared = [seed for seed, run in own.items() if run["status"] == Status.COMPLETED and seed in chosen]
        if shared:
            difference = interval_of([float(own[seed][metric.column]) - chosen[seed][0] for seed in shared])
            stopped = sum(chosen[seed][1] for seed in shared)
            found.append(AtEqualCompute(arm, budget, controls[arm], difference, stopped))
    return found


_Cell = dict[int, Mapping[Any, Any]]
"""Seed -> its run."""


def _best_spent(longer: _Cell, usual: _Cell, column: str) -> dict[int, tuple[float, bool]]:
    """Seed -> test result of the run that validation chooses, and whether that is the usual one."""
    found = {}
    for seed, run in longer.items():
        other = usual.get(seed)
        if other is not None and other["status"] == Status.COMPLETED and _is_better(other, run):
            found[seed] = float(other[column]), True
        elif run["status"] == Status.COMPLETED:
            found[seed] = float(run[column]), False
    return found


def _is_better(usual: Mapping[Any, Any], longer: Mapping[Any, Any]) -> bool:
    if longer["status"] == Status.DIVERGED:
        return True
    here, there = (run.get("validation_loss") for run in (usual, longer))
    return bool(pd.notna(here) and pd.notna(there) and float(here) < float(there))
