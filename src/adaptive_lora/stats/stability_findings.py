"""What a stability study found, by rules: where each arm trains and breaks, and what moves that.

Everything is exploratory, and no rule looks past an interval: what is not shown is not claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.stats.rate_sweeps import (
    Contrast,
    Rates,
    RateSweep,
    State,
    contrast,
    first_harmful_rate,
    rate_sweeps,
    reaches,
    rows_at,
    untrainable,
)
from adaptive_lora.stats.stability import StabilitySummary
from adaptive_lora.stats.variants import Variant, VariantContrast, variant_contrasts


@dataclass(frozen=True)
class Break:
    """An arm that breaks, at the lowest rate at which it does."""

    sweep: RateSweep
    cell: StabilitySummary
    chosen: float | None
    """The rate it is evaluated at; None where none is chosen."""
    untrainable: bool
    """No rate is chosen because a run diverged at every one."""
    trains_again: tuple[float, ...]
    """Higher rates at which it is not shown to break."""

    @property
    def at_chosen(self) -> bool:
        """Whether it breaks at its own rate."""
        return self.chosen is not None and self.sweep.state_at(self.chosen) is State.BREAKS

    @property
    def above_chosen(self) -> bool:
        """Whether it breaks first above its own rate."""
        return self.chosen is not None and self.chosen < self.cell.learning_rate


@dataclass(frozen=True)
class BudgetOverview:
    """All arms at one budget."""

    budget: str
    lowest_rate: float
    trained_to: float | None
    """The highest rate up to which every arm trains; None where not even the lowest is one."""
    is_highest: bool
    """Whether that is the highest rate there is."""
    breaks_at_lowest: bool
    """Whether an arm is shown to break at the lowest rate."""
    excess_possible: bool
    """Whether an interval up to `trained_to` reaches above the margin."""
    sound: tuple[str, ...]
    """Arms other than the baseline that are not shown to break, with enough seeds at every rate."""
    unknown: tuple[str, ...]
    """The same with too few seeds at some rate."""
    sound_excess_possible: bool
    """Whether an interval of a sound arm reaches above the margin."""


@dataclass(frozen=True)
class BaselineBreak:
    """A rate that is too high for the baseline itself."""

    budget: str
    cell: StabilitySummary
    chosen: float | None
    against: Contrast | None
    """Its validation loss there less that at its chosen rate; None where no rate is chosen."""


@dataclass(frozen=True)
class BudgetContrast:
    """An arm at its largest budget against its smallest, at the lowest rate at which either breaks."""

    small: RateSweep
    large: RateSweep
    learning_rate: float
    against: Contrast
    """Excess at the large budget less that at the small one."""


@dataclass(frozen=True)
class StabilityFindings:
    """What the runs of a `stability_table` show; arms are compared with the baseline at the same budget, rate, seed."""

    baseline: str
    margin: float
    tuned: bool
    """Whether rates were chosen on validation; else they are the study's."""
    sweeps: tuple[RateSweep, ...]
    """Of every arm and budget but the baseline's."""
    budgets: tuple[BudgetOverview, ...]
    breaks: tuple[Break, ...]
    baseline_breaks: tuple[BaselineBreak, ...]
    budget_contrasts: tuple[BudgetContrast, ...]
    variants: tuple[VariantContrast, ...]
    """Changed arms where they or their plain arm break."""
    unbroken_variants: tuple[tuple[RateSweep, Variant], ...]
    spikes: int | None
    """Loss spikes in all runs; None where no run has a curve."""
    spike_runs: int
    most_spikes: StabilitySummary | None

    @property
    def cells(self) -> list[StabilitySummary]:
        """Every arm, budget and rate that is compared with the baseline."""
        return [cell for sweep in self.sweeps for cell in sweep.cells]

    @property
    def trained(self) -> list[StabilitySummary]:
        """Those shown to train."""
        return [cell for sweep in self.sweeps for cell, state in sweep.paired if state is State.TRAINS]

    @property
    def excess_possible(self) -> list[StabilitySummary]:
        """Those of `trained` whose interval reaches above the margin, the widest first."""
        wide = [(cell.excess.high, cell) for cell in self.trained if cell.excess and cell.excess.high is not None]
        return [cell for high, cell in sorted(wide, key=lambda pair: -pair[0]) if high > self.margin]


def stability_findings(
    table: pd.DataFrame,
    baseline: str,
    margin: float,
    chosen: Rates,
    variants: Mapping[str, Variant],
    tuned: bool = True,
) -> StabilityFindings:
    """From a `stability_table`; `margin` in nats per token, `variants` by arm.

    `chosen` has the rates that validation chooses, or the study's where nothing was `tuned`.
    """
    sweeps = rate_sweeps(table, baseline, margin)
    others = [sweep for sweep in sweeps.values() if sweep.arm != baseline]
    contrasts, unbroken = variant_contrasts(table, sweeps, variants)
    spikes = table["spikes"].dropna()
    counted = [cell for sweep in sweeps.values() for cell in sweep.cells if cell.spikes is not None]
    return StabilityFindings(
        baseline=baseline,
        margin=margin,
        tuned=tuned,
        sweeps=tuple(others),
        budgets=tuple(
            _overview(budget, [s for s in sweeps.values() if s.budget == budget], baseline, margin)
            for budget in dict.fromkeys(sweep.budget for sweep in others)
        ),
        breaks=tuple(_break(sweep, cell, chosen) for sweep in others if (cell := sweep.first_break)),
        baseline_breaks=tuple(_baseline_breaks(table, sweeps, baseline, margin, chosen)),
        budget_contrasts=tuple(_budget_contrasts(table, others)),
        variants=tuple(contrasts),
        unbroken_variants=tuple((sweep, variants[sweep.arm]) for sweep in unbroken),
        spikes=int(spikes.sum()) if len(spikes) else None,
        spike_runs=len(spikes),
        most_spikes=max(counted, key=lambda cell: cell.spikes or 0.0, default=None),
    )


def _overview(budget: str, here: Sequence[RateSweep], baseline: str, margin: float) -> BudgetOverview:
    rates = sorted({cell.learning_rate for sweep in here for cell in sweep.cells})
    trained_to, states = None, set[State]()
    for rate in rates:
        states = {state for sweep in here for cell, state in sweep.paired if cell.learning_rate == rate}
        if states != {State.TRAINS}:
            break
        trained_to = rate
    unbroken = [sweep for sweep in here if sweep.arm != baseline and sweep.first_break is None]
    sound = [sweep for sweep in unbroken if State.UNKNOWN not in sweep.states]
    below = [cell for sweep in here for cell in sweep.cells if cell.learning_rate <= (trained_to or 0.0)]
    return BudgetOverview(
        budget=budget,
        lowest_rate=rates[0],
        trained_to=trained_to,
        is_highest=trained_to == rates[-1],
        breaks_at_lowest=trained_to is None and State.BREAKS in states,
        excess_possible=any(reaches(cell.excess, margin) for cell in below),
        sound=tuple(sweep.arm for sweep in sound),
        unknown=tuple(sweep.arm for sweep in unbroken if sweep not in sound),
        sound_excess_possible=any(reaches(cell.excess, margin) for sweep in sound for cell in sweep.cells),
    )


def _break(sweep: RateSweep, cell: StabilitySummary, chosen: Rates) -> Break:
    after = sweep.paired[sweep.cells.index(cell) :]
    again = tuple(later.learning_rate for later, state in after if state is State.TRAINS)
    return Break(sweep, cell, chosen.get((sweep.arm, sweep.budget)), untrainable(sweep, chosen), again)


def _baseline_breaks(
    table: pd.DataFrame, sweeps: Mapping[tuple[str, str], RateSweep], baseline: str, margin: float, chosen: Rates
) -> list[BaselineBreak]:
    found = []
    for sweep in (sweep for sweep in sweeps.values() if sweep.arm == baseline):
        own = chosen.get((baseline, sweep.budget))
        harmful = first_harmful_rate(table, sweep, chosen, margin)
        if harmful:
            found.append(BaselineBreak(sweep.budget, harmful[0], own, harmful[1]))
        elif sweep.first_break:
            found.append(BaselineBreak(sweep.budget, sweep.first_break, None, None))
    return found


def _budget_contrasts(table: pd.DataFrame, others: Sequence[RateSweep]) -> list[BudgetContrast]:
    """None where budgets are written in different units."""
    if len({parse_budget(sweep.budget)[0] for sweep in others}) > 1:
        return []
    found = []
    for arm in dict.fromkeys(sweep.arm for sweep in others):
        own = sorted((s for s in others if s.arm == arm), key=lambda s: parse_budget(s.budget)[1])
        small, large = own[0], own[-1]
        breaks = [cell.learning_rate for sweep in (small, large) if (cell := sweep.first_break)]
        if small is not large and breaks:
            rate = min(breaks)
            rows = [rows_at(table, arm, sweep.budget, rate) for sweep in (large, small)]
            found.append(BudgetContrast(small, large, rate, contrast(rows[0], rows[1], "excess")))
    return found
