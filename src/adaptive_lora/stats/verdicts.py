"""What a family of comparisons with the baseline says: equivalent, better, worse, or not decided."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

from adaptive_lora.stats.divergence import NOTHING, Lost
from adaptive_lora.stats.estimators import (
    Interval,
    equivalence_interval,
    equivalence_p,
    holm,
    improvement_probability,
    interval_of,
    sign_flip_p,
)
from adaptive_lora.stats.power import MOST, seeds_to_call_equivalent, seeds_to_detect

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
    interval95: Interval | None
    interval90: Interval | None
    p: float | None
    adjusted_p: float | None
    """Under Holm, over the family."""
    equivalence_p: float | None
    improvement: Interval | None
    """Share of seeds with the lower loss."""
    verdict: Verdict
    needed: int | None
    """Seeds that would decide with a power of 0.8, were mean and spread as found; nothing where decided, not known,
    too many, or where seeds are lost to divergence."""
    alpha: float
    margin: float
    lost: Lost

    @property
    def text(self) -> str:
        """The verdict in plain words.

        >>> judge_family({"arm": [-0.011, -0.012, -0.013, -0.011, -0.012, -0.013]}, 0.01, 0.05)["arm"].text
        'better by 0.0120'
        """
        if self.verdict is Verdict.UNDECIDED:
            return f"undecided ({self._outlook})"
        size = _in_words(self.mean or 0.0)
        if self.verdict is not Verdict.EQUIVALENT:
            return f"{self.verdict} by {size}{f' ({self.lost.text})' if self.lost.text else ''}"
        if self.adjusted_p is None or self.adjusted_p > self.alpha:
            return "equivalent"
        return f"equivalent ({'lower' if (self.mean or 0.0) < 0 else 'higher'} by {size})"

    @property
    def _outlook(self) -> str:
        if self.lost.text:
            return self.lost.text
        if self.n < 2:
            return "fewer than 2 seeds"
        return f"more than {MOST} seeds" if self.needed is None else f"about {self.needed} seeds would decide"


def verdict(differences: Sequence[float], margin: float, alpha: float, adjusted_p: float | None) -> Verdict:
    """The first that holds: equivalent, where the 90 % t interval lies within ±margin; better or worse, where
    `adjusted_p` is at most alpha, by the sign of the mean; undecided.

    >>> str(verdict([0.001, -0.001, 0.0], margin=0.01, alpha=0.05, adjusted_p=1.0))
    'equivalent'
    """
    if len(differences) < 2:
        return Verdict.UNDECIDED
    interval = equivalence_interval(differences)
    if interval.low is not None and interval.high is not None and -margin <= interval.low <= interval.high <= margin:
        return Verdict.EQUIVALENT
    if adjusted_p is None or adjusted_p > alpha:
        return Verdict.UNDECIDED
    return Verdict.BETTER if interval.mean < 0 else Verdict.WORSE


def withheld(found: Verdict, lost: Lost) -> Verdict:
    """Undecided instead of a verdict that the survivors alone give.

    An arm that diverged where the baseline did not is neither better nor equivalent, whatever its other seeds say;
    where the baseline did, the arm is neither worse nor equivalent.

    >>> str(withheld(Verdict.BETTER, Lost(arm=1, seeds=9))), str(withheld(Verdict.WORSE, Lost(arm=1, seeds=9)))
    ('undecided', 'worse')
    """
    refused = {Verdict.BETTER, Verdict.EQUIVALENT} if lost.arm else set()
    refused |= {Verdict.WORSE, Verdict.EQUIVALENT} if lost.baseline else set()
    return Verdict.UNDECIDED if found in refused else found


def judge_family(
    comparisons: Mapping[Key, Sequence[float]], margin: float, alpha: float, lost: Mapping[Key, Lost] | None = None
) -> dict[Key, Judgement]:
    """Judges every comparison; p values are adjusted by Holm over all of them.

    A comparison with fewer than two seeds keeps its place in the family, so that a missing run makes no other
    comparison easier. `lost`: seeds that differences lack by divergence, see `withheld`.
    """
    p_values = [sign_flip_p(found) if len(found) > 1 else 1.0 for found in comparisons.values()]
    gone = lost or {}
    return {
        key: _judge(found, p, adjusted, len(comparisons), (margin, alpha), gone.get(key, NOTHING))
        for (key, found), p, adjusted in zip(comparisons.items(), p_values, holm(p_values), strict=True)
    }


def _judge(
    differences: Sequence[float], p: float, adjusted_p: float, comparisons: int, rule: tuple[float, float], lost: Lost
) -> Judgement:
    margin, alpha = rule
    n = len(differences)
    several = n > 1
    found = withheld(verdict(differences, margin, alpha, adjusted_p), lost)
    open_ = several and found is Verdict.UNDECIDED and not lost.text
    interval = interval_of(differences) if n else None
    return Judgement(
        n=n,
        mean=interval.mean if interval else None,
        interval95=interval if several else None,
        interval90=equivalence_interval(differences) if several else None,
        p=p if several else None,
        adjusted_p=adjusted_p if several else None,
        equivalence_p=equivalence_p(differences, margin) if several else None,
        improvement=improvement_probability(differences) if n else None,
        verdict=found,
        needed=_needed(differences, margin, alpha, comparisons) if open_ else None,
        alpha=alpha,
        margin=margin,
        lost=lost,
    )


def _needed(differences: Sequence[float], margin: float, alpha: float, comparisons: int) -> int | None:
    """The smaller number of seeds that would show, in four of five studies, a difference or an equivalence, were mean
    and spread as found; more than there are, in any case."""
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    ways = (seeds_to_detect(mean, sd, alpha, comparisons), seeds_to_call_equivalent(mean, sd, margin))
    seeds = min((way for way in ways if way is not None), default=None)
    return None if seeds is None else max(seeds, len(differences) + 1)


def _in_words(difference: float) -> str:
    size = abs(difference)
    return f"{size:.4f}" if size >= 5e-5 else f"{size:.0e}"
