"""What committed studies say of strategies: the table `evidence.json`, and who is worth trying by it.

The table is made by `scripts/evidence.py` from `results/`; an installed package has no other trace of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.base import ShortRunOptions

LONGEST_SEARCH = 0.5
"""A strategy that trains before it has a plan gets at most this share of a run's updates for it, or is not tried."""


@dataclass(frozen=True)
class Support:
    """A strategy, and how its committed comparisons with uniform ranks at equal parameters ended."""

    strategy: str
    options: Mapping[str, Any]
    better: int
    equivalent: int
    undecided: int
    worse: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Those with more evidence for them come first."""
        return self.worse - self.better, -self.equivalent, self.worse

    @property
    def comparisons(self) -> int:
        """How many there are."""
        return self.better + self.equivalent + self.undecided + self.worse


@functools.cache
def table() -> Mapping[str, Any]:
    """`comparisons`, `halves` and `rates` of the committed studies, one row each."""
    text = resources.files("adaptive_lora.recommend").joinpath("evidence.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def support(rows: Sequence[Mapping[str, Any]] | None = None) -> list[Support]:
    """Every strategy with the options that speak for it most, the best supported first.

    `rows`: comparisons of the table, by default all.

    >>> rows = [dict(strategy=s, options={}, verdict=v) for s, v in [("eva", "worse"), ("fim", "equivalent")]]
    >>> [own.strategy for own in support(rows)]
    ['fim', 'eva']
    """
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in table()["comparisons"] if rows is None else rows:
        key = row["strategy"], json.dumps(row["options"], sort_keys=True)
        counts.setdefault(key, {"better": 0, "equivalent": 0, "undecided": 0, "worse": 0})[row["verdict"]] += 1
    every = sorted((Support(s, json.loads(o), **own) for (s, o), own in counts.items()), key=lambda own: own.order)
    best: dict[str, Support] = {}
    for own in every:
        best.setdefault(own.strategy, own)
    return list(best.values())


def worth_trying(most: int, steps: int) -> list[Trial]:
    """At most so many strategies for runs of so many updates, the best supported first.

    One that trains before it has a plan must have been better somewhere: it costs more than uniform ranks do.

    >>> [trial.strategy for trial in worth_trying(2, steps=24)]
    ['lora-drop', 'attention-heavy']
    """
    trials = ((own, trial_of(own, steps)) for own in support())
    return [t for own, t in trials if not t.updates or (own.better and t.updates <= LONGEST_SEARCH * steps)][:most]


@dataclass(frozen=True)
class Trial:
    """A strategy as an arm of a study, and what each of its plans takes."""

    strategy: str
    options: Mapping[str, Any]
    updates: int
    """Trained before there is a plan."""
    records: int
    """Measured on, forward and back, where the plan needs a measurement without training."""


def trial_of(own: Support, steps: int) -> Trial:
    """A supported strategy in a study of runs of so many updates; a short run before the plan is shortened alike."""
    strategy, options = find_strategy(own.strategy), dict(own.options)
    checked, most = check_options(strategy, options), max(1, int(LONGEST_SEARCH * steps))
    if isinstance(checked, ShortRunOptions) and (checked.short_run_steps or 0) > most:
        options["short_run_steps"] = most
        checked = check_options(strategy, options)
    measures = strategy.effort_of(checked) in ("data", "gradients")
    calibration = checked.measuring()
    records = calibration.calibration_batches * calibration.calibration_batch_size if measures else 0
    return Trial(own.strategy, options, calibration.updates(steps), records)


def counts() -> dict[str, int]:
    """How many of all comparisons ended how, and `total`."""
    verdicts = [row["verdict"] for row in table()["comparisons"]]
    return {v: verdicts.count(v) for v in ("better", "equivalent", "undecided", "worse")} | {"total": len(verdicts)}
