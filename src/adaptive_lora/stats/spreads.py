"""How much the comparisons of a study vary, by seed and by record: what the size of the next one is reckoned from."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.crossed import Components, Crossed, PairedTable, crossed
from adaptive_lora.stats.effect_sizes import ByRecord
from adaptive_lora.stats.evidence import Cell, StudyTables
from adaptive_lora.stats.margins import SHARE
from adaptive_lora.stats.moderation import FEWEST, MOST_PRIOR, moderated, prior
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.stats.step_down import correlation_of


@dataclass(frozen=True)
class Spread:
    """Of one arm's differences from the baseline."""

    arm: str
    budget: str
    difference: Components
    half: Components | None
    """Of the baseline at half the budget less itself; None where the margin is a number, or was not measured."""
    margin: float | None
    """The study's number, or `SHARE` of what half the budget costs."""
    prior_freedom: float
    """Degrees of freedom that the variances of the other comparisons add to its own; see `stats.moderation`."""
    by_record: bool
    """Whether losses by record are known; without, all is about one set of records."""

    def freedom_factor(self, seeds: int) -> float:
        """Degrees of freedom of the seeds' variance per (seeds - 1), in a study with so many.

        >>> still = Components(0.0, 0.0, 0.0)
        >>> [Spread("a", "rank:8", still, None, None, d0, True).freedom_factor(5) for d0 in (0.0, 4.0, float("inf"))]
        [1.0, 2.0, 2.0]
        """
        return 1 + min(self.prior_freedom / (seeds - 1), MOST_PRIOR)

    @property
    def contrast(self) -> Components:
        """Of what equivalence is tested by: arm - base -/+ margin, where that is measured, with its own error.

        The mean of the two contrasts' variances, in which the covariance of difference and margin cancels.
        """
        if self.half is None:
            return self.difference
        one, two, share = self.difference, self.half, SHARE**2
        return Components(one.seeds + share * two.seeds, one.records + share * two.records, one.both + share * two.both)


@dataclass(frozen=True)
class Pilot:
    """What another study, or a study's own tuning runs, say of the spread of differences."""

    spreads: tuple[Spread, ...]
    correlation: float
    """Between two comparisons that share a baseline."""


def pilot_of(tables: StudyTables, baseline: str, margin: float | None) -> Pilot:
    """Of every arm that shares two seeds or more with the baseline; `margin` is a number, or None to be measured."""
    found: dict[Cell, PairedTable] = {}
    for arm, budget in tables.cells:
        table = tables.paired((arm, budget), (baseline, budget)) if arm != baseline else None
        if table is not None and len(table.seeds) > 1:
            found[arm, budget] = table
    halves = {budget: _half(tables, baseline, budget) for _, budget in found} if margin is None else {}
    raw = [crossed(table) for table in found.values()]
    variances = [(own.seed_variance, own.seed_freedom) for own in raw if own.seed_variance]
    freedom = prior(variances)[0] if len(variances) >= FEWEST else 0.0
    spreads = [
        _spread(cell, own, halves.get(cell[1]), margin, freedom)
        for cell, own in zip(found, moderated(raw), strict=True)
    ]
    return Pilot(tuple(spreads), correlation_of(found))


def tuning_pilot(runs: pd.DataFrame, by_record: ByRecord, baseline: str, margin: float | None) -> Pilot:
    """Of a study's tuning runs: each arm at its best rate, over tuning seeds and validation records."""
    tuning = runs[(runs["phase"] == Phase.TUNING) & (runs["status"] == Status.COMPLETED) & (runs["replica"] == 0)]
    kept = [own for _, own in tuning.groupby(["arm", "budget"], sort=False)]
    best = [own[own["learning_rate"] == _best_rate(own)] for own in kept]
    chosen = pd.concat(best).assign(phase=Phase.EVALUATION) if best else tuning
    return pilot_of(StudyTables(chosen, by_record, "validation"), baseline, margin)


def _best_rate(runs: pd.DataFrame) -> float:
    losses = {float(rate): own["validation_loss"] for rate, own in runs.groupby("learning_rate")}  # type: ignore[arg-type]
    most = max(map(len, losses.values()))  # a rate at which some seeds diverged looks better than it is
    return min((rate for rate in losses if len(losses[rate]) == most), key=lambda rate: float(losses[rate].mean()))


def _half(tables: StudyTables, baseline: str, budget: str) -> Crossed | None:
    smaller = halved(budget)
    table = tables.paired((baseline, smaller), (baseline, budget)) if smaller else None
    return crossed(table) if table is not None and len(table.seeds) > 1 else None


def _spread(cell: Cell, own: Crossed, half: Crossed | None, margin: float | None, prior_freedom: float) -> Spread:
    measured = half is not None and half.mean > 0
    return Spread(
        *cell,
        difference=components_of(own),
        half=components_of(half) if half is not None and measured else None,
        margin=margin if margin is not None else SHARE * half.shown if half is not None and measured else None,
        prior_freedom=prior_freedom,
        by_record=own.records > 1,
    )


def components_of(found: Crossed) -> Components:
    """Its components; of the seeds alone where it has one record. ValueError with one seed."""
    if found.components is not None:
        return found.components
    if found.seed_variance is None:
        raise ValueError(f"A spread over seeds takes two of them, got {found.n}.")
    return Components(found.seed_variance, 0.0, 0.0)
