"""What does not matter: by default a quarter of what half the budget costs on this very task.

Half the parameters cost h = loss(half) - loss(whole); an arm within h / 4 of the baseline is worth less than about an
eighth of the parameters. h is measured on the same seeds and records, so its error counts: the arm is equivalent where
both d + h/4 > 0 and d - h/4 < 0 are shown (two one-sided tests, Schuirmann 1987, of linear contrasts of paired runs).
Where half the budget is not shown to be worse, the task cannot tell ranks apart, and nothing is called equivalent.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from adaptive_lora.stats.crossed import Crossed, PairedTable, crossed
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.moderation import moderated

Key = TypeVar("Key", bound=Hashable)
SHARE = 0.25
"""Of what half the budget costs."""
SCALE = 0.01
"""Nats per token, about 1 % of perplexity: where a margin is wanted before it is measured."""


@dataclass(frozen=True)
class Margin:
    """How far from the baseline an arm may be and still be called equivalent."""

    value: float | None
    """In the metric's unit; None where it is to be measured, and was not."""
    interval: Interval | None
    """Where it was measured; None for a number of the study's own."""
    usable: bool
    """Whether equivalence may be claimed: not where half the budget is not shown to be worse."""

    @property
    def measured(self) -> bool:
        """Whether it is a share of what half the budget costs."""
        return self.interval is not None or self.value is None

    def __str__(self) -> str:
        return "unknown" if self.value is None else f"{self.value:.4g}"


def margin_of(half: PairedTable | None, number: float | None, alpha: float) -> Margin:
    """The study's own number, or `SHARE` of what half the budget costs.

    >>> margin_of(None, 0.01, 0.05).value
    0.01
    """
    if number is not None:
        return Margin(number, None, True)
    if half is None or not half.seeds:
        return Margin(None, None, False)
    found = crossed(half)
    cost = found.interval(1 - alpha)
    low, high = (None if end is None else SHARE * end for end in (cost.low, cost.high))
    above = None if found.error is None else 1 - (found.p_below() or 0.0)
    interval = Interval(SHARE * cost.mean, low, high, cost.n, cost.level, cost.over)
    return Margin(SHARE * found.shown, interval, above is not None and above <= alpha and found.mean > 0)


Tables = tuple[tuple[PairedTable, PairedTable | None], Crossed | None]


def equivalence_p(family: Mapping[Key, Tables], margins: Mapping[Key, Margin]) -> dict[Key, float]:
    """The larger p of the two one-sided tests, of those whose margin is known and usable."""
    fixed, measured = {}, {}
    for key, ((table, half), found) in family.items():
        margin = margins[key]
        if not margin.usable or margin.value is None or found is None or found.error is None:
            continue
        if margin.measured and half is not None:
            measured[key] = table.plus(half, SHARE), table.plus(half, -SHARE)
        else:
            fixed[key] = _larger(found, found, margin.value)
    if not measured:
        return fixed
    lower, upper = (moderated([crossed(pair[i]) for pair in measured.values()]) for i in (0, 1))
    own = {key: _larger(low, high, 0.0) for key, low, high in zip(measured, lower, upper, strict=True)}
    return fixed | {key: p for key, p in own.items() if p is not None}


def _larger(lower: Crossed, upper: Crossed, margin: float) -> float:
    below, above = lower.p_below(-margin), upper.p_below(margin)
    return 1.0 if below is None or above is None else max(1 - below, above)
