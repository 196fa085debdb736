"""What a family of comparisons with the baseline says: equivalent, better, worse, or not decided.

Tests and intervals are over new seeds and new records (`stats.crossed`), variances of few seeds are drawn towards each
other (`stats.moderation`), the family is judged by step-down max-T (`stats.step_down`), at each look of the study's
plan (`stats.looks`). Differences are one family at alpha, equivalences another.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from adaptive_lora.stats.cautions import Caution, cautions_of
from adaptive_lora.stats.crossed import Components, Crossed, PairedTable, crossed
from adaptive_lora.stats.divergence import NONE_DIVERGED, DivergedPairs
from adaptive_lora.stats.estimators import Interval, improvement_probability
from adaptive_lora.stats.looks import spent
from adaptive_lora.stats.margins import Margin, equivalence_p, margin_of
from adaptive_lora.stats.moderation import moderated
from adaptive_lora.stats.skewness import skewed_among
from adaptive_lora.stats.step_down import correlation_of, step_down

Key = TypeVar("Key", bound=Hashable)


class Verdict(StrEnum):
    """An arm against the baseline."""

    EQUIVALENT = "equivalent"
    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Rule:
    """How a study is judged, as it was locked."""

    alpha: float = 0.05
    margin: float | None = None
    """In the metric's unit; None for a quarter of what half the budget costs."""
    seeds: tuple[int, ...] = ()
    """Planned, in the order in which they are trained; without looks it does not matter."""
    looks: tuple[int, ...] = ()
    """After how many of them the family is judged; empty: once, with the seeds that there are."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one comparison."""

    table: PairedTable | None
    """Arm less baseline, lower is better; None where no seed has both."""
    half: PairedTable | None = None
    """The baseline at half the budget less itself at the whole; None where that was not trained."""
    diverged: DivergedPairs = NONE_DIVERGED
    """Pairs that the table lacks because one of the two diverged."""
    diverged_by_look: tuple[DivergedPairs, ...] = ()
    """The same of the seeds of each look; empty where there are no looks."""
    finished: frozenset[int] = frozenset()
    """Seeds on which everything that it needs is done, be it by divergence."""


@dataclass(frozen=True)
class Judgement:
    """One comparison of a family, at the look that decided it, or at the last there was."""

    n: int
    """Seeds."""
    records: int | None
    """None where losses by record are not known: then all is of these records alone."""
    mean: float | None
    interval: Interval | None
    """Of level 1 - alpha, over new seeds and new records."""
    over_seeds: Interval | None
    """Of new seeds on these records."""
    over_records: Interval | None
    """Of new records with these seeds."""
    equivalence_interval: Interval | None
    """Of level 1 - 2 alpha."""
    p: float | None
    adjusted_p: float | None
    """By step-down max-T over the family and the looks."""
    equivalence_p: float | None
    """Of two one-sided tests against the margin, with its own error."""
    adjusted_equivalence_p: float | None
    """Likewise adjusted, over the family of equivalences."""
    improvement: Interval | None
    """Share of seeds on which the arm is better."""
    verdict: Verdict
    alpha: float
    margin: Margin
    diverged_pairs: DivergedPairs
    components: Components | None
    """What the difference varies by."""
    look: int | None
    """Which look, from 1, these are of; None before the first."""
    decided: bool
    """Whether the verdict stands and no later look changes it."""
    cautions: tuple[Caution, ...] = ()
    """That of skew rests on all that the family has shown, be it after the look that decided."""

    @property
    def significant(self) -> bool:
        """Whether the mean differs from zero by the adjusted test, whatever its size."""
        return self.adjusted_p is not None and self.adjusted_p <= self.alpha

    @property
    def beyond_margin(self) -> bool:
        """Whether all of the interval lies beyond the margin, on one side."""
        value, found = self.margin.value, self.interval
        if value is None or not self.margin.usable or found is None or found.low is None or found.high is None:
            return False
        return found.low > value or found.high < -value

    def turned(self) -> Judgement:
        """With its numbers in the unit of a metric where higher is better, as it is judged by their opposite."""
        each = (self.interval, self.over_seeds, self.over_records, self.equivalence_interval)
        both, seeds, records, same = (None if own is None else own.turned() for own in each)
        mean = None if self.mean is None else 0.0 - self.mean
        return replace(
            self, mean=mean, interval=both, over_seeds=seeds, over_records=records, equivalence_interval=same
        )


def without_survivorship(found: Verdict, diverged: DivergedPairs) -> Verdict:
    """Undecided instead of a verdict that only the surviving runs support.

    An arm that diverged where the baseline did not is neither better nor equivalent, whatever its other seeds say;
    where the baseline did, the arm is neither worse nor equivalent.

    >>> one = DivergedPairs(arm=1, seeds=9)
    >>> str(without_survivorship(Verdict.BETTER, one)), str(without_survivorship(Verdict.WORSE, one))
    ('undecided', 'worse')
    """
    refused = {Verdict.BETTER, Verdict.EQUIVALENT} if diverged.arm else set()
    refused |= {Verdict.WORSE, Verdict.EQUIVALENT} if diverged.baseline else set()
    return Verdict.UNDECIDED if found in refused else found


def judge_family(family: Mapping[Key, Evidence], rule: Rule, pool: Sequence[PairedTable] = ()) -> dict[Key, Judgement]:
    """Judges every comparison, look by look; what is decided at one look stays.

    Differences and equivalences are two families. What is decided leaves its own smaller and keeps its place in the
    other: those that are left there are not just any, and at the level of so few they would err too often. So does one
    without two seeds: a missing run makes no other comparison easier. `pool`: tables of
    the study's other comparisons with the baseline, whose variances tell of those here.

    >>> import numpy as np
    >>> values = np.array([-0.011, -0.012, -0.013, -0.011, -0.012, -0.013])[:, None]
    >>> arm = Evidence(PairedTable(values, np.ones(1), tuple(range(6))))
    >>> found = judge_family({"arm": arm}, Rule(margin=0.01))["arm"]
    >>> str(found.verdict), round(found.mean, 4)
    ('better', -0.012)
    """
    judged = _look_by_look(family, rule, pool) if rule.looks else _Look(rule, None).judged(family, pool)
    tables = {key: _until(own.table, rule, judged[key].look) for key, own in family.items()}
    last = max((j.look or 0 for j in judged.values()), default=0)
    beside = [_until(table, rule, last) for table in (*pool, *(own.half for own in family.values()))]
    skewed = skewed_among({key: t for key, t in tables.items() if t is not None}, [t for t in beside if t is not None])
    return {
        key: replace(j, cautions=cautions_of(tables[key], j.margin, j.diverged_pairs, key in skewed))
        for key, j in judged.items()
    }


def _look_by_look(family: Mapping[Key, Evidence], rule: Rule, pool: Sequence[PairedTable]) -> dict[Key, Judgement]:
    found: dict[Key, Judgement] = {}
    for index, count in enumerate(rule.looks):
        seeds = frozenset(rule.seeds[:count])
        waiting = {key: own for key, own in family.items() if key not in found or not found[key].decided}
        if not waiting or not any(seeds <= own.finished for own in waiting.values()):
            break
        here = {key: own if seeds <= own.finished else Evidence(None) for key, own in waiting.items()}
        decided = tuple(own.verdict for key, own in found.items() if key not in waiting)
        judged = _Look(rule, index, decided).judged(here, pool)
        found |= {key: own for key, own in judged.items() if seeds <= waiting[key].finished}
    unseen = {key: own for key, own in family.items() if key not in found}
    return {key: found[key] if key in found else _described(unseen[key], rule) for key in family}


def _until(table: PairedTable | None, rule: Rule, look: int | None) -> PairedTable | None:
    """Its rows up to a look, from 1; all where there are no looks, or where none was come to."""
    if table is not None and rule.looks and look:
        table = table.of_seeds(rule.seeds[: rule.looks[look - 1]])
    return table if table is not None and table.seeds else None


@dataclass(frozen=True)
class _Look:
    """The family at one look."""

    rule: Rule
    index: int | None
    """From 0; None where there is one look, with all the seeds there are."""
    decided: tuple[Verdict, ...] = ()
    """Before; what the other family decided counts in this one for as long as the study goes on."""
    looks: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", self.rule.looks or (max(1, len(self.rule.seeds)),))

    def judged(self, family: Mapping[Key, Evidence], pool: Sequence[PairedTable]) -> dict[Key, Judgement]:
        seen = {key: self._restricted(own) for key, own in family.items()}
        tables = {key: own.table for key, own in seen.items() if own.table is not None}
        own = _crossed([*tables.values(), *filter(None, map(self._of_look, pool))])
        found = dict(zip(tables, own, strict=False))
        p = {key: self._spent(found[key].p() if key in found else None, 2) for key in family}
        rho = correlation_of(tables)
        equal = self.decided.count(Verdict.EQUIVALENT)
        adjusted = dict(zip(p, step_down(list(p.values()), rho, places=equal), strict=True))
        same = self._equivalences(seen, found, rho)
        return {
            key: _judgement(seen[key], found.get(key), (adjusted[key], *same[key]), self.rule, self.index)
            for key in family
        }

    def _restricted(self, own: Evidence) -> Evidence:
        table, half = map(self._of_look, (own.table, own.half))
        by_look = own.diverged_by_look
        diverged = by_look[self.index] if by_look and self.index is not None else own.diverged
        return Evidence(table, half, diverged, finished=own.finished)

    def _of_look(self, table: PairedTable | None) -> PairedTable | None:
        return _until(table, self.rule, None if self.index is None else self.index + 1)

    def _spent(self, p: float | None, sided: int) -> float:
        return 1.0 if p is None else spent(p, self.looks, self.index or 0, sided)

    def _equivalences(
        self, seen: Mapping[Key, Evidence], found: Mapping[Key, Crossed], rho: float
    ) -> dict[Key, tuple[float | None, float | None, Margin]]:
        """(p, adjusted p, margin) of each."""
        margins = {key: margin_of(own.half, self.rule.margin, self.rule.alpha) for key, own in seen.items()}
        p = equivalence_p({k: (own, found.get(k)) for k, own in _tables(seen).items()}, margins)
        spends = [self._spent(p.get(key), 1) for key in seen]
        different = len(self.decided) - self.decided.count(Verdict.EQUIVALENT)
        adjusted = step_down(spends, rho, sided=1, places=different)
        return {
            key: (p.get(key), None if p.get(key) is None else value, margins[key])
            for key, value in zip(seen, adjusted, strict=True)
        }


def _tables(seen: Mapping[Key, Evidence]) -> dict[Key, tuple[PairedTable, PairedTable | None]]:
    return {key: (own.table, own.half) for key, own in seen.items() if own.table is not None}


def _crossed(tables: Sequence[PairedTable]) -> list[Crossed]:
    return moderated([crossed(table) for table in tables])


def _described(own: Evidence, rule: Rule) -> Judgement:
    """Of a comparison that no look has come to: numbers, and nothing decided."""
    found = crossed(own.table) if own.table is not None else None
    margin = margin_of(own.half, rule.margin, rule.alpha)
    return _judgement(own, found, (None, None, None, margin), rule, None, seen=False)


def _judgement(
    own: Evidence,
    found: Crossed | None,
    tests: tuple[float | None, float | None, float | None, Margin],
    rule: Rule,
    index: int | None,
    seen: bool = True,
) -> Judgement:
    adjusted, same_p, adjusted_same, margin = tests
    tested = seen and found is not None and found.error is not None
    verdict = Verdict.UNDECIDED
    if tested and adjusted_same is not None and adjusted_same <= rule.alpha:
        verdict = Verdict.EQUIVALENT
    elif tested and found is not None and adjusted is not None and adjusted <= rule.alpha:
        verdict = Verdict.BETTER if found.mean < 0 else Verdict.WORSE
    verdict = without_survivorship(verdict, own.diverged)
    several = found is not None and found.error is not None
    level = 1 - rule.alpha
    return Judgement(
        n=found.n if found else 0,
        records=found.test_records if found and found.records > 1 else None,
        mean=found.shown if found else None,
        interval=found.interval(level) if found and several else None,
        over_seeds=found.over_seeds(level) if found else None,
        over_records=found.over_records(level) if found else None,
        equivalence_interval=found.interval(1 - 2 * rule.alpha) if found and several else None,
        p=found.p() if found and tested else None,
        adjusted_p=adjusted if tested else None,
        equivalence_p=same_p if tested else None,
        adjusted_equivalence_p=adjusted_same if tested else None,
        improvement=improvement_probability(own.table.by_seed.tolist(), level) if own.table is not None else None,
        verdict=verdict,
        alpha=rule.alpha,
        margin=margin,
        diverged_pairs=own.diverged,
        components=found.components if found else None,
        look=None if not seen else (index or 0) + 1,
        decided=verdict is not Verdict.UNDECIDED,
    )
