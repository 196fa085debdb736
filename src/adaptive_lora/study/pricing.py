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
    """Seconds that it takes to take these measurements in one go; to the end where that is soon."""
    began = time.perf_counter()
    marks: list[tuple[float, int]] = []

    def watch(now: MeasuringProgress) -> None:
        progress(now)
        if now.step:
            marks.append((time.perf_counter() - began, now.step))
            if len(marks) >= _FEWEST and marks[-1][0] > PATIENCE and now.step < now.steps:
                raise _Enough(now.steps)

    try:
        for _ in take(together, watch):
            pass
    except _Enough as enough:
        (first, begun), (last, done), (steps,) = marks[0], marks[-1], enough.args
        return float(first + (last - first) / (done - begun) * (steps - begun))
    return time.perf_counter() - began


def seconds_per_token(bank: Bank) -> float:
    """Of training, by the updates of an open bank: as many as patience allows, of which the first only warms up."""
    updates: list[tuple[float, int]] = []
    while bank.running and (len(updates) < _FEWEST or sum(seconds for seconds, _ in updates) < PATIENCE):
        began = time.perf_counter()
        bank.step()
        updates.append((time.perf_counter() - began, sum(bank.tokens.values())))
    counted = updates[1:] or updates
    return sum(seconds for seconds, _ in counted) / sum(tokens for _, tokens in counted)
