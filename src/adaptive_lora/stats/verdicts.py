"""What a family of comparisons with the baseline says: equivalent, better, worse, or not decided."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.divergence import NONE_DIVERGED, DivergedPairs
from adaptive_lora.stats.estimators import (
    Interval,
    equivalence_interval,
    equivalence_p,
    holm,
    improvement_probability,
    interval_of,
    sign_flip_p,
)
from adaptive_lora.stats.power import seeds_to_call_equivalent, seeds_to_detect
from adaptive_lora.stats.run_table import Comparison

Key = TypeVar("Key", bound=Hashable)


class Verdict(StrEnum):
    """An arm against the baseline."""

    EQUIVALENT = "equivalent"
    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Judgement:
    """One comparison of a family, by the paired differences of its seeds; tests and intervals need two of them."""

    n: int
    mean: float | None
    interval: Interval | None
    """95 %."""
    equivalence_interval: Interval | None
    """Of level 1 - 2 alpha: within ±margin just where two one-sided tests at alpha reject."""
    p: float | None
    adjusted_p: float | None
    """Under Holm, over the family."""
    equivalence_p: float | None
    improvement: Interval | None
    """Share of seeds with the lower loss."""
    verdict: Verdict
    needed: int | None
    """Seeds that would decide with a power of 0.8, were mean and spread as found; None where decided, not known, too
    many, or where a run of a pair diverged."""
    alpha: float
    margin: float
    diverged_pairs: DivergedPairs

    @property
    def significant(self) -> bool:
        """Whether the mean differs from zero by the adjusted test, whatever its size."""
        return self.adjusted_p is not None and self.adjusted_p <= self.alpha


def verdict(differences: Sequence[float], margin: float, alpha: float, adjusted_p: float | None) -> Verdict:
    """The first that holds: equivalent, where the t interval of level 1 - 2 alpha lies within ±margin; better or worse,
    where `adjusted_p` is at most alpha, by the sign of the mean; undecided.

    >>> str(verdict([0.001, -0.001, 0.0], margin=0.01, alpha=0.05, adjusted_p=1.0))
    'equivalent'
    """
    if len(differences) < 2:
        return Verdict.UNDECIDED
    interval = equivalence_interval(differences, alpha)
    if interval.low is not None and interval.high is not None and -margin <= interval.low <= interval.high <= margin:
        return Verdict.EQUIVALENT
    if adjusted_p is None or adjusted_p > alpha:
        return Verdict.UNDECIDED
    return Verdict.BETTER if interval.mean < 0 else Verdict.WORSE


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


def judge_primary(
    arms: Sequence[ArmSummary], primary: Sequence[Mapping[str, str]], analysis: Mapping[str, Any]
) -> dict[Comparison, Judgement]:
    """A judgement for each primary comparison, one family over all budgets.

    One whose arm has no finished pair of runs keeps its place in the family.
    """
    found = {Comparison(arm.arm, arm.budget): arm for arm in arms}
    family = [Comparison(part["arm"], part["budget"]) for part in primary]
    differences = {c: [d for _, d in found[c].differences] if c in found else [] for c in family}
    diverged = {c: found[c].diverged_pairs for c in family if c in found}
    return judge_family(differences, analysis["margin"], analysis["alpha"], diverged)


def judge_family(
    comparisons: Mapping[Key, Sequence[float]],
    margin: float,
    alpha: float,
    diverged: Mapping[Key, DivergedPairs] | None = None,
) -> dict[Key, Judgement]:
    """Judges every comparison; p values are adjusted by Holm over all of them.

    A comparison with fewer than two seeds keeps its place in the family, so that a missing run makes no other
    comparison easier. `diverged`: pairs that differences lack by divergence, see `without_survivorship`.

    >>> found = judge_family({"arm": [-0.011, -0.012, -0.013, -0.011, -0.012, -0.013]}, 0.01, 0.05)["arm"]
    >>> str(found.verdict), round(found.mean, 4)
    ('better', -0.012)
    """
    p_values = [sign_flip_p(found) if len(found) > 1 else 1.0 for found in comparisons.values()]
    pairs = diverged or {}
    return {
        key: _judge(found, p, adjusted, len(comparisons), (margin, alpha), pairs.get(key, NONE_DIVERGED))
        for (key, found), p, adjusted in zip(comparisons.items(), p_values, holm(p_values), strict=True)
    }


def _judge(
    differences: Sequence[float],
    p: float,
    adjusted_p: float,
    comparisons: int,
    rule: tuple[float, float],
    diverged: DivergedPairs,
) -> Judgement:
    margin, alpha = rule
    n = len(differences)
    several = n > 1
    found = without_survivorship(verdict(differences, margin, alpha, adjusted_p), diverged)
    open_ = several and found is Verdict.UNDECIDED and not diverged.any
    interval = interval_of(differences) if n else None
    return Judgement(
        n=n,
        mean=interval.mean if interval else None,
        interval=interval if several else None,
        equivalence_interval=equivalence_interval(differences, alpha) if several else None,
        p=p if several else None,
        adjusted_p=adjusted_p if several else None,
        equivalence_p=equivalence_p(differences, margin) if several else None,
        improvement=improvement_probability(differences) if n else None,
        verdict=found,
        needed=_needed(differences, margin, alpha, comparisons) if open_ else None,
        alpha=alpha,
        margin=margin,
        diverged_pairs=diverged,
    )


def _needed(differences: Sequence[float], margin: float, alpha: float, comparisons: int) -> int | None:
    """The smaller number of seeds that would show, in four of five studies, a difference or an equivalence, were mean
    and spread as found; more than there are, in any case."""
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    ways = (seeds_to_detect(mean, sd, alpha, comparisons), seeds_to_call_equivalent(mean, sd, margin, alpha))
    seeds = min((way for way in ways if way is not None), default=None)
    return None if seeds is None else max(seeds, len(differences) + 1)
