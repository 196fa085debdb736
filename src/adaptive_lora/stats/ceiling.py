"""The most that an allocation can gain: the rule that a study locks under `analysis.ceiling`.

For an arm that stands for the best an allocation can do (`hindsight`, a search), with paired seeds and records,

    g = baseline - arm            what it gains,
    h = half - baseline           what half the budget costs,
    c = g - h / 4                 what it gains beyond a quarter of that.

Allocation is **closed** at a budget where half the budget is shown to cost something and every one of these arms is
shown to have c < 0: a claim about all of them at once, so that each test may be at alpha (intersection-union, Berger
1982). It **pays** where one of them is shown to have c > 0, each at alpha over their number (Bonferroni). Else it is
open. g and h are of lower-is-better values, one-sided tests over new seeds and new records (`crossed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from adaptive_lora.stats.crossed import Crossed, crossed
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.evidence import StudyTables
from adaptive_lora.stats.margins import SHARE
from adaptive_lora.stats.moderation import moderated


class CeilingVerdict(StrEnum):
    """What perfect allocation is worth at a budget."""

    CLOSED = "closed"
    """Less than a quarter of what half the budget costs, whichever of the arms is best."""
    PAYS = "pays"
    """More than that, by one of the arms at least."""
    OPEN = "open"
    """Neither is shown."""
    INSENSITIVE = "insensitive"
    """Half the budget is not shown to cost anything: the task cannot tell ranks apart."""


@dataclass(frozen=True)
class CeilingArm:
    """One of the arms that stand for the best."""

    arm: str
    gain: Interval
    """g, of level 1 - 2 alpha."""
    beyond: Interval
    """c, of the same level: below zero as a whole where the arm alone is closed."""
    p_closed: float | None
    """Of c >= 0; None where too little has run."""
    p_pays: float | None
    """Of c <= 0."""


@dataclass(frozen=True)
class Ceiling:
    """All of them at one budget."""

    budget: str
    half: str
    cost_of_half: Interval
    """h, of level 1 - 2 alpha."""
    arms: tuple[CeilingArm, ...]
    verdict: CeilingVerdict

    @property
    def best(self) -> CeilingArm:
        """The arm with the largest gain on average; chosen after the fact, so its interval is too narrow."""
        return max(self.arms, key=lambda own: own.gain.mean)

    @property
    def threshold(self) -> float:
        """A quarter of what half the budget costs."""
        return SHARE * self.cost_of_half.mean


def ceilings(
    tables: StudyTables, baseline: str, arms: Sequence[str], budgets: Sequence[tuple[str, str]], alpha: float
) -> list[Ceiling]:
    """One for each (budget, half of it) at which baseline, half and at least one of the arms have run."""
    found = []
    for budget, half in budgets:
        whole = baseline, budget
        cost = tables.paired((baseline, half), whole)
        gains = {arm: table for arm in arms if (table := tables.paired(whole, (arm, budget))) is not None}
        if cost is None or not gains:
            continue
        beyond = moderated([crossed(table.plus(cost, -SHARE)) for table in gains.values()])
        own = tuple(
            _arm(arm, crossed(table), contrast, alpha)
            for (arm, table), contrast in zip(gains.items(), beyond, strict=True)
        )
        complete = len(own) == len(arms)
        price = crossed(cost)
        found.append(
            Ceiling(budget, half, price.interval(1 - 2 * alpha), own, _verdict(price, own, complete, alpha))
        )  # fmt: skip
    return found


def _arm(arm: str, gain: Crossed, beyond: Crossed, alpha: float) -> CeilingArm:
    level, below = 1 - 2 * alpha, beyond.p_below()
    return CeilingArm(arm, gain.interval(level), beyond.interval(level), below, None if below is None else 1 - below)


def _verdict(cost: Crossed, arms: Sequence[CeilingArm], complete: bool, alpha: float) -> CeilingVerdict:
    """`complete`: whether all arms have run; without one of them the best may be missing, and nothing is closed."""
    below = cost.p_below()
    if below is None or 1 - below > alpha:
        return CeilingVerdict.INSENSITIVE
    if any(own.p_pays is not None and own.p_pays <= alpha / len(arms) for own in arms):
        return CeilingVerdict.PAYS
    closed = all(own.p_closed is not None and own.p_closed <= alpha for own in arms)
    return CeilingVerdict.CLOSED if closed and complete else CeilingVerdict.OPEN
