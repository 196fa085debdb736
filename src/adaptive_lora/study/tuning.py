"""What both ways of tuning speak of: results of tuning runs, and best rates at the end of what was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TuningResult = tuple[tuple[str, str], float, int, float | None]
"""((arm, budget), rate, seed, validation loss) of a finished tuning run; None where it diverged."""


@dataclass(frozen=True)
class Edge:
    """A best rate that lies at the end of its grid, so that a better one may lie beyond."""

    arm: str
    budget: str
    rate: float
    beyond: float
    """The next value to try."""
    trained: bool = True
    """Whether any rate of the grid is a candidate; where every one diverged, `rate` is the smallest."""
    by_steps: bool = False
    """Whether rates were added step by step, as often as may be: what helps is another start."""


def added_rates(
    before: Mapping[tuple[str, str], tuple[float, ...]], now: Mapping[tuple[str, str], tuple[float, ...]]
) -> str:
    """What a next round of tuning adds, in a line.

    >>> added_rates({("uniform", "rank:2"): (1e-3,)}, {("uniform", "rank:2"): (1e-3, 1.8e-3)})
    'learning rates go on: adding 0.0018 for uniform at rank:2'
    """
    cells: dict[tuple[float, ...], list[str]] = {}
    for (arm, budget), rates in now.items():
        new = tuple(rate for rate in rates if rate not in before.get((arm, budget), ()))
        cells.setdefault(new, []).append(f"{arm} at {budget}")
    parts = [
        f"{', '.join(f'{rate:g}' for rate in new)} for {', '.join(own) if len(own) < 4 else f'{len(own)} arms'}"
        for new, own in cells.items()
        if new
    ]
    return f"learning rates go on: adding {'; '.join(parts)}"
