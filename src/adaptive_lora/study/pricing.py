"""What measuring and training take, by their first steps: for estimates that are not to take long themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.measuring import MeasuringProgress, take
from adaptive_lora.measures.request import Measurement
from adaptive_lora.training.bank import Bank

PATIENCE = 1.5
"""Seconds after which the steps seen so far must do."""
_FEWEST = 2
"""Steps that are waited for, as the first pays for warming up; where it takes most of our patience it must do alone."""
_LONG = 2 / 3
"""Of our patience; beside a step that takes so long warming up is little."""
_FEW_TOKENS, _WORTH = 500, 1.5
"""Tokens on which evaluation is timed first, and how many times as many are worth a second time."""


Mark = tuple[float, float]
"""Seconds since the beginning, and the share of the work that was done by then."""


class _Enough(BaseException):
    """Ends what is timed, as Ctrl-C would."""


def seconds_of(together: Sequence[Measurement], progress: Callable[[MeasuringProgress], None]) -> float:
    """Seconds that it takes to take these measurements in one go; to the end where that is soon.

    Raises what stands in the place of a result by then.
    """
    began = time.perf_counter()
    marks: list[Mark] = []

    def watch(now: MeasuringProgress) -> None:
        progress(now)
        if now.step:
            marks.append((time.perf_counter() - began, now.share))
            if _is_enough([0.0, *(seconds for seconds, _ in marks)]) and now.step < now.steps:
                raise _Enough

    try:
        for taken in take(together, watch):
            for result in taken.results.values():
                if isinstance(result, Exception):
                    raise result
    except _Enough:
        return _extended(marks)
    return time.perf_counter() - began


def _is_enough(marks: Sequence[float]) -> bool:
    """Whether steps that ended at these times, the first of which is the beginning, tell what the next will take."""
    return marks[-1] > PATIENCE * (_LONG if len(marks) <= _FEWEST else 1.0)


def _extended(marks: Sequence[Mark]) -> float:
    """Seconds of all work, by what was seen of it; the first step is not counted where there are others.

    >>> _extended([(2.0, 0.2), (3.0, 0.4)])
    6.0
    """
    (first, begun), (last, done) = (0.0, 0.0) if len(marks) == 1 else marks[0], marks[-1]
    return last + (last - first) / (done - begun) * (1 - done)


Update = tuple[float, int]
"""Seconds and tokens."""


def timed_update(bank: Bank) -> Update:
    """One update of an open bank."""
    began = time.perf_counter()
    bank.step()
    return time.perf_counter() - began, sum(bank.tokens.values())


def seconds_per_token(bank: Bank, first: Update) -> float:
    """Of training, by as many further updates as there are and patience allows; the first only warms up, unless it
    alone took too long."""
    updates, marks = [first], [0.0, first[0]]
    while bank.running and not _is_enough(marks):
        updates.append(timed_update(bank))
        marks.append(marks[-1] + updates[-1][0])
    counted = updates[1:] or updates
    return sum(seconds for seconds, _ in counted) / sum(tokens for _, tokens in counted)


def seconds_per_record(records: Sequence[Example], evaluated: Callable[[Sequence[Example]], object]) -> float:
    """That evaluating a record of mean length takes, by some of middle length, as many as patience allows."""
    total = sum(map(_length, records))
    evaluated([min(records, key=_length)])  # warms up
    some, seconds = _timed(records, _FEW_TOKENS, evaluated)
    allowed = _FEW_TOKENS * PATIENCE * _LONG / seconds
    if allowed > _WORTH * _FEW_TOKENS and len(some) < len(records):
        some, seconds = _timed(records, allowed, evaluated)
    return seconds / sum(map(_length, some)) * total / len(records)


def _timed(
    records: Sequence[Example], tokens: float, evaluated: Callable[[Sequence[Example]], object]
) -> tuple[list[Example], float]:
    """Records with about so many tokens, and the seconds that evaluating them takes."""
    some = typical(records, tokens)
    began = time.perf_counter()
    evaluated(some)
    return some, time.perf_counter() - began


def _length(example: Example) -> int:
    return len(example.ids)


def typical(examples: Sequence[Example], tokens: float) -> list[Example]:
    """Some of middle length, with about so many tokens in all; all of them where they have no more.

    >>> [len(example.ids) for example in typical([Example((0,) * n, 1, False) for n in (9, 5, 7, 30, 6)], tokens=20)]
    [7, 9]
    """
    order = sorted(examples, key=_length)
    count = min(len(order), max(1, round(len(order) * tokens / sum(map(_length, order)))))
    begin = (len(order) - count + 1) // 2
    return order[begin : begin + count]
