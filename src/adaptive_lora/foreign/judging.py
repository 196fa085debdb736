"""Verdicts on results made elsewhere: all arms on all tasks against one baseline, one family at alpha.

The rule is the studies' own (`stats.verdicts`), which takes lower for better: differences of metrics where higher is
better go in with the other sign and come out with their own. Scores that are right or wrong get two more items
first, one that each arm alone got right (Bonett and Price 2012), so that few items answered differently do not look
like certainty; means and counts that are shown are those of the real items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adaptive_lora.errors import UsageError, nearest_hint
from adaptive_lora.foreign.pairing import Paired, pair
from adaptive_lora.foreign.scores import Question, Run
from adaptive_lora.stats.cautions import Caution, cautions_of
from adaptive_lora.stats.crossed import BOTH, RECORDS, SEEDS, Components, PairedTable, crossed, with_two_more
from adaptive_lora.stats.divergence import DivergedPairs
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.step_down import step_down
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, Verdict, judge_family, without_survivorship


@dataclass(frozen=True)
class Asked:
    """What is to be judged, and how."""

    baseline: str
    tasks: tuple[str, ...] = ()
    """Empty for all."""
    metric: str | None = None
    """None for the first of each task."""
    arms: tuple[str, ...] = ()
    """Those that form the family; empty for all."""
    margin: float | None = None
    """In the metric's unit; None, and nothing is called equivalent."""
    alpha: float = 0.05
    common: bool = False
    """Judge what is in common, however little."""


@dataclass(frozen=True)
class Outcome:
    """An arm against the baseline on one question; differences are arm less baseline in the metric's own unit."""

    paired: Paired
    verdict: Verdict
    interval: Interval | None
    """Over what `resampled` says; None with one run and no items."""
    over_seeds: Interval | None
    over_records: Interval | None
    p: float | None
    adjusted_p: float | None
    equivalence_interval: Interval | None
    adjusted_equivalence_p: float | None
    alpha: float
    margin: float | None
    cautions: tuple[Caution, ...]
    components: Components | None

    @property
    def difference(self) -> float:
        """Of the means."""
        one, two = self.paired.means
        return one - two

    @property
    def shown(self) -> Interval:
        """The difference with its interval, if it has one."""
        found = self.interval or Interval(0.0, None, None, len(self.paired.table.seeds), 1 - self.alpha, "")
        return replace(found, mean=self.difference)

    @property
    def resampled(self) -> str | None:
        """What the interval is over."""
        return None if self.interval is None else self.interval.over

    @property
    def half_width(self) -> float | None:
        """Of the interval: what a difference must exceed to be seen alone, about every other time."""
        found = self.interval
        return None if found is None or found.low is None or found.high is None else (found.high - found.low) / 2

    @property
    def half_width_at_twice_the_items(self) -> float | None:
        """As far as items are resampled."""
        return self._half_width_at(1, 2) if self.resampled in (RECORDS, BOTH) else None

    @property
    def half_width_at_twice_the_seeds(self) -> float | None:
        """As far as seeds are resampled."""
        return self._half_width_at(2, 1) if self.resampled in (SEEDS, BOTH) else None

    def _half_width_at(self, seeds: int, items: int) -> float | None:
        if self.half_width is None:
            return None
        if self.components is None:  # one source, whose variance goes with its number
            return self.half_width / math.sqrt(seeds * items)
        s, r = self.paired.table.differences.shape
        now, then = self.components.variance(s, r), self.components.variance(s * seeds, r * items)
        return self.half_width * math.sqrt(then / now) if now > 0 else self.half_width


def judge_runs(runs: Sequence[Run], asked: Asked) -> list[Outcome]:
    """One outcome an arm and question, in the order of the questions, then of the arms.

    UsageError for a baseline that is not there, a task or metric that is not, and what cannot be paired.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    _check(arms, asked)
    family = [
        pair(question, own, base, asked.common)
        for question in asked_questions(runs, asked)
        if (base := _runs_of(runs, asked.baseline, question))
        for arm in asked.arms or arms
        if arm != asked.baseline and (own := _runs_of(runs, arm, question))
    ]
    if not family:
        raise UsageError(f"No other arm has what {asked.baseline!r} has: {_known(runs)}.")
    units = dict.fromkeys(p.question.unit or p.question.metric for p in family)
    if asked.margin is not None and len({p.question.unit for p in family}) > 1:
        raise UsageError(
            f"--margin is in the metric's unit, and these differ ({', '.join(units)}). Choose with --task or --metric."
        )
    evidence = {
        (p.arm, p.question): Evidence(_for_the_rule(p), diverged=_diverged(runs, p, asked.baseline)) for p in family
    }
    found = _judged(evidence, Rule(alpha=asked.alpha, margin=asked.margin))
    return [_outcome(p, found[p.arm, p.question], asked) for p in family]


def _check(arms: Sequence[str], asked: Asked) -> None:
    """UsageError for arms that are not there and numbers that cannot be."""
    for what, arm in (("baseline", asked.baseline), *(("arm", arm) for arm in asked.arms)):
        if arm not in arms:
            raise UsageError(
                f"No results of the {what} {arm!r}{nearest_hint(arm, arms)}; there are: {', '.join(arms)}."
            )
    if len(arms) < 2:
        raise UsageError(f"All results are of {arms[0]!r}; name those of another arm too.")
    if not 0 < asked.alpha < 0.5:
        raise UsageError(f"--alpha lies between 0 and 0.5, got {asked.alpha:g}.")
    if asked.margin is not None and not (asked.margin > 0 and math.isfinite(asked.margin)):
        raise UsageError(f"--margin is a number above 0 in the metric's unit, got {asked.margin:g}.")


def asked_questions(runs: Sequence[Run], asked: Asked) -> list[Question]:
    """One question a task: the metric that was asked for, else the task's first."""
    known = list(dict.fromkeys(question for run in runs for question in run.questions))
    tasks = list(dict.fromkeys(question.task for question in known))
    for task in asked.tasks:
        if task not in tasks:
            raise UsageError(f"No task {task!r}{nearest_hint(task, tasks)}; there are: {_known(runs)}.")
    chosen = []
    for task in asked.tasks or tasks:
        own = [question for question in known if question.task == task]
        exact = [q for q in own if asked.metric in (None, q.metric)] or [
            q for q in own if q.metric.partition(",")[0] == asked.metric
        ]
        chosen += exact[:1]
    if not chosen:
        raise UsageError(f"No metric {asked.metric!r}; there are: {_known(runs)}.")
    return chosen


def other_metrics(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[str]:
    """Names of what the files have besides, and nobody asked for."""
    judged = {outcome.paired.question for outcome in outcomes}
    tasks = {question.task for question in judged}
    known = dict.fromkeys(q for run in runs for q in run.questions if q.task in tasks and q not in judged)
    return list(dict.fromkeys(question.metric for question in known))


def _runs_of(runs: Sequence[Run], arm: str, question: Question) -> list[Run]:
    return [run for run in runs if run.arm == arm and question in run.questions]


def _known(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(question.name for run in runs for question in run.questions))


Key = tuple[str, Question]
"""(arm, question)."""


def _judged(family: Mapping[Key, Evidence], rule: Rule) -> dict[Key, Judgement]:
    """One family, though variances of different questions tell nothing of each other.

    Each question is judged alone, then p values are adjusted over all of them as if they were independent, which is
    the dearest that they can be.
    """
    questions = dict.fromkeys(question for _, question in family)
    found: dict[Key, Judgement] = {}
    for question in questions:
        found |= judge_family({key: own for key, own in family.items() if key[1] == question}, rule)
    if len(questions) == 1:
        return found
    adjusted = step_down([1.0 if j.p is None else j.p for j in found.values()], 0.0)
    same = step_down([1.0 if j.equivalence_p is None else j.equivalence_p for j in found.values()], 0.0, sided=1)
    each = zip(found.items(), adjusted, same, strict=True)
    return {key: _adjusted(j, p, equivalent, rule.alpha) for (key, j), p, equivalent in each}


def _adjusted(found: Judgement, p: float, same: float, alpha: float) -> Judgement:
    """With p values that are adjusted over more, and the verdict that follows."""
    verdict = Verdict.UNDECIDED
    if found.equivalence_p is not None and same <= alpha:
        verdict = Verdict.EQUIVALENT
    elif found.p is not None and p <= alpha:
        verdict = Verdict.BETTER if (found.mean or 0.0) < 0 else Verdict.WORSE
    return replace(
        found,
        adjusted_p=None if found.p is None else p,
        adjusted_equivalence_p=None if found.equivalence_p is None else same,
        verdict=without_survivorship(verdict, found.diverged_pairs),
    )


def _diverged(runs: Sequence[Run], paired: Paired, baseline: str) -> DivergedPairs:
    """Seeds on which one of the two diverged and the other did not."""
    done, lost = [], []
    for arm in (paired.arm, baseline):
        own = [run for run in runs if run.arm == arm]
        done.append({run.seed for run in own if paired.question in run.questions})
        lost.append({run.seed for run in own if paired.question in run.diverged})
    both = (done[0] | lost[0]) & (done[1] | lost[1])
    return DivergedPairs(len(lost[0] & done[1]), len(lost[1] & done[0]), len(both))


def _for_the_rule(paired: Paired) -> PairedTable:
    """Lower is better, and two items more for scores that are right or wrong."""
    table = paired.table
    if paired.question.higher_is_better:
        table = replace(table, differences=-table.differences)
    return with_two_more(table) if paired.binary else table


def _outcome(paired: Paired, found: Judgement, asked: Asked) -> Outcome:
    higher = paired.question.higher_is_better
    interval, seeds, records, same = (
        own.turned() if higher and own is not None else own
        for own in (found.interval, found.over_seeds, found.over_records, found.equivalence_interval)
    )
    return Outcome(
        paired,
        found.verdict,
        interval,
        seeds,
        records,
        found.p,
        found.adjusted_p,
        same,
        found.adjusted_equivalence_p,
        asked.alpha,
        asked.margin,
        cautions_of(paired.table, found.margin, found.diverged_pairs, Caution.SKEWED in found.cautions),
        crossed(paired.table).components,
    )
