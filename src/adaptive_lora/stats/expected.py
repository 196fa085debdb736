"""How many seeds a study with looks takes, and what it decides, by simulation of its rule on normal scores.

The rule is that of `stats.verdicts`, for many studies at once: at each look differences and equivalences are two
families, each by step-down over the comparisons that are undecided; what is decided stays. A comparison's p is spent
against alpha by `stats.looks.levels`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from adaptive_lora.stats.crossed import Components
from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.looks import STEPS_OF_T, levels
from adaptive_lora.stats.margins import SHARE
from adaptive_lora.stats.moderation import MOST_PRIOR
from adaptive_lora.stats.power import Design
from adaptive_lora.stats.spreads import Spread
from adaptive_lora.stats.step_down import first_level
from adaptive_lora.streams import numpy_stream

STUDIES = 2_000
"""Simulated: a standard error of a share of at most 0.011."""
TINY = float(np.finfo(np.float64).tiny)

Flags = NDArray[np.bool_]
Scores = tuple[Floats, float]
"""(t, its degrees of freedom)."""


@dataclass(frozen=True)
class Expected:
    """What a study comes to, on average, where every comparison has this true difference."""

    difference: float
    seeds: float
    """Of a comparison, when it is decided or at the cap."""
    last_seeds: float
    """Of the study, when its last comparison is decided or at the cap: so long the baseline is trained."""
    different: float
    """Share of comparisons called better or worse."""
    equivalent: float
    """Share called equivalent."""
    decided: float
    """Share decided either way."""


def expected(spread: Spread, design: Design, difference: float, studies: int = STUDIES) -> Expected:
    """What the looks of a design come to for comparisons of this spread; the same draws in every process.

    Without looks it is judged once, after all seeds. Where the margin is not known nothing is called equivalent.

    >>> from adaptive_lora.stats.crossed import Components
    >>> spread = Spread("a", "rank:8", Components(1.0, 0.0, 0.0), None, None, 0.0, True)
    >>> found = expected(spread, Design(12, 0.05, 1, None, records=100, looks=(6, 9, 12)), difference=3.0)
    >>> found.seeds < 7, found.decided
    (True, 1.0)
    """
    looks, shape = design.looks or (design.seeds,), (studies, max(1, design.comparisons))
    drawn = _drawn(spread, design, studies)
    waiting = np.ones(shape, dtype=bool)
    ended = np.full(shape, looks[-1])
    same, other = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for index, n in enumerate(looks):
        two_sided, one_sided = (_bounds(looks, index, design, sided) for sided in (2, 1))
        most = float(two_sided.max()), float(one_sided.max())
        p, equivalence_p = drawn.p_values(n, difference, waiting, most)
        now_same = _step_down(equivalence_p, waiting, one_sided)
        now_other = _step_down(p, waiting, two_sided) & ~now_same
        same, other = same | now_same, other | now_other
        ended[now_same | now_other] = n
        waiting &= ~(now_same | now_other)
    shares = float(other.mean()), float(same.mean())
    return Expected(difference, float(ended.mean()), float(ended.max(axis=1).mean()), *shares, sum(shares))


def _bounds(looks: tuple[int, ...], index: int, design: Design, sided: int) -> Floats:
    """The largest p that is rejected at a look, by how many comparisons are in the step; none with zero of them."""
    return np.array([-1.0, *_levels(looks, design.alpha, max(1, design.comparisons), design.correlation, sided)[index]])


@functools.lru_cache(maxsize=64)
def _levels(looks: tuple[int, ...], alpha: float, most: int, correlation: float, sided: int) -> list[list[float]]:
    """By look, and then by the number of comparisons from 1 to `most`."""
    own = [first_level(alpha, m, correlation, sided) for m in range(1, most + 1)]
    if len(looks) == 1:
        return [own]
    # As in `looks.spent`: t tests pay for their looks, and a one-sided test is one side of a two-sided one at 2 alpha.
    sides = 3 - sided
    every = [[p / sides for p in levels(looks, sides * level / STEPS_OF_T)] for level in own]
    return [list(by_look) for by_look in zip(*every, strict=True)]


def _step_down(p: Floats, waiting: Flags, bounds: Floats) -> Flags:
    """What is rejected in each study: the smallest p first, while each is within the bound for those that remain."""
    found = np.where(waiting, p, 2.0)
    order = np.argsort(found, axis=1)
    remaining = np.maximum(0, waiting.sum(axis=1, keepdims=True) - np.arange(p.shape[1]))
    passed = np.logical_and.accumulate(np.take_along_axis(found, order, axis=1) <= bounds[remaining], axis=1)
    rejected = np.zeros_like(waiting)
    np.put_along_axis(rejected, order, passed, axis=1)
    return rejected


@dataclass(frozen=True)
class _Effects:
    """Of seeds and of records on a contrast, in simulated studies, with their true variances."""

    by_seed: Floats
    """(studies, comparisons, seeds)."""
    by_record: Floats
    """(studies, comparisons): mean over the records, which are the same at every look."""
    seed_variance: float
    record_variance: float

    def plus(self, other: _Effects, factor: float, correlation: float) -> _Effects:
        return _Effects(
            self.by_seed + factor * other.by_seed,
            self.by_record + factor * other.by_record,
            _variance(self.seed_variance, other.seed_variance, factor, correlation),
            _variance(self.record_variance, other.record_variance, factor, correlation),
        )

    def t(self, true: float, n: int, records: int, pooled: tuple[float, Floats]) -> Scores:
        """Of the mean of the first n seeds, which is `true` on average.

        `pooled`: degrees of freedom that moderation adds to the seeds' variance, and draws of their chi².
        """
        freedom, chi2 = pooled
        own = self.by_seed[..., :n].var(axis=-1) * n
        seeds = (own + self.seed_variance * chi2) / (freedom + n - 1) / n
        variance = np.maximum(seeds + self.record_variance, TINY)
        mean = true + self.by_seed[..., :n].mean(axis=-1) + self.by_record
        # Of the seeds, or of the records where these are fewer, as in `Crossed.error`.
        return mean / np.sqrt(variance), min(freedom + n - 1, records - 1) if records > 1 else freedom + n - 1


def _variance(one: float, other: float, factor: float, correlation: float) -> float:
    """Of a sum of one and a multiple of the other."""
    return one + factor**2 * other + 2 * factor * correlation * float(np.sqrt(one * other))


@dataclass(frozen=True)
class _Drawn:
    """Simulated studies."""

    design: Design
    margin: float | None
    prior_freedom: float
    records: int
    own: _Effects
    half: _Effects | None
    """Of half the budget's cost, where the margin is measured."""

    def p_values(self, n: int, difference: float, waiting: Flags, most: tuple[float, float]) -> tuple[Floats, Floats]:
        """(two-sided p of a difference, p of equivalence) of each comparison with n seeds; 1 beyond `most`."""
        shape = self.own.by_record.shape
        added = min(self.prior_freedom, MOST_PRIOR * (n - 1))
        chi2 = numpy_stream(0, "expected", "pooled", n).chisquare(added, shape) if added > 0 else np.zeros(shape)
        pooled = added, chi2
        t, freedom = self.own.t(difference, n, self.records, pooled)
        p = 2 * _beyond((np.abs(t), freedom), waiting, most[0] / 2)
        if self.margin is None:
            return p, np.ones(shape)
        low, high = self.own, self.own
        if self.half is not None:
            low, high = (self.own.plus(self.half, share, self.design.correlation) for share in (SHARE, -SHARE))
            cost = self.half.t(self.margin / SHARE, n, self.records, (0.0, np.zeros((shape[0], 1))))
            waiting = waiting & (special.stdtr(cost[1], -cost[0]) <= self.design.alpha)
        above = _beyond(low.t(difference + self.margin, n, self.records, pooled), waiting, most[1])
        t, freedom = high.t(difference - self.margin, n, self.records, pooled)
        return p, np.maximum(above, _beyond((-t, freedom), waiting & (above <= most[1]), most[1]))


def _beyond(scores: Scores, wanted: Flags, most: float) -> Floats:
    """P(T > t), where that is wanted and at most `most`; 1 elsewhere.

    A t has heavier tails than a normal score, so that most of them need no t distribution to be known as too large.
    """
    t, freedom = scores
    near = wanted & (special.ndtr(-t) <= most)
    found = np.ones(t.shape)
    found[near] = special.stdtr(freedom, -t[near])
    return found


@functools.lru_cache(maxsize=4)
def _drawn(spread: Spread, design: Design, studies: int) -> _Drawn:
    """Series of comparisons that share a baseline, and last that of half the budget, which shares it too."""
    m, seeds = max(1, design.comparisons), (design.looks or (design.seeds,))[-1]
    records = design.records if spread.by_record else 1
    stream = numpy_stream(0, "expected", m, seeds)
    draws = [stream.standard_normal((studies, m + 2, size)) for size in (seeds, 1)]
    shared, single = np.sqrt(design.correlation), np.sqrt(1 - design.correlation)
    by_seed, by_record = (shared * z[:, -1:] + single * z[:, :-1] for z in draws)

    def effects(components: Components, which: slice) -> _Effects:
        seed, record = components.seeds + components.both / records, components.records / records
        return _Effects(np.sqrt(seed) * by_seed[:, which], np.sqrt(record) * by_record[:, which, 0], seed, record)

    half = effects(spread.half, slice(m, None)) if spread.half is not None else None
    own = effects(spread.difference, slice(0, m))
    return _Drawn(design, spread.margin, spread.prior_freedom, records, own, half)
