"""Pairs of runs of which one diverged: a comparison without them is between survivors."""

from __future__ import annotations

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


def diverged_pairs(arm: pd.DataFrame, baseline: pd.DataFrame) -> DivergedPairs:
    """Of the evaluation runs of an arm and of the baseline at one budget."""
    done = [set(runs.loc[runs["status"] == Status.COMPLETED, "seed"]) for runs in (arm, baseline)]
    diverged = [set(runs.loc[runs["status"] == Status.DIVERGED, "seed"]) for runs in (arm, baseline)]
    both = (done[0] | diverged[0]) & (done[1] | diverged[1])
    return DivergedPairs(len(diverged[0] & done[1]), len(diverged[1] & done[0]), len(both))
