"""What a study says to do: rank how much, rank where, which rate; by intervals and verdicts alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from adaptive_lora.planning.budget_text import doubled, halved, parse_budget
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.differences import between
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.verdicts import Judgement, Verdict

UNIFORM = "uniform"
FEWEST = 2
"""Seeds below which nothing is said of new ones."""


class Reading(StrEnum):
    """What uniform ranks on another budget do beside those on the middle one, by the interval of the difference."""

    AS_GOOD = "no worse than the margin"
    """Shown to lose less than the margin."""
    WORSE = "worse"
    """Shown to be worse, not shown to be so by less than the margin."""
    BETTER = "better"
    """Shown to be better, and on average by more than the margin."""
    OPEN = "open"
    """Neither."""
    UNKNOWN = "not known"
    """Without `FEWEST` seeds of both."""


@dataclass(frozen=True)
class Neighbour:
    """Half of the budget, or twice of it."""

    budget: str
    minus_middle: Interval | None
    """Its loss less that of the middle, over new seeds and new records, of level 1 - 2 alpha; None without a seed."""
    margin: float

    @property
    def reading(self) -> Reading:
        """By the interval's ends.

        >>> Neighbour("rank:4", Interval(0.002, -0.003, 0.007, 4, 0.9), margin=0.01).reading.value
        'no worse than the margin'
        """
        found = self.minus_middle
        if found is None or found.n < FEWEST or found.low is None or found.high is None:
            return Reading.UNKNOWN
        if found.high < 0 and found.mean < -self.margin:
            return Reading.BETTER
        if found.high < self.margin:
            return Reading.AS_GOOD
        return Reading.WORSE if found.low > 0 else Reading.OPEN


@dataclass(frozen=True)
class Advice:
    """What to take."""

    rank: int
    """Uniform, or of the uniform plan that costs as much."""
    strategy: str
    """`uniform`, or the arm that was better."""
    middle: str
    """The budget that was asked about."""
    rate: float | None
    """Tuned; None where there was no time to."""
    neighbours: tuple[Neighbour, ...] = ()
    where: Mapping[str, Judgement] | None = None
    """By arm; None where no strategy was tried."""
    margin: float = 0.0
    frozen_loss: float | None = None
    loss: Interval | None = None
    """Of what is advised, nats a token of the test records; None where no run of uniform ranks at the middle has
    finished."""
    tried_rates: tuple[float, ...] = ()
    unfinished: int = 0
    """Runs that the study asks for and time did not allow."""

    @property
    def judged(self) -> bool:
        """Whether any of it rests on finished runs."""
        return self.loss is not None


def advise(found: Findings, margin: float) -> Advice:
    """Of a study by `study_text`, as far as it has come."""
    middle = found.facts["spec"]["budgets"][0]
    others = [budget for budget in (halved(middle), doubled(middle)) if budget is not None]
    neighbours = tuple(_neighbour(found, budget, middle, margin) for budget in others)
    where = {c.arm: judged for c, judged in found.judged.items()}
    rank = uniform_rank(parse_budget(middle)[1], *neighbours)
    chosen = best_arm(where, neighbours[-1])
    if chosen is not None:
        rank = parse_budget(middle)[1]
    losses = {(arm.arm, arm.budget): arm.loss for arm in found.arms}
    loss = losses.get((UNIFORM, middle)) and losses.get((chosen or UNIFORM, middle if chosen else f"rank:{rank}"))
    rates = {(arm, budget): rate for arm, budget, rate in found.facts.get("chosen_rates", [])}
    tuned = found.runs[(found.runs["phase"] == "tuning") & found.runs["validation_loss"].notna()]
    return Advice(
        rank=rank,
        strategy=chosen or UNIFORM,
        middle=middle,
        rate=rates.get((UNIFORM, middle)),
        neighbours=neighbours,
        where=where or None,
        margin=margin,
        frozen_loss=found.base_loss,
        loss=loss,
        tried_rates=tuple(sorted(set(tuned["learning_rate"]))),
        unfinished=found.status().left,
    )


def best_arm(where: Mapping[str, Judgement], twice: Neighbour) -> str | None:
    """The arm whose verdict is *better*, of several the one with the lowest mean; None where there is none, or where
    twice the budget gains more than it does."""
    better = {arm: judged.mean or 0.0 for arm, judged in where.items() if judged.verdict is Verdict.BETTER}
    best = min(better, key=lambda arm: better[arm]) if better else None
    more = twice.minus_middle.mean if twice.minus_middle and twice.reading is Reading.BETTER else 0.0
    return best if best is not None and better[best] <= more else None


def uniform_rank(middle: int, half: Neighbour, twice: Neighbour) -> int:
    """The middle one unless an interval says otherwise: twice of it where that is better, else half of it where that
    loses less than the margin.

    >>> gains = Interval(-0.03, -0.04, -0.02, 4, 0.9)
    >>> uniform_rank(8, Neighbour("rank:4", None, 0.01), Neighbour("rank:16", gains, 0.01))
    16
    """
    if twice.reading is Reading.BETTER:
        return 2 * middle
    return middle // 2 if half.reading in (Reading.AS_GOOD, Reading.BETTER) else middle


def _neighbour(found: Findings, budget: str, middle: str, margin: float) -> Neighbour:
    difference = between(found.tables, (UNIFORM, budget), (UNIFORM, middle))
    level = 1 - 2 * float(found.analysis["alpha"])
    return Neighbour(budget, None if difference is None else difference.interval(level), margin)
