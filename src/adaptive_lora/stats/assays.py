"""Assay sensitivity: whether a study's task responds to rank at all, by the baseline at half of a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.crossed import PairedTable, crossed
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.evidence import StudyTables
from adaptive_lora.stats.margins import Margin, margin_of
from adaptive_lora.stats.metrics import TEST_LOSS, Metric


class AssayResult(StrEnum):
    """What the baseline at half of a budget does beside the whole one."""

    WORSE = "worse"
    """Shown to be; where the margin is a number, by more than that, the whole interval says so."""
    WORSE_WITHIN = "worse within the margin"
    """Shown to be, and shown to be so by no more than the margin."""
    NOT_WORSE = "not worse"
    """Not shown to be."""
    OPEN = "open"
    """Shown to be, with an interval that reaches to both sides of the margin."""
    TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Assay:
    """The baseline at half of a budget against itself at the whole one."""

    budget: str
    half: str
    loss_of_half: Interval | None
    """What half loses (positive: half is worse, whatever the metric), over new seeds and new records where values by
    record are known, of level 1 - 2 alpha: it lies above zero just where a one-sided test at alpha shows half to be
    worse. None where no seed has both."""
    margin: Margin
    """A number: where half the budget costs no more, equivalence of two plans says little. Measured: a share of this
    very cost."""
    metric: Metric = TEST_LOSS
    difference: Interval | None = None
    """Half minus whole in the metric's own sign, of level 1 - alpha: an arm's difference beside it is of that level."""
    by_seed: tuple[tuple[int, float], ...] = ()
    """(seed, half minus whole) in the metric's own sign."""

    @property
    def shown(self) -> Interval | None:
        """Half minus whole in the metric's own sign."""
        found = self.loss_of_half
        return found.turned() if found is not None and self.metric.higher_is_better else found

    @property
    def result(self) -> AssayResult:
        """What half of the budget does, by the interval."""
        found, margin = self.loss_of_half, self.margin.value
        if found is None or found.n < 2 or found.low is None or found.high is None:
            return AssayResult.TOO_FEW
        if found.low <= 0:
            return AssayResult.NOT_WORSE
        if self.margin.measured or margin is None or found.low > margin:
            return AssayResult.WORSE
        return AssayResult.WORSE_WITHIN if found.high <= margin else AssayResult.OPEN

    @property
    def sensitive(self) -> bool | None:
        """Whether half the budget is worse, by more than a margin that is a number; None where that is not known."""
        unknown = self.result in (AssayResult.TOO_FEW, AssayResult.OPEN)
        return None if unknown else self.result is AssayResult.WORSE


def assays(
    tables: StudyTables, baseline: str, budgets: Sequence[str], margin: float | None, alpha: float
) -> list[Assay]:
    """Of every budget at half of which the baseline was trained too; `margin` in the metric's unit, None: measured."""
    found = []
    for budget in budgets:
        half = halved(budget)
        if half is not None and len(tables.of((baseline, half))):
            table = tables.paired((baseline, half), (baseline, budget))
            cost = None if table is None else crossed(table).interval(1 - 2 * alpha)
            own = Assay(budget, half, cost, margin_of(table, margin, alpha), tables.metric)
            found.append(own if table is None else replace(own, **_as_metric(table, tables.metric, alpha)))
    return found


def _as_metric(table: PairedTable, metric: Metric, alpha: float) -> dict[str, Any]:
    """`difference` and `by_seed` of an assay."""
    whole, sign, own = crossed(table).interval(1 - alpha), metric.sign, len(table.tokens) - table.added
    values = table.differences[:, :own].sum(axis=1) / table.tokens[:own].sum()
    seeds = zip(table.seeds, values.tolist(), strict=True)
    return {
        "difference": whole.turned() if metric.higher_is_better else whole,
        "by_seed": tuple((seed, sign * value) for seed, value in seeds),
    }


def untested_budgets(budgets: Sequence[str], found: Sequence[Assay]) -> list[str]:
    """Those at half of which the baseline was not trained."""
    tested = {assay.budget for assay in found}
    return [budget for budget in budgets if budget not in tested]
