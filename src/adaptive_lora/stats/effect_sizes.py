"""Effect sizes: a difference in several units, over new seeds and new test records, and over either alone.

Exploratory: intervals and no verdicts. Every interval says what was resampled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptive_lora.stats.arms import ArmSummary, evaluations, frozen_loss
from adaptive_lora.stats.crossed import Crossed
from adaptive_lora.stats.estimators import (
    Effect,
    Floats,
    Interval,
    effects,
    improvement_probability,
    mean_interval,
    record_interval,
)
from adaptive_lora.stats.metrics import TEST_LOSS, Metric


@dataclass(frozen=True)
class EffectSize:
    """An arm's difference from the baseline at a budget."""

    arm: str
    budget: str
    effect: Effect | None
    """None of another metric than test loss."""
    difference: Interval
    """Over new seeds and new test records; over seeds alone where losses by record are missing."""
    over_seeds: Interval
    """Of new seeds on the same test records."""
    over_records: Interval | None
    """Of new test records with the same seeds; None where losses by record are missing."""
    improvement: Interval
    """Share of seeds on which it is better."""
    sd: float | None
    """Of the paired differences by seed; None with fewer than two."""


OverRecords = Mapping[tuple[str, str], tuple[Interval, int]]
"""(arm, budget) -> the difference's interval over test records, and how many completion tokens these have."""


OverSeeds = Mapping[tuple[str, str], Interval]
"""(arm, budget) -> the difference's interval over seeds."""


def effect_sizes(
    over_seeds: OverSeeds,
    over_records: OverRecords,
    runs: pd.DataFrame,
    arms: Sequence[ArmSummary],
    facts: Mapping[str, Any],
    metric: Metric = TEST_LOSS,
) -> list[EffectSize]:
    """Every arm that has a difference from the baseline; `facts` are the ledger's."""
    frozen, size = frozen_loss(runs), facts.get("data", {}).get("test_bytes")
    losses = {arm.budget: arm.loss.mean for arm in arms if arm.is_baseline and arm.loss}
    found = []
    for arm in arms:
        if arm.difference is None:
            continue
        differences = [difference for _, difference in arm.differences]
        interval, tokens = over_records.get((arm.arm, arm.budget), (None, None))
        loss = losses[arm.budget]
        found.append(
            EffectSize(
                arm=arm.arm,
                budget=arm.budget,
                effect=effects(arm.difference.mean, loss, frozen, tokens, size) if metric.is_loss else None,
                difference=arm.difference,
                over_seeds=over_seeds.get((arm.arm, arm.budget)) or mean_interval(differences),
                over_records=interval,
                improvement=improvement_probability([metric.sign * difference for difference in differences]),
                sd=float(np.std(differences, ddof=1)) if len(differences) > 1 else None,
            )
        )
    return found


class RecordLosses(Protocol):
    """Losses of one run on one split, record by record."""

    @property
    def nll(self) -> Floats:
        """Summed negative log-likelihood of each record."""

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Completion tokens of each record."""


ByRecord = Callable[[str, str], RecordLosses | None]
"""(run_id, split) -> losses by record; None where they were not kept."""


def record_intervals(
    by_record: ByRecord, runs: pd.DataFrame, arms: Sequence[ArmSummary], baseline: str
) -> dict[tuple[str, str], tuple[Interval, int]]:
    """Of every arm whose losses by record are there for all its pairs of runs."""
    found = {(arm.arm, arm.budget): _over_records(by_record, runs, arm, baseline) for arm in arms if arm.difference}
    return {key: (interval, tokens) for key, (interval, tokens) in found.items() if interval and tokens}


def records_of(differences: Mapping[tuple[str, str], Crossed]) -> dict[tuple[str, str], tuple[Interval, int]]:
    """The same of another metric than test loss, from its differences; records weigh alike."""
    found = {cell: own.over_records() for cell, own in differences.items()}
    return {cell: (own, own.n) for cell, own in found.items() if own is not None}


def _over_records(
    by_record: ByRecord, runs: pd.DataFrame, arm: ArmSummary, baseline: str
) -> tuple[Interval | None, int | None]:
    """The interval over test records, and how many tokens they have."""
    done = evaluations(runs, completed=True)
    here = done[done["budget"] == arm.budget].groupby("arm")
    ids = {name: dict(zip(own["seed"], own["run_id"], strict=True)) for name, own in here}
    differences: list[Floats] = []
    tokens = None
    for seed, _ in arm.differences:
        one, other = (by_record(ids[name][seed], "test") for name in (arm.arm, baseline))
        if one is None or other is None:
            return None, None
        differences.append(one.nll - other.nll)
        tokens = one.tokens
    if tokens is None:
        return None, None
    return record_interval(np.stack(differences), tokens.astype(np.float64)), int(tokens.sum())  # (S, R), (R,)
