"""Pairs of runs of which one diverged: a comparison without them is between survivors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.stats.run_table import Status


@dataclass(frozen=True)
class DivergedPairs:
    """Seeds on which one of the two diverged alone; where both did, neither is the better for it."""

    arm: int = 0
    baseline: int = 0
    seeds: int = 0
    """On which both have a result; a divergence is one."""

    @property
    def any(self) -> bool:
        """Whether there is such a seed."""
        return self.arm + self.baseline > 0


NONE_DIVERGED = DivergedPairs()


def diverged_pairs(arm: pd.DataFrame, baseline: pd.DataFrame, seeds: Collection[int] | None = None) -> DivergedPairs:
    """Of the evaluation runs of an arm and of the baseline at one budget; `seeds`: of these alone."""

    def ended(runs: pd.DataFrame, status: Status) -> set[int]:
        found = {int(seed) for seed in runs.loc[runs["status"] == status, "seed"]}
        return found if seeds is None else found & set(seeds)

    done, diverged = ([ended(runs, s) for runs in (arm, baseline)] for s in (Status.COMPLETED, Status.DIVERGED))
    both = (done[0] | diverged[0]) & (done[1] | diverged[1])
    return DivergedPairs(len(diverged[0] & done[1]), len(diverged[1] & done[0]), len(both))
