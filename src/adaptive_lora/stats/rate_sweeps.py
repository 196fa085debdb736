"""Training over learning rates: where each arm breaks, and paired contrasts between arms or rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from adaptive_lora.stats.estimators import Interval, mean_interval, sign_flip_p
from adaptive_lora.stats.stability import StabilitySummary, summaries

LEVEL = 0.05

Rates = Mapping[tuple[str, str], float]
"""(arm, budget) -> the learning rate it is evaluated at; an arm that no rate trains has none."""


class State(StrEnum):
    """How an arm trains at a budget and rate."""

    TRAINS = "trains"
    BREAKS = "breaks"
    """A run diverged, or the excess lies above the margin with its whole 95 % interval."""
    UNKNOWN = "unknown"
    """No run diverged, and fewer than two seeds have an excess."""


@dataclass(frozen=True)
class RateSweep:
    """An arm at a budget over its learning rates, from the lowest to the highest."""

    arm: str
    budget: str
    cells: tuple[StabilitySummary, ...]
    states: tuple[State, ...]

    @property
    def first_break(self) -> StabilitySummary | None:
        """At the lowest rate at which it breaks."""
        return next((cell for cell, state in self.paired if state is State.BREAKS), None)

    @property
    def paired(self) -> list[tuple[StabilitySummary, State]]:
        """(cell, state), rate by rate."""
        return list(zip(self.cells, self.states, strict=True))

    @property
    def label(self) -> str:
        """The arm with its budget."""
        return f"{self.arm} at {self.budget}"

    def state_at(self, rate: float) -> State:
        """UNKNOWN at a rate it has no runs at."""
        return next((state for cell, state in self.paired if cell.learning_rate == rate), State.UNKNOWN)


def rate_sweeps(table: pd.DataFrame, baseline: str, margin: float) -> dict[tuple[str, str], RateSweep]:
    """(arm, budget) -> its sweep, from a `stability_table`."""
    found: dict[tuple[str, str], list[StabilitySummary]] = {}
    for cell in summaries(table):
        found.setdefault((cell.arm, cell.budget), []).append(cell)
    return {
        (arm, budget): RateSweep(arm, budget, tuple(cells), tuple(state_of(c, baseline, margin) for c in cells))
        for (arm, budget), cells in found.items()
    }


def state_of(cell: StabilitySummary, baseline: str, margin: float) -> State:
    """See `State`; the baseline has no excess and breaks by divergence alone."""
    if cell.diverged:
        return State.BREAKS
    if cell.arm == baseline:
        return State.TRAINS
    if cell.excess is None or cell.excess.low is None:
        return State.UNKNOWN
    return State.BREAKS if exceeds(cell.excess, margin) else State.TRAINS


def exceeds(found: Interval | None, margin: float) -> bool:
    """Whether there is an interval and all of it lies above the margin."""
    return found is not None and found.low is not None and found.low > margin


def reaches(found: Interval | None, margin: float) -> bool:
    """Whether there is an interval that reaches above the margin."""
    return found is not None and found.high is not None and found.high > margin


@dataclass(frozen=True)
class Contrast:
    """Two sets of runs at one rate, paired by phase and seed."""

    difference: Interval | None
    """First less second, nats per token (negative: the first is better); None where no pair has both losses."""
    diverged: tuple[int, int]
    pairs: int
    divergence_p: float
    """Exact two-sided sign-flip test of which of each pair diverged (McNemar's)."""

    @property
    def direction(self) -> int:
        """-1 where the first is shown to be better, 1 worse, 0 neither, or each by one of both measures.

        Shown is what has a 95 % interval without zero, or divergences that differ at p <= 0.05.
        """
        signs = set()
        if self.difference is not None and self.difference.low is not None and self.difference.high is not None:
            signs.add(int(self.difference.low > 0) - int(self.difference.high < 0))
        if self.divergence_p <= LEVEL:
            signs.add(1 if self.diverged[0] > self.diverged[1] else -1)
        signs.discard(0)
        return signs.pop() if len(signs) == 1 else 0


def contrast(first: pd.DataFrame, second: pd.DataFrame, value: str) -> Contrast:
    """Rows of a `stability_table` at one rate against others, by the column `value`."""
    both = first.merge(second, on=["phase", "seed"], suffixes=("", "_second"))
    differences = (both[value] - both[f"{value}_second"]).dropna().tolist()
    ends = (both["diverged"].astype(int) - both["diverged_second"].astype(int)).tolist()
    return Contrast(
        difference=mean_interval(differences) if differences else None,
        diverged=(int(both["diverged"].sum()), int(both["diverged_second"].sum())),
        pairs=len(both),
        divergence_p=sign_flip_p(ends) if ends else 1.0,
    )


def rows_at(table: pd.DataFrame, arm: str, budget: str, rate: float) -> pd.DataFrame:
    """The runs of an arm at a budget and rate."""
    return table[(table["arm"] == arm) & (table["budget"] == budget) & (table["learning_rate"] == rate)]


def untrainable(sweep: RateSweep, chosen: Rates) -> bool:
    """Whether no rate could be chosen for it, because a run of it diverged at every one."""
    return (sweep.arm, sweep.budget) not in chosen and all(cell.diverged for cell in sweep.cells)


def first_harmful_rate(
    table: pd.DataFrame, sweep: RateSweep, chosen: Rates, margin: float
) -> tuple[StabilitySummary, Contrast] | None:
    """The first rate above the chosen one at which an arm diverges or does worse than at the chosen one by more than
    the margin with the whole interval, and the contrast of the two; None where there is none."""
    own = chosen.get((sweep.arm, sweep.budget))
    if own is None:
        return None
    best = rows_at(table, sweep.arm, sweep.budget, own)
    for cell in sweep.cells:
        if cell.learning_rate > own:
            found = contrast(rows_at(table, sweep.arm, sweep.budget, cell.learning_rate), best, "validation_loss")
            if cell.diverged or exceeds(found.difference, margin):
                return cell, found
    return None
