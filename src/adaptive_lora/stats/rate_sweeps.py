"""Training over learning rates: where each arm breaks, and paired contrasts between arms or rates.

An arm is held against itself and the frozen model. A rate that is too high for every arm breaks every arm, and one at
which an arm is merely worse than another breaks none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from adaptive_lora.stats.estimators import Interval, mean_interval, sign_flip_p
from adaptive_lora.stats.outcomes import Outcome
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.stats.stability import StabilitySummary, summaries

KEPT = 0.5
"""A rate at which less than this share is kept, of what the arm gains over the frozen model at its best, breaks it."""

Rates = Mapping[tuple[str, str], float]
"""(arm, budget) -> the learning rate it is evaluated at; an arm that no rate trains has none."""


class State(StrEnum):
    """How an arm trains at a budget and rate."""

    TRAINS = "trains"
    """Not shown to break, with two seeds or more to tell."""
    BREAKS = "breaks"
    """A run did not learn, or less than half of the gain at the arm's own best rate is left with the whole interval."""
    UNKNOWN = "unknown"
    """Every run learned, and fewer than two seeds have a gain both here and at the best rate."""


@dataclass(frozen=True)
class RateSweep:
    """An arm at a budget over its learning rates, from the lowest to the highest."""

    arm: str
    budget: str
    best: StabilitySummary | None
    """Where it gains most over the frozen model (`best_rate`); None where a run diverged at every rate."""
    cells: tuple[StabilitySummary, ...]
    shortfalls: tuple[Interval | None, ...]
    """Half of the gain at the best rate less the gain at each, paired by phase and seed, nats per token; None where
    no pair has both. Above zero with the whole interval: less than half is kept."""
    shares: tuple[float | None, ...]
    """Mean gain at each rate over that at the best one, of the same pairs; negative where the arm ends above the frozen
    model on average, None where there are no pairs or the best rate gains nothing."""

    @property
    def states(self) -> tuple[State, ...]:
        """Of every cell."""
        return tuple(map(state_of, self.cells, self.shortfalls))

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

    @property
    def untrainable(self) -> bool:
        """Whether a run diverged at every rate."""
        return all(cell.diverged for cell in self.cells)

    def state_at(self, rate: float) -> State:
        """UNKNOWN at a rate it has no runs at."""
        return next((state for cell, state in self.paired if cell.learning_rate == rate), State.UNKNOWN)

    def shortfall(self, cell: StabilitySummary) -> Interval | None:
        """That of one of its cells."""
        return self.shortfalls[self.cells.index(cell)]

    def kept(self, cell: StabilitySummary) -> float | None:
        """The share of one of its cells."""
        return self.shares[self.cells.index(cell)]


def rate_sweeps(table: pd.DataFrame, alpha: float = 0.05) -> dict[tuple[str, str], RateSweep]:
    """(arm, budget) -> its sweep, from a `stability_table`; intervals of level 1 - alpha."""
    found: dict[tuple[str, str], list[StabilitySummary]] = {}
    for cell in summaries(table, alpha):
        found.setdefault((cell.arm, cell.budget), []).append(cell)
    return {key: _sweep(table, key, cells, alpha) for key, cells in found.items()}


def _sweep(table: pd.DataFrame, key: tuple[str, str], cells: list[StabilitySummary], alpha: float) -> RateSweep:
    own = table[(table["arm"] == key[0]) & (table["budget"] == key[1])]
    rate = best_rate(own)
    best = own[own["learning_rate"] == rate]
    kept = [_kept(own[own["learning_rate"] == cell.learning_rate], best, alpha) for cell in cells]
    at_best = next((cell for cell in cells if cell.learning_rate == rate), None)
    return RateSweep(*key, at_best, tuple(cells), tuple(short for short, _ in kept), tuple(share for _, share in kept))


def best_rate(runs: pd.DataFrame) -> float | None:
    """The rate with the highest mean gain among those at which no run diverged; of equals the lowest.

    `runs` are an arm's at one budget. Where there are tuning runs they alone count, as rates are chosen by them.
    """
    tuning = runs[runs["phase"] == Phase.TUNING]
    means = {
        float(str(rate)): float(own["gain"].mean())
        for rate, own in (tuning if len(tuning) else runs).groupby("learning_rate")
        if not own["diverged"].any() and own["gain"].notna().any()
    }
    return max(means, key=lambda rate: (means[rate], -rate), default=None)


def _kept(here: pd.DataFrame, best: pd.DataFrame, alpha: float) -> tuple[Interval | None, float | None]:
    """The shortfall and the share of runs at a rate, beside those at the best one."""
    both = here.merge(best, on=["phase", "seed"], suffixes=("", "_best"))
    both = both[np.isfinite(both["gain"]) & np.isfinite(both["gain_best"])]
    if both.empty:
        return None, None
    at_best = float(both["gain_best"].mean())
    short = mean_interval((KEPT * both["gain_best"] - both["gain"]).tolist(), 1 - alpha)
    return short, float(both["gain"].mean()) / at_best if at_best > 0 else None


def state_of(cell: StabilitySummary, shortfall: Interval | None) -> State:
    """See `State`. One run that did not learn is enough: such a rate cannot be relied on."""
    if cell.unlearned:
        return State.BREAKS
    if shortfall is None or shortfall.low is None:
        return State.UNKNOWN
    return State.BREAKS if shortfall.low > 0 else State.TRAINS


def may_break(shortfall: Interval | None) -> bool:
    """Whether there is an interval that reaches to where less than half is kept."""
    return shortfall is not None and shortfall.high is not None and shortfall.high > 0


@dataclass(frozen=True)
class Contrast:
    """Two sets of runs, paired by phase and seed."""

    difference: Interval | None
    """First less second, nats per token (negative: the first is better); None where no pair has both losses."""
    unlearned: tuple[int, int]
    """Runs of each that diverged or ended no better than the frozen model."""
    pairs: int
    unlearned_p: float
    """Exact two-sided sign-flip test of which of each pair did not learn (McNemar's)."""
    alpha: float

    @property
    def direction(self) -> int:
        """-1 where the first is shown to be better, 1 worse, 0 neither, or each by one of both measures.

        Shown is what has an interval of level 1 - alpha without zero, or runs that learn differing at p <= alpha.
        """
        signs = set()
        if self.difference is not None and self.difference.low is not None and self.difference.high is not None:
            signs.add(int(self.difference.low > 0) - int(self.difference.high < 0))
        if self.unlearned_p <= self.alpha:
            signs.add(1 if self.unlearned[0] > self.unlearned[1] else -1)
        signs.discard(0)
        return signs.pop() if len(signs) == 1 else 0


def contrast(first: pd.DataFrame, second: pd.DataFrame, alpha: float = 0.05) -> Contrast:
    """The validation losses of rows of a `stability_table` less those of others, and how many of each learned."""
    both = first.merge(second, on=["phase", "seed"], suffixes=("", "_second"))
    differences = (both["validation_loss"] - both["validation_loss_second"]).dropna().tolist()
    lost = [
        both[name].isin([Outcome.DIVERGED, Outcome.NO_BETTER]).astype(int) for name in ("outcome", "outcome_second")
    ]
    ends = (lost[0] - lost[1]).tolist()
    return Contrast(
        difference=mean_interval(differences, 1 - alpha) if differences else None,
        unlearned=(int(lost[0].sum()), int(lost[1].sum())),
        pairs=len(both),
        unlearned_p=sign_flip_p(ends) if ends else 1.0,
        alpha=alpha,
    )


def rows_at(table: pd.DataFrame, arm: str, budget: str, rate: float) -> pd.DataFrame:
    """The runs of an arm at a budget and rate."""
    return table[(table["arm"] == arm) & (table["budget"] == budget) & (table["learning_rate"] == rate)]
