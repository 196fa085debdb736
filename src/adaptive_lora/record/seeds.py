"""How a study file names seeds: a number of them, or the seeds themselves."""

from __future__ import annotations

import math
from typing import Any

SEEDS_FROM = {"evaluation": 0, "tuning": 1000}
"""Where counted seeds begin, so that those that tune never meet those that evaluate."""


def expand_seeds(value: Any, phase: str) -> Any:
    """A count as that many seeds; anything else as it is.

    >>> expand_seeds(2, "tuning"), expand_seeds([5, 6], "tuning")
    ([1000, 1001], [5, 6])
    """
    first = SEEDS_FROM[phase]
    whole = isinstance(value, int) and not isinstance(value, bool) and value <= 10_000
    return list(range(first, first + value)) if whole else value


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p that an exact paired test can reach: 2 / 2^n."""
    return min(1.0, math.ldexp(2.0, -seeds))


def seeds_needed(alpha: float, comparisons: int) -> int:
    """The fewest paired seeds with which `comparisons` under Holm can all be decided: 2 / 2^n <= alpha / m.

    >>> seeds_needed(0.05, 1), seeds_needed(0.05, 6)
    (6, 8)
    """
    return math.ceil(math.log2(2 * comparisons / alpha))
