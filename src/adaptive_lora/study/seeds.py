"""How a study file names seeds: a number of them, or the seeds themselves."""

from __future__ import annotations

from typing import Any

SEEDS_FROM = {"evaluation": 0, "tuning": 1000}
"""Where counted seeds begin, so that those that tune never meet those that evaluate."""

MOST_SEEDS = 10_000
"""Larger numbers are taken for a mistake."""


def expand_seeds(value: Any, phase: str) -> Any:
    """A count as that many seeds; anything else as it is.

    >>> expand_seeds(2, "tuning"), expand_seeds([5, 6], "tuning")
    ([1000, 1001], [5, 6])
    """
    first = SEEDS_FROM[phase]
    whole = isinstance(value, int) and not isinstance(value, bool) and value <= MOST_SEEDS
    return list(range(first, first + value)) if whole else value
