"""How lists, rates and intervals are written in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.stats.estimators import Interval


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(number: int, noun: str) -> str:
    """With an s, but for one.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def number(value: float | None, form: str) -> str:
    """As `format` writes it, with a true minus and a space before %; nothing for nothing.

    >>> number(-0.0035, "+.4f"), number(0.25, ".0%")
    ('−0.0035', '25 %')
    """
    return "" if value is None else format(value, form).replace("-", "−").replace("%", " %")


def written(interval: Interval, signed: bool = False) -> str:
    """Mean, interval and n; without a sign, a mean below zero and its interval are turned round.

    >>> written(Interval(-0.08, -0.11, -0.05, 3, 0.95)), written(Interval(-0.08, None, None, 1, 0.95), signed=True)
    ('0.080 [0.050, 0.110] over 3 seeds', '−0.080 over 1 seed')
    """
    turned = interval.mean < 0 and not signed
    mean, low, high = interval.mean, interval.low, interval.high
    if turned:
        mean, low, high = -mean, None if high is None else -high, None if low is None else -low
    ends = "" if low is None or high is None else f" [{number(low, '.3f')}, {number(high, '.3f')}]"
    over = counted(interval.n, interval.over.removesuffix("s"))
    return f"{number(mean, '+.3f' if signed else '.3f')}{ends} over {over}"
