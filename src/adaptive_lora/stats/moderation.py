"""Variances of few seeds, drawn towards those of the other comparisons of the study.

With six seeds a comparison's own variance has five degrees of freedom, and a test on it little power. The comparisons
of a study train the same model on the same data, so that their variances resemble each other, though they are not
equal. Let them be draws of a scaled inverse chi² with d0 degrees of freedom about s0²; then

    s̃² = (d0 s0² + d s²) / (d0 + d)

has d0 + d degrees of freedom (Smyth 2004, `limma`), with d0 and s0² from the mean and the spread of log s². Where the
variances differ much d0 is small, and every comparison keeps its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from adaptive_lora.stats.crossed import Crossed

FEWEST = 4
"""Comparisons below which a spread of variances says nothing."""
MOST_PRIOR = 1.0
"""The prior has at most so many times a comparison's own degrees of freedom."""


def moderated(found: Sequence[Crossed], most: float = MOST_PRIOR) -> list[Crossed]:
    """Each with its seeds' variance drawn towards the others'.

    `most`: the prior has at most so many times the degrees of freedom of the comparison itself. The variances of arms
    that share a baseline resemble each other more than independent ones, which looks like a stronger prior than it is.
    """
    known = [c for c in found if c.seed_variance]
    if len(known) < FEWEST:
        return list(found)
    freedom, centre = prior([(float(c.seed_variance or 0), c.seed_freedom) for c in known])
    return [_towards(c, min(freedom, most * c.seed_freedom), centre) if c.seed_variance else c for c in found]


def _towards(own: Crossed, freedom: float, centre: float) -> Crossed:
    total = freedom + own.seed_freedom
    variance = (freedom * centre + own.seed_freedom * float(own.seed_variance or 0)) / total
    return replace(own, seed_variance=variance, seed_freedom=total)


def prior(variances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(d0, s0²) of variances with their degrees of freedom, by moments of log s².

    log s² - digamma(d/2) + log(d/2) has the mean log s0² - digamma(d0/2) + log(d0/2) and the variance
    trigamma(d/2) + trigamma(d0/2). d0 is infinite where they spread no more than equal variances would.
    """
    values, freedom = np.array(variances).T
    logs = np.log(values) - special.digamma(freedom / 2) + np.log(freedom / 2)
    spread = float(logs.var(ddof=1) - special.polygamma(1, freedom / 2).mean())
    if spread <= 0:
        return math.inf, math.exp(float(logs.mean()))
    d0 = 2 * _trigamma_inverse(spread)
    return d0, math.exp(float(logs.mean()) + float(special.digamma(d0 / 2)) - math.log(d0 / 2))


def _trigamma_inverse(value: float) -> float:
    """x > 0 with trigamma(x) = value, by bisection in log x."""
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if special.polygamma(1, math.exp(middle)) > value else (low, middle)
    return math.exp((low + high) / 2)
