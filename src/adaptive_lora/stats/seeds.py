"""How few seeds can decide anything at all."""

from __future__ import annotations

import math


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p that an exact paired test can reach: 2 / 2^n."""
    return min(1.0, math.ldexp(2.0, -seeds))


def seeds_needed(alpha: float, comparisons: int) -> int:
    """The fewest paired seeds with which `comparisons` under Holm can all be decided: 2 / 2^n <= alpha / m.

    >>> seeds_needed(0.05, 1), seeds_needed(0.05, 6)
    (6, 8)
    """
    return math.ceil(math.log2(2 * comparisons / alpha))
