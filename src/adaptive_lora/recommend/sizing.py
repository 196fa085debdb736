"""How large a study fits the time: pure arithmetic on a measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptive_lora.recommend.evidence import Trial, worth_trying
from adaptive_lora.study.lock import LEAST_AT_A_LOOK, LEAST_SEEDS

BUDGETS = 3
"""Uniform at half of the budget, at it, and at twice of it."""
TUNING_RUNS = 4
"""Three rates, and one more where the best lies at the end."""
SHARE, SHARE_AT_CAP = 0.85, 0.95
"""Of the time there is, what the seeds of the ladder are planned to take, and those that further looks may add:
machines are not always as fast as in their first seconds, and the deadline ends what goes on too long."""
MOST_SEEDS = 12
LADDER = (
    (300, 3, 12), (150, 3, 12), (150, 2, 12), (150, 2, 8), (100, 2, 8), (100, 2, 6), (64, 2, 6), (64, 2, 4), (48, 2, 4),
    (32, 2, 4), (24, 2, 4), (20, 2, 4), (16, 2, 4), (12, 2, 4), (16, 1, 4), (12, 1, 4), (32, 0, 3), (24, 0, 3),
    (16, 0, 3), (16, 0, 2), (12, 0, 2), (8, 0, 2),
)  # fmt: skip
"""(updates, strategies, evaluation seeds) of the studies that are thought of, the best first."""
TEST, VALIDATION = (32, 400), (16, 100)
"""Least and most records of a split."""
HELD_OUT = 0.4
"""Of few records, at most this share is not for training."""
FEWEST_RECORDS = 40
"""With fewer there is no test to speak of."""


@dataclass(frozen=True)
class Speed:
    """What a machine takes, in seconds."""

    trained: float
    """A record in an update, forward and back."""
    evaluated: float
    """A record of one adapter, forward."""
    alone: float
    """A record in an update of a single adapter, without others beside it."""
    start: float
    """Loading model and data, once more."""
    machine: str = ""
    """What was measured: `cpu, 2 threads`."""


@dataclass(frozen=True)
class Size:
    """A study: how long its runs are, how many there are, on how many records they are judged."""

    steps: int
    batch_size: int
    strategies: int
    seeds: int
    train: int
    validation: int
    test: int

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many seeds it is judged; none of a study that only describes.

        One at three where there are four: a deadline that takes the last leaves a look behind.

        >>> [Size(24, 4, tried, seeds, 96, 24, 96).looks for tried, seeds in ((2, 8), (2, 4), (0, 3))]
        [(4, 6, 8), (3, 4), ()]
        """
        if not self.strategies:
            return ()
        first = LEAST_AT_A_LOOK if self.seeds == LEAST_SEEDS else LEAST_SEEDS
        return (*range(first, self.seeds, 2), self.seeds)

    @property
    def trials(self) -> Sequence[Trial]:
        """The strategies that it tries beside uniform ranks."""
        return worth_trying(self.strategies, self.steps)

    @property
    def runs_a_seed(self) -> int:
        """Of the first seeds."""
        return BUDGETS + self.strategies


def size_of(steps: int, strategies: int, seeds: int, records: int, batch_size: int) -> Size:
    """With as many records as go with these updates, and as there are.

    `records`: usable ones that ask different things.
    """
    seen, out = steps * batch_size, int(HELD_OUT * records)
    test = min(max(TEST[0], min(seen * 3 // 4, TEST[1])), max(1, out * 3 // 4))
    validation = min(max(VALIDATION[0], min(seen // 4, VALIDATION[1])), max(1, out - test))
    return Size(steps, batch_size, strategies, seeds, min(seen, records - test - validation), validation, test)


def seconds_of(size: Size, speed: Speed) -> float:
    """All of a study, if no look ends it early.

    >>> seconds_of(Size(10, 4, 0, 2, 40, 10, 20), Speed(trained=0.5, evaluated=0.1, alone=0.6, start=5.0))
    236.0
    """
    run = size.steps * size.batch_size * speed.trained + size.validation * speed.evaluated
    later = size.seeds - size.looks[0] if size.looks else 0  # twice the budget has the seeds of the first look alone
    runs = size.seeds * size.runs_a_seed - later
    planned = sum((t.updates * size.batch_size + 2 * t.records) * speed.trained for t in size.trials) * size.seeds
    frozen = 3 * (size.validation + size.test) * speed.evaluated  # by itself, and once by the bank
    return speed.start + frozen + planned + TUNING_RUNS * run + runs * (run + size.test * speed.evaluated)


def fitting(seconds: float, speed: Speed, records: int, batch_size: int) -> Size | None:
    """The best study of the ladder that fits, with more seeds where there is time left; None where none does."""
    for steps, strategies, seeds in LADDER:
        size = size_of(steps, strategies, seeds, records, batch_size)
        if seconds_of(size, speed) <= SHARE * seconds:
            return _with_more_seeds(size, seconds, speed)
    return None


def least_seconds(speed: Speed, records: int, batch_size: int) -> float:
    """The time in which the smallest study of the ladder fits."""
    return min(seconds_of(size_of(*row, records, batch_size), speed) for row in LADDER) / SHARE


def _with_more_seeds(size: Size, seconds: float, speed: Speed) -> Size:
    more = replace(size, seeds=min(MOST_SEEDS, size.seeds + (2 if size.strategies else 1)))
    if more == size or seconds_of(more, speed) > SHARE_AT_CAP * seconds:
        return size
    return _with_more_seeds(more, seconds, speed)


def largest_bank(size: Size, seconds: float, speed: Speed) -> int:
    """Runs trained together: those of as many seeds as take an eighth of the time, of one at least."""
    run = size.steps * size.batch_size * speed.trained + (size.validation + size.test) * speed.evaluated
    return size.runs_a_seed * max(1, int(seconds / 8 / run / size.runs_a_seed))
