"""Assay sensitivity: whether a study's task responds to rank at all, by the baseline at half of a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.estimators import Interval, interval_of


class AssayResult(StrEnum):
    """What the baseline at half of a budget does beside the whole one."""

    WORSE = "worse"
    """Shown to be, and by more than the margin as far as the mean says."""
    WORSE_WITHIN = "worse within the margin"
    """Shown to be, and shown to be so by no more than the margin."""
    NOT_WORSE = "not worse"
    """Not shown to be."""
    OPEN = "open"
    """Shown to be, with a mean within the margin and an interval that reaches beyond."""
    TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Assay:
    """The baseline at half of a budget against itself at the whole one."""

    budget: str
    half: str
    loss_of_half: Interval | None
    """Paired by seed, half minus whole (positive: half is worse); None where no seed has both."""
    margin: float
    """Where half the budget costs no more than this, equivalence of two plans says little."""

    @property
    def result(self) -> AssayResult:
        """What half of the budget does, by the 95 % interval."""
        if self.loss_of_half is None or self.loss_of_half.low is None or self.loss_of_half.high is None:
            return AssayResult.TOO_FEW
        if self.loss_of_half.low <= 0:
            return AssayResult.NOT_WORSE
        if self.loss_of_half.high <= self.margin:
            return AssayResult.WORSE_WITHIN
        return AssayResult.WORSE if self.loss_of_half.mean > self.margin else AssayResult.OPEN

    @property
    def sensitive(self) -> bool | None:
        """Whether half the budget is worse by more than the margin; None where that is not known."""
        unknown = self.result in (AssayResult.TOO_FEW, AssayResult.OPEN)
        return None if unknown else self.result is AssayResult.WORSE


def assays(runs: pd.DataFrame, baseline: str, budgets: Sequence[str], margin: float) -> list[Assay]:
    """Of every budget at half of which the baseline was trained too."""
    done = evaluations(runs, completed=True)
    losses = done[done["arm"] == baseline].pivot_table(index="seed", columns="budget", values="test_loss")
    found = []
    for budget in budgets:
        half = halved(budget)
        if half is not None and half in losses:
            differences = (losses[half] - losses[budget]).dropna().tolist() if budget in losses else []
            found.append(Assay(budget, half, interval_of(differences) if differences else None, margin))
    return found


def untested_budgets(budgets: Sequence[str], found: Sequence[Assay]) -> list[str]:
    """Those at half of which the baseline was not trained."""
    tested = {assay.budget for assay in found}
    return [budget for budget in budgets if budget not in tested]
