"""Seeds that divergence takes out of a comparison: what is left then compares survivors."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from adaptive_lora.stats.run_table import Status
from adaptive_lora.stats.words import counted


@dataclass(frozen=True)
class Lost:
    """Seeds on which one of the two diverged alone; where both did, neither is the better for it."""

    arm: int = 0
    baseline: int = 0
    seeds: int = 0
    """On which both have a result; a divergence is one."""

    @property
    def text(self) -> str:
        """In plain words; empty where none was lost.

        >>> Lost(arm=4, seeds=12).text, Lost(baseline=1, seeds=12).text
        ('diverged on 4 of 12 seeds', 'the baseline diverged on 1 of 12 seeds')
        """
        of = f"of {counted(self.seeds, 'seed')}"
        own = [f"diverged on {self.arm} {of}"] if self.arm else []
        theirs = [f"the baseline diverged on {self.baseline} {of}"] if self.baseline else []
        return ", ".join(own + theirs)


NOTHING = Lost()


def lost_seeds(mine: pd.DataFrame, theirs: pd.DataFrame) -> Lost:
    """Of the evaluation runs of an arm and of the baseline at one budget."""
    done = [set(runs.loc[runs["status"] == Status.COMPLETED, "seed"]) for runs in (mine, theirs)]
    gone = [set(runs.loc[runs["status"] == Status.DIVERGED, "seed"]) for runs in (mine, theirs)]
    both = (done[0] | gone[0]) & (done[1] | gone[1])
    return Lost(len(gone[0] & done[1]), len(gone[1] & done[0]), len(both))
