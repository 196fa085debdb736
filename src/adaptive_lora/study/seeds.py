"""How a study file names seeds: a number of them, or the seeds themselves."""

from __future__ import annotations

import operator
from typing import Any

from adaptive_lora.errors import UsageError

SEEDS_FROM = {"evaluation": 0, "tuning": 1000}
"""Where counted seeds begin, so that those that tune never meet those that evaluate."""

MOST_SEEDS = 10_000
"""Larger numbers are taken for a mistake."""


LARGEST_SEED = 2**63 - 1
"""What the ledger can keep."""


def check_seed(seed: Any) -> int:
    """A seed given in Python or on the command line; UsageError where it is no whole number of 63 bits and a sign."""
    try:
        found = operator.index(seed)
    except TypeError:
        found = LARGEST_SEED + 1
    if not -LARGEST_SEED - 1 <= found <= LARGEST_SEED:
        raise UsageError(f"A seed is a whole number below 2^63 ({LARGEST_SEED + 1:,}), got {str(seed)[:40]}.")
    return found


def expand_seeds(value: Any, phase: str) -> Any:
    """A count as that many seeds; anything else as it is.

    >>> expand_seeds(2, "tuning"), expand_seeds([5, 6], "tuning")
    ([1000, 1001], [5, 6])
    """
    first = SEEDS_FROM[phase]
    whole = isinstance(value, int) and not isinstance(value, bool) and value <= MOST_SEEDS
    return list(range(first, first + value)) if whole else value
