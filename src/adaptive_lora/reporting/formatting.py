"""How numbers, intervals, counts and lists are written in sentences, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from jinja2.runtime import LoopContext

from adaptive_lora.stats.estimators import Interval

BY_ERROR = "±"
"""The last sign of a form that leaves the decimals to the interval: two digits of its half width."""
PLACES = 4
"""Decimals of what has no interval to say how many."""


def formatted(value: str | float | Interval | None, form: str = "") -> str:
    """A value as `format` writes it, with a true minus and a space before %; an interval with its ends; "" for None.

    >>> formatted(Interval(-0.012, -0.02, 0.001, 9, 0.95), "+.3f"), formatted(0.25, ".0%"), formatted(None)
    ('−0.012 [−0.020, +0.001]', '25 %', '')
    >>> formatted(Interval(-0.01234, -0.13, 0.11, 9, 0.95), "+±")
    '−0.01 [−0.13, +0.11]'
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Interval):
        form = _by_error(form, value)
        return f"{formatted(value.mean, form)} {interval_ends(value, form)}".strip()
    return format(value, _by_error(form, None)).replace("-", "−").replace("%", " %")


def _by_error(form: str, interval: Interval | None) -> str:
    """The form with its decimals."""
    return f"{form.removesuffix(BY_ERROR)}.{places(interval)}f" if form.endswith(BY_ERROR) else form


def places(interval: Interval | None) -> int:
    """Decimals that show two digits of an interval's half width; four without one.

    >>> places(Interval(0.0, -0.0123, 0.0123, 9, 0.95)), places(Interval(5.0, -35.0, 45.0, 9, 0.95)), places(None)
    (3, 0, 4)
    """
    if interval is None or interval.low is None or interval.high is None or not interval.high > interval.low:
        return PLACES
    return min(9, max(0, 1 - math.floor(math.log10((interval.high - interval.low) / 2))))


def interval_ends(interval: Interval, form: str = "") -> str:
    """`[low, high]`; empty for an interval without ends.

    >>> interval_ends(Interval(0.0, -0.02, 0.02, 9, 0.95), "+.2f")
    '[−0.02, +0.02]'
    """
    if interval.low is None or interval.high is None:
        return ""
    form = _by_error(form, interval)
    return f"[{formatted(interval.low, form)}, {formatted(interval.high, form)}]"


def interval_mean(interval: Interval, form: str = "") -> str:
    """What stands before `interval_ends`, with as many decimals.

    >>> interval_mean(Interval(0.0123, -0.1, 0.1, 9, 0.95), "+±")
    '+0.01'
    """
    return formatted(interval.mean, _by_error(form, interval))


def signed(value: float | None, places: int = 4) -> str:
    """With its sign, a true minus for negative numbers; "" for None.

    >>> signed(-0.0035), signed(2.0, 1)
    ('−0.0035', '+2.0')
    """
    return formatted(value, f"+.{places}f")


def magnitude(value: float | None) -> str:
    """The size of a difference without its sign: four places, or one digit where these would be zeros; "" for None.

    >>> magnitude(-0.012), magnitude(-2e-6)
    ('0.0120', '2e-06')
    """
    if value is None:
        return ""
    return f"{abs(value):.4f}" if abs(value) >= 5e-5 else f"{abs(value):.0e}"


def percent(share: float | None, places: int = 0) -> str:
    """A share as percent; "" for None.

    >>> percent(0.8), percent(0.1234, 1)
    ('80 %', '12.3 %')
    """
    return formatted(share, f".{places}%")


def rate(value: float | None) -> str:
    """A learning rate, a margin or a level in as few digits as it takes; "" for None.

    >>> rate(3e-4), rate(0.05)
    ('0.0003', '0.05')
    """
    return formatted(value, "g")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun, in the plural where it is not one.

    >>> counted(1, "seed"), counted(3000, "seed"), counted(2, "loss", "losses")
    ('1 seed', '3,000 seeds', '2 losses')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def agreeing(subject: int | Sequence[object], one: str, several: str) -> str:
    """The word that agrees with a number, or with how many a list has.

    >>> agreeing(1, "is", "are"), agreeing(["a", "b"], "is", "are")
    ('is', 'are')
    """
    return one if (subject if isinstance(subject, int) else len(subject)) == 1 else several


def listed(names: Sequence[str], most: int | None = None) -> str:
    """a; a and b; a, b and c; of more than `most`, the first ones and how many more.

    >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2)
    ('a, b and c', 'a, b and 1 more')
    """
    if most is not None and len(names) > most:
        names = [*names[:most], f"{len(names) - most:,} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def comma(loop: LoopContext, every: int | None = None) -> str:
    """What stands after an entry of a list that a template writes in a loop; `every`: how many there are in all.

    Of `xs` with five entries, this is `xs | listed(2)`:

    >>> loop = LoopContext("ab", "", lambda *_: "")
    >>> "".join(f"{x}{comma(state, 5)}" for x, state in loop)
    'a, b and 3 more'
    """
    more = (every or loop.length) - loop.length
    if loop.last:
        return f" and {more:,} more" if more else ""
    return " and " if loop.revindex == 2 and not more else ", "


def number_range(values: Sequence[int], noun: str) -> str:
    """From the smallest to the largest of some counts, with their noun.

    >>> number_range([8, 2, 8], "seed"), number_range([1], "seed")
    ('2 to 8 seeds', '1 seed')
    """
    least, most = min(values), max(values)
    return counted(most, noun) if least == most else f"{least:,} to {counted(most, noun)}"


def significant(value: float | None) -> str:
    """Three digits, or as many as a number above a thousand has; "" for None.

    >>> significant(0.012345), significant(-0.5), significant(1234.5)
    ('0.0123', '−0.5', '1234')
    """
    return "" if value is None else formatted(value, ".0f" if abs(value) >= 1000 else ".3g")


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("paired on 3 items")
    'Paired on 3 items.'
    """
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, from two hours on hours.

    >>> duration(41.4), duration(700.0), duration(9000.0)
    ('41 s', '12 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def gigabytes(size: float) -> str:
    """Bytes, in two digits or so.

    >>> gigabytes(2.4e10), gigabytes(1.234e9), gigabytes(1.2e8)
    ('24 GB', '1.2 GB', '0.12 GB')
    """
    return f"{size / 1e9:.0f} GB" if size >= 9.95e9 else f"{size / 1e9:.2g} GB"


_WRITERS = (
    formatted, interval_ends, interval_mean, signed, magnitude, percent, rate, counted, agreeing, listed, comma,
    number_range, significant, sentence, duration, gigabytes,
)  # fmt: skip
FILTERS: Mapping[str, Callable[..., str]] = {writer.__name__: writer for writer in _WRITERS}
"""Name -> filter of every template: `{{ 3 | counted("seed") }}`."""
