"""What a stability study found, by rules: where each arm trains and breaks, and what moves that.

Everything is exploratory, and no rule looks past an interval: what is not shown is not claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.rate_sweeps import Contrast, Rates, RateSweep, State, contrast, may_break, rate_sweeps, rows_at
from adaptive_lora.stats.stability import StabilitySummary
from adaptive_lora.stats.variants import Variant, VariantFindings, variant_findings


class Beside(StrEnum):
    """An arm where it first breaks, beside the baseline at the same budget and rate."""

    SHARED = "the baseline breaks there too"
    ALONE = "the baseline does not, and is shown to be better"
    OPEN = "neither"
    """The baseline is not shown to break there, and not shown to be better."""


@dataclass(frozen=True)
class Break:
    """An arm that breaks, at the lowest rate at which it does; the baseline is one."""

    sweep: RateSweep
    cell: StabilitySummary
    chosen: float | None
    """The rate it is evaluated at; None where none is chosen."""
    trains_again: tuple[float, ...]
    """Higher rates at which it is not shown to break."""
    beside: Beside | None
    """None for the baseline, and where that has no runs at the rate."""
    against: Contrast | None
    """The arm's validation loss less the baseline's there; None with `beside`."""

    @property
    def kept(self) -> float | None:
        """Share of its gain at its best rate."""
        return self.sweep.kept(self.cell)

    @property
    def shortfall(self) -> Interval | None:
        """By how much it keeps less than half, where that is shown; else None."""
        found = self.sweep.shortfall(self.cell)
        return found if found is not None and found.low is not None and found.low > 0 else None

    @property
    def untrainable(self) -> bool:
        """No rate is chosen because a run diverged at every one."""
        return self.chosen is None and self.sweep.untrainable

    @property
    def at_chosen(self) -> bool:
        """Whether it breaks at its own rate."""
        return self.chosen is not None and self.sweep.state_at(self.chosen) is State.BREAKS

    @property
    def is_shared(self) -> bool:
        """Whether it breaks first above its own rate, where the baseline breaks too."""
        return self.beside is Beside.SHARED and self.above_chosen

    @property
    def above_chosen(self) -> bool:
        """Whether it breaks first above its own rate."""
        return self.chosen is not None and self.chosen < self.cell.learning_rate


@dataclass(frozen=True)
class BudgetOverview:
    """All arms at one budget, the baseline among them."""

    budget: str
    lowest_rate: float
    trained_to: float | None
    """The highest rate up to which every arm trains; None where not even the lowest is one."""
    is_highest: bool
    """Whether that is the highest rate there is."""
    breaks_at_lowest: bool
    """Whether an arm is shown to break at the lowest rate."""
    break_possible: bool
    """Whether an interval up to `trained_to` leaves it open that less than half is kept."""
    sound: tuple[str, ...]
    """Arms that are not shown to break, with enough seeds at every rate."""
    unknown: tuple[str, ...]
    """The same with too few seeds at some rate."""
    sound_break_possible: bool
    """Whether an interval of a sound arm leaves a break open."""


@dataclass(frozen=True)
class BudgetContrast:
    """An arm at its largest budget against its smallest, at the lowest rate at which either breaks and not both."""

    small: RateSweep
    large: RateSweep
    learning_rate: float
    against: Contrast
    """Validation loss at the large budget less that at the small one."""


@dataclass(frozen=True)
class StabilityFindings:
    """What the runs of a `stability_table` show: every arm is held against itself and the frozen model."""

    baseline: str
    alpha: float
    tuned: bool
    """Whether rates were chosen on validation; else they are the study's."""
    sweeps: tuple[RateSweep, ...]
    """Of every arm and budget."""
    budgets: tuple[BudgetOverview, ...]
    breaks: tuple[Break, ...]
    budget_contrasts: tuple[BudgetContrast, ...]
    variants: VariantFindings
    spikes: int | None
    """Loss spikes in all runs; None where no run has a curve."""
    spike_runs: int
    most_spikes: StabilitySummary | None

    @property
    def cells(self) -> list[StabilitySummary]:
        """Every arm, budget and rate."""
        return [cell for sweep in self.sweeps for cell in sweep.cells]

    @property
    def trained(self) -> list[StabilitySummary]:
        """Those that are not shown to break."""
        return [cell for sweep in self.sweeps for cell, state in sweep.paired if state is State.TRAINS]

    @property
    def may_break(self) -> list[tuple[RateSweep, StabilitySummary]]:
        """Those of `trained` whose interval leaves it open that less than half is kept, the least kept first."""
        trained = [(s, c) for s in self.sweeps for c, state in s.paired if state is State.TRAINS]
        wide = [(s, c) for s, c in trained if may_break(s.shortfall(c))]
        return sorted(wide, key=lambda pair: pair[0].kept(pair[1]) or 0.0)

    @property
    def shared_breaks(self) -> dict[tuple[str, float], list[str]]:
        """(budget, rate) -> arms that break there first, where the baseline breaks too and they train at their own."""
        found: dict[tuple[str, float], list[str]] = {}
        for b in (b for b in self.breaks if b.is_shared):
            found.setdefault((b.sweep.budget, b.cell.learning_rate), []).append(b.sweep.arm)
        return found

    @property
    def less_stable(self) -> list[Break]:
        """Arms shown to break where the baseline is not, and to be worse than it there."""
        return [b for b in self.breaks if b.beside is Beside.ALONE]


def stability_findings(
    table: pd.DataFrame,
    baseline: str,
    chosen: Rates,
    variants: Mapping[str, Variant],
    alpha: float = 0.05,
    tuned: bool = True,
) -> StabilityFindings:
    """From a `stability_table`; `variants` by arm, intervals of level 1 - alpha.

    `chosen` has the rates that validation chooses, or the study's where nothing was `tuned`.
    """
    sweeps = rate_sweeps(table, alpha)
    every = list(sweeps.values())
    spikes = table["spikes"].dropna()
    counted = [cell for sweep in every for cell in sweep.cells if cell.spikes is not None]
    broken = [(sweep, cell) for sweep in every if (cell := sweep.first_break)]
    beside = [_beside(table, sweep, cell, sweeps.get((baseline, sweep.budget)), alpha) for sweep, cell in broken]
    return StabilityFindings(
        baseline=baseline,
        alpha=alpha,
        tuned=tuned,
        sweeps=tuple(every),
        budgets=tuple(
            _overview(budget, [s for s in every if s.budget == budget])
            for budget in dict.fromkeys(sweep.budget for sweep in every)
        ),
        breaks=tuple(_break(*found, chosen, *other) for found, other in zip(broken, beside, strict=True)),
        budget_contrasts=tuple(_budget_contrasts(table, every, alpha)),
        variants=variant_findings(table, sweeps, variants, alpha),
        spikes=int(spikes.sum()) if len(spikes) else None,
        spike_runs=len(spikes),
        most_spikes=max(counted, key=lambda cell: cell.spikes or 0.0, default=None),
    )


def _overview(budget: str, here: Sequence[RateSweep]) -> BudgetOverview:
    rates = sorted({cell.learning_rate for sweep in here for cell in sweep.cells})
    trained_to, states = None, set[State]()
    for rate in rates:
        states = {state for sweep in here for cell, state in sweep.paired if cell.learning_rate == rate}
        if states != {State.TRAINS}:
            break
        trained_to = rate
    unbroken = [sweep for sweep in here if sweep.first_break is None]
    sound = [sweep for sweep in unbroken if State.UNKNOWN not in sweep.states]
    below = [s.shortfall(cell) for s in here for cell in s.cells if cell.learning_rate <= (trained_to or 0.0)]
    return BudgetOverview(
        budget=budget,
        lowest_rate=rates[0],
        trained_to=trained_to,
        is_highest=trained_to == rates[-1],
        breaks_at_lowest=trained_to is None and State.BREAKS in states,
        break_possible=any(map(may_break, below)),
        sound=tuple(sweep.arm for sweep in sound),
        unknown=tuple(sweep.arm for sweep in unbroken if sweep not in sound),
        sound_break_possible=any(may_break(found) for sweep in sound for found in sweep.shortfalls),
    )


def _break(
    sweep: RateSweep, cell: StabilitySummary, chosen: Rates, beside: Beside | None, against: Contrast | None
) -> Break:
    after = sweep.paired[sweep.cells.index(cell) :]
    again = tuple(later.learning_rate for later, state in after if state is State.TRAINS)
    return Break(sweep, cell, chosen.get((sweep.arm, sweep.budget)), again, beside, against)


def _beside(
    table: pd.DataFrame, sweep: RateSweep, cell: StabilitySummary, baseline: RateSweep | None, alpha: float
) -> tuple[Beside | None, Contrast | None]:
    rate = cell.learning_rate
    if baseline is None or baseline is sweep or rate not in [other.learning_rate for other in baseline.cells]:
        return None, None
    rows = [rows_at(table, arm, sweep.budget, rate) for arm in (sweep.arm, baseline.arm)]
    found = contrast(rows[0], rows[1], alpha)
    if baseline.state_at(rate) is State.BREAKS:
        return Beside.SHARED, found
    return Beside.ALONE if found.direction > 0 else Beside.OPEN, found


def _budget_contrasts(table: pd.DataFrame, every: Sequence[RateSweep], alpha: float) -> list[BudgetContrast]:
    """None where budgets are written in different units."""
    if len({parse_budget(sweep.budget)[0] for sweep in every}) > 1:
        return []
    found = []
    for arm in dict.fromkeys(sweep.arm for sweep in every):
        own = sorted((s for s in every if s.arm == arm), key=lambda s: parse_budget(s.budget)[1])
        small, large = own[0], own[-1]
        breaks = {cell.learning_rate for sweep in (small, large) if (cell := sweep.first_break)}
        rate = min(breaks, default=0.0)
        if [sweep.state_at(rate) for sweep in (small, large)].count(State.BREAKS) == 1:
            rows = [rows_at(table, arm, sweep.budget, rate) for sweep in (large, small)]
            found.append(BudgetContrast(small, large, rate, contrast(rows[0], rows[1], alpha)))
    return found
