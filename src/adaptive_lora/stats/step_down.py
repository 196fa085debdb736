"""One family of comparisons, by step-down max-T: who shares a baseline errs together, and pays less than Holm's price.

Under a correlation rho between any two of the test's normal scores, m of them exceed z by chance with

    P(max |Z| >= z) = 1 - ∫ φ(x) [Φ((z - √rho x) / √(1 - rho)) - Φ((-z - √rho x) / √(1 - rho))]^m dx

(Dunnett 1955). The smallest p is held against m comparisons, the next against those that remain (Westfall and Young
1993; closed testing). rho = 0 is Šidák's step-down.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import special

from adaptive_lora.stats.crossed import PairedTable
from adaptive_lora.stats.estimators import Floats

Key = TypeVar("Key", bound=Hashable)
NODES = 64
MOST_CORRELATED = 0.9
"""A correlation estimated from few seeds is not trusted beyond this."""


def family_p(p: float, comparisons: int, correlation: float, sided: int = 2) -> float:
    """Chance that the smallest p of so many true null hypotheses is at most p.

    >>> round(family_p(0.01, 5, 0.0), 6), round(1 - 0.99**5, 6)
    (0.04901, 0.04901)
    """
    if p >= 1 or comparisons <= 1:
        return min(1.0, p)
    if p <= 0:
        return 0.0
    z = -float(special.ndtri(p / sided))
    points, weights = _nodes()
    shift, scale = np.sqrt(correlation) * points, np.sqrt(1 - correlation)
    inside = special.ndtr((z - shift) / scale)
    if sided == 2:
        inside = inside - special.ndtr((-z - shift) / scale)
    # By expm1 and log1p, so that tiny p keep their digits.
    missed = -np.expm1(comparisons * np.log(np.maximum(inside, 1e-300)))
    return float(min(1.0, max(p, weights @ missed)))


@functools.cache
def _nodes() -> tuple[Floats, Floats]:
    """Of a mean over a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return points, weights / weights.sum()


@functools.lru_cache(maxsize=4096)
def first_level(alpha: float, comparisons: int, correlation: float, sided: int = 2) -> float:
    """The p up to which the first step of the step-down rejects, where so many share alpha: `family_p` inverted.

    >>> round(first_level(0.05, 5, 0.0), 6), round(1 - 0.95**0.2, 6)
    (0.010206, 0.010206)
    """
    low, high = alpha / (2 * comparisons), alpha
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if family_p(middle, comparisons, correlation, sided) <= alpha else (low, middle)
    return low if comparisons > 1 else alpha


@dataclass(frozen=True)
class Family:
    """How many comparisons share alpha, and how they hang together."""

    alpha: float
    comparisons: int = 1
    correlation: float = 0.0

    def first_level(self, sided: int = 2) -> float:
        """The p up to which the first step of the step-down rejects; see `first_level`."""
        return first_level(self.alpha, self.comparisons, self.correlation, sided)


def step_down(p_values: Sequence[float], correlation: float, sided: int = 2, places: int = 0) -> list[float]:
    """Adjusted p values in the given order: rejecting where they are at most alpha holds the family's error.

    `places`: further members of the family, which cannot be rejected any more.

    >>> [round(p, 4) for p in step_down([0.03, 0.01], 0.0)]
    [0.03, 0.0199]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        largest = max(largest, family_p(p_values[index], places + len(p_values) - step, correlation, sided))
        adjusted[index] = largest
    return adjusted


def correlation_of(tables: Mapping[Key, PairedTable]) -> float:
    """Mean correlation between two comparisons' seed means, over the seeds that both have; between 0 and 0.9."""
    found = pairwise_correlations(list(tables.values()))
    return min(MOST_CORRELATED, max(0.0, sum(found) / len(found))) if found else 0.0


def pairwise_correlations(tables: Sequence[PairedTable]) -> list[float]:
    """Of every two comparisons' seed means that both vary over more than two seeds in common."""
    rows = [dict(zip(t.seeds, t.by_seed.tolist(), strict=True)) for t in tables]
    found = []
    for i, one in enumerate(rows):
        for other in rows[:i]:
            shared = [seed for seed in one if seed in other]
            a, b = (np.array([row[seed] for seed in shared]) for row in (one, other))
            if len(shared) > 2 and _varies(a) and _varies(b):
                found.append(float(np.corrcoef(a, b)[0, 1]))
    return found


def _varies(values: Floats) -> bool:
    """Not where all are the same, or so near to it that their variance is too small for a float."""
    return bool(np.ptp(values) > 0 and np.var(values) > 0)
