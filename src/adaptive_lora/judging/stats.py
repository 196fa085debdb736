"""Statistics over runs: what was resampled is always the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with a two-sided t interval."""

    mean: float
    low: float | None
    """Nothing with fewer than two seeds."""
    high: float | None
    n: int
    level: float


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean ± t(n - 1) · s / sqrt(n).

    >>> mean_interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Interval(mean, None, None, n, level)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, level)


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p that an exact paired test can reach: 2 / 2^n."""
    return min(1.0, 2.0 / 2.0**seeds)


def seeds_needed(alpha: float, comparisons: int) -> int:
    """The fewest paired seeds with which `comparisons` under Holm can all be decided: 2 / 2^n <= alpha / m.

    >>> seeds_needed(0.05, 1), seeds_needed(0.05, 6)
    (6, 8)
    """
    return math.ceil(math.log2(2 * comparisons / alpha))
