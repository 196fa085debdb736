"""What measuring and training take, by their first steps: for estimates that are not to take long themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from adaptive_lora.measures.measuring import MeasuringProgress, take
from adaptive_lora.measures.request import Measurement
from adaptive_lora.training.bank import Bank

PATIENCE = 1.5
"""Seconds after which the steps seen so far must do."""
_FEWEST = 2
"""Steps that are waited for, however long they take; the first pays for warming up."""


class _Enough(BaseException):
    """Ends what is timed, as Ctrl-C would."""


def seconds_of(together: Sequence[Measurement], progress: Callable[[MeasuringProgress], None]) -> float:
    """Seconds that it takes to take these measurements in one go; to the end where that is soon.

    Raises what stands in the place of a result by then.
    """
    began = time.perf_counter()
    marks: list[tuple[float, int]] = []

    def watch(now: MeasuringProgress) -> None:
        progress(now)
        if now.step:
            marks.append((time.perf_counter() - began, now.step))
            if len(marks) >= _FEWEST and marks[-1][0] > PATIENCE and now.step < now.steps:
                raise _Enough(now.steps)

    try:
        for taken in take(together, watch):
            for result in taken.results.values():
                if isinstance(result, Exception):
                    raise result
    except _Enough as enough:
        (first, begun), (last, done), (steps,) = marks[0], marks[-1], enough.args
        return float(first + (last - first) / (done - begun) * (steps - begun))
    return time.perf_counter() - began


Update = tuple[float, int]
"""Seconds and tokens."""


def timed_update(bank: Bank) -> Update:
    """One update of an open bank."""
    began = time.perf_counter()
    bank.step()
    return time.perf_counter() - began, sum(bank.tokens.values())


def seconds_per_token(bank: Bank, first: Update) -> float:
    """Of training, by as many further updates as there are and patience allows; the first only warms up."""
    updates = [first]
    while bank.running and (len(updates) < _FEWEST or sum(seconds for seconds, _ in updates) < PATIENCE):
        updates.append(timed_update(bank))
    counted = updates[1:] or updates
    return sum(seconds for seconds, _ in counted) / sum(tokens for _, tokens in counted)
