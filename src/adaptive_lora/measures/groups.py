"""What a group of measures is: names, the inputs they depend on, and the function that takes them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.request import Measurement, Request

Value = float | list[float]
"""Of one module: a number, or a spectrum in descending order."""


class Tick(Protocol):
    """Called after step k of n (a part of a batch of a pass, an update of short runs); raises KeyboardInterrupt to
    stop. `share` of the work is done by then, where it is not k / n."""

    def __call__(self, step: int, steps: int, share: float | None = None) -> None: ...


def no_tick(step: int, steps: int, share: float | None = None) -> None:
    """Neither progress nor a stop."""


def part_of(tick: Tick, before: int, total: int) -> Tick:
    """Progress of a part that has `before` steps behind it, of `total` in all."""
    return lambda step, steps, share=None: tick(before + step, total)


@dataclass(frozen=True)
class MeasurementResult:
    """The values of one measurement, and what it cost. JSON keeps both exactly."""

    values: Mapping[str, Value]
    """Module -> value."""
    facts: Mapping[str, Any]
    """Seconds by group, calibration records, what short runs cost, and what else a measure reports."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `MeasurementResult(**...)` reads them back."""
        return {"values": dict(self.values), "facts": dict(self.facts)}


@dataclass(frozen=True)
class GroupResult:
    """What a group found in one go."""

    results: Sequence[MeasurementResult | Exception]
    """One for each measurement, in their order; an error where one of them failed by itself."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """`gradient_passes` and `forward_passes` over calibration batches, `short_runs` trained, each counted once."""
    share: float = 1.0
    """Share of the seconds that one measurement accounts for: 1 / n where n runs were trained side by side."""


@dataclass(frozen=True)
class MeasureGroup:
    """Measures that come from the same pass or the same training."""

    name: str
    inputs: Mapping[str, tuple[str, ...]]
    """Measure -> the inputs (`request.INPUTS`) that its value depends on, besides base and modules."""
    take: Callable[[Sequence[Measurement], Tick], GroupResult]
    """Takes measurements together: all of one base, one set of modules, one bank and loss."""
    together: Callable[[Measurement], Hashable] = lambda measurement: measurement.key
    """Measurements with equal values are given to `take` at once; by default each by itself."""
    at_once: int = 32
    """Most measurements given to `take` at once."""


def calibration_facts(request: Request) -> dict[str, Any]:
    """How many records and tokens were used, and which: their hash."""
    records = [example for batch in request.batches for example in batch]
    return {
        "calibration_records": len(records),
        "calibration_tokens": sum(len(example.ids) for example in records),
        "calibration_hash": request.calibration_hash,
    }


def check_values(measure: str, values: Mapping[str, Value]) -> TrainingError | None:
    """An error where values are not finite, or all 0: no ranks follow from them."""
    sums = {name: value if isinstance(value, float) else math.fsum(value) for name, value in values.items()}
    if bad := [name for name, value in sums.items() if not math.isfinite(value)]:
        return TrainingError(f"The score {measure} of {bad[0]} is not finite; use float32 for the base model.")
    if not any(sums.values()):
        return TrainingError(f"The score {measure} is 0 everywhere; use float32 for the base model.")
    return None
