"""Takes measurements: equal ones once, and together what one pass or one bank of short runs gives together.

wanted = [m for request in requests for m in measurements(needs, request)]
for taken in take([m for m in wanted if m.key not in stored]):
    stored |= taken.results
measured = collect(needs, request, stored)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from adaptive_lora.errors import UsageError
from adaptive_lora.measures import adalora, calibration_pass, marginal_gain, over_ranked, weights
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Value, plain_group
from adaptive_lora.measures.request import Measurement, MeasurementKey, Request, key_of
from adaptive_lora.planning.strategies.decorators import take_outside
from adaptive_lora.planning.strategies.registry import OUTSIDE_MEASURES

GROUPS: dict[str, MeasureGroup] = {
    group.name: group
    for group in (weights.GROUP, calibration_pass.GROUP, over_ranked.GROUP, marginal_gain.GROUP, adalora.GROUP)
}
"""All groups by name, from cheap to dear; `register` adds to them."""


@dataclass(frozen=True)
class Measured:
    """What one request got: what a strategy reads, and what goes into a plan's provenance."""

    scores: Mapping[str, Mapping[str, Value]]
    """Measure -> module -> value."""
    facts: Mapping[str, Any]
    """Seconds by group, calibration records, and what else a measure reports."""


@dataclass(frozen=True)
class Taken:
    """What was taken in one go; all of it is to be stored before the next."""

    results: Mapping[MeasurementKey, MeasurementResult | Exception]
    """An error stands where one measurement failed; it cost the others nothing."""
    counts: Mapping[str, int]
    """`gradient_passes`, `forward_passes`, `short_runs`: what it really took, each shared one counted once."""
    seconds: float


@dataclass(frozen=True)
class MeasuringProgress:
    """Where measuring stands."""

    group: str
    measures: tuple[str, ...]
    """What is being taken."""
    seeds: tuple[int, ...]
    done: int
    """Measurements finished, of `total`."""
    total: int
    step: int
    """Batches or updates done in this go, of `steps`."""
    steps: int


@dataclass(frozen=True)
class _Control:
    progress: Callable[[MeasuringProgress], None]
    should_stop: Callable[[], bool]
    total: int
    done: list[Measurement] = field(default_factory=list)

    def tick(self, group: MeasureGroup, batch: Sequence[Measurement], step: int, steps: int) -> None:
        """Reports, and stops where that is wanted."""
        if self.should_stop():
            raise KeyboardInterrupt
        measures = tuple(dict.fromkeys(m.measure for m in batch))
        seeds = tuple(dict.fromkeys(m.request.seed for m in batch))
        self.progress(MeasuringProgress(group.name, measures, seeds, len(self.done), self.total, step, steps))


def register(group: MeasureGroup) -> None:
    """Makes the measures of a group known; UsageError where one of its names is taken."""
    taken = {measure for known in GROUPS.values() for measure in known.inputs} & group.inputs.keys()
    if taken or group.name in GROUPS:
        raise UsageError(f"There is a measure {min(taken, default=group.name)!r} already. Give yours another name.")
    GROUPS[group.name] = group


def group_of(measure: str) -> MeasureGroup:
    """The group that a measure belongs to; UsageError where there is none."""
    if (own := OUTSIDE_MEASURES.get(measure)) is not None and measure not in GROUPS:
        GROUPS[measure] = replace(plain_group(measure, partial(take_outside, own), own.effort), name=own.name)
    for group in GROUPS.values():
        if measure in group.inputs:
            return group
    known = ", ".join(measure for group in GROUPS.values() for measure in group.inputs)
    raise UsageError(f"There is no measure {measure!r}. There are: {known}.")


def measurements(needs: Iterable[str], request: Request) -> list[Measurement]:
    """One measurement for each measure that is needed of a request, with its key."""
    found = []
    for need in needs:
        group = group_of(need)
        found.append(Measurement(key_of(need, group.inputs[need], request, group.version), request))
    return found


def take(
    wanted: Iterable[Measurement],
    progress: Callable[[MeasuringProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Taken]:
    """Takes all that is wanted in the fewest passes and banks, cheap ones first.

    Measurements with equal keys are taken once. `should_stop` is asked before each go, and after every batch
    and every update; a yes is raised as KeyboardInterrupt.
    """
    distinct = list({measurement.key: measurement for measurement in wanted}.values())
    control = _Control(progress, should_stop, len(distinct))
    for group in list(GROUPS.values()):
        for batch in _batches(group, [m for m in distinct if m.measure in group.inputs]):
            for taken in _take(group, batch, control):
                yield taken
                control.done.extend(batch[: len(taken.results)])


def collect(
    needs: Sequence[str], request: Request, stored: Mapping[MeasurementKey, MeasurementResult | Exception]
) -> Measured:
    """What a request needs, out of what was taken; raises the error that stands in the place of a result."""
    scores: dict[str, Mapping[str, Value]] = {}
    facts: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for measurement in measurements(needs, request):
        result = stored[measurement.key]
        if isinstance(result, Exception):
            raise result
        scores[measurement.measure] = result.values
        seconds |= result.facts["seconds"]
        facts |= result.facts
    return Measured(scores, {**facts, "seconds": seconds} if needs else {})


def measure(
    needs: Sequence[str],
    request: Request,
    progress: Callable[[MeasuringProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """`take` and `collect` for one request; raises what a measure raised."""
    found: dict[MeasurementKey, MeasurementResult | Exception] = {}
    for taken in take(measurements(needs, request), progress, should_stop):
        found |= taken.results
    return collect(needs, request, found)


def _batches(group: MeasureGroup, wanted: Sequence[Measurement]) -> list[list[Measurement]]:
    """What is taken in one go: of one base and training, equal by the group's own rule, and not too many."""
    gathered: dict[Hashable, list[Measurement]] = {}
    for measurement in wanted:
        request = measurement.request
        context = id(request.base), request.modules, request.training.bank, request.training.loss
        gathered.setdefault((context, group.together(measurement)), []).append(measurement)
    size = group.at_once
    return [batch[at : at + size] for batch in gathered.values() for at in range(0, len(batch), size)]


def _take(group: MeasureGroup, batch: Sequence[Measurement], control: _Control) -> Iterator[Taken]:
    """One go; half and half again where it fails as a whole, so that one bad measurement costs no other."""
    control.tick(group, batch, 0, 0)
    began = time.perf_counter()
    try:
        found = group.take(batch, lambda step, steps: control.tick(group, batch, step, steps))
    except Exception as error:
        failure = error
    else:
        yield _taken(group, batch, found, time.perf_counter() - began)
        return
    if len(batch) == 1:
        yield Taken({batch[0].key: failure}, {}, time.perf_counter() - began)
        return
    # The traceback holds the frames of the failed go, and they their memory.
    del failure
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _take(group, part, control)


def _taken(group: MeasureGroup, batch: Sequence[Measurement], found: GroupResult, seconds: float) -> Taken:
    own = {"seconds": {group.name: seconds * found.share}}
    results = {
        m.key: result if isinstance(result, Exception) else MeasurementResult(result.values, {**result.facts, **own})
        for m, result in zip(batch, found.results, strict=True)
    }
    return Taken(results, found.counts, seconds)
