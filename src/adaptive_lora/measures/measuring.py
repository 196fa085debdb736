"""Takes measurements: equal ones once, and together what one pass or one bank of short runs gives together.

wanted = [m for request in requests for m in measurements(needs, request)]
for taken in take([m for m in wanted if m.key not in stored]):
    stored |= taken.results
measured = collect(needs, request, stored)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from adaptive_lora.errors import UsageError
from adaptive_lora.measures import (
    adalora,
    calibration_pass,
    hindsight,
    marginal_gain,
    over_ranked,
    random_search,
    weights,
)
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick, Value, calibration_facts
from adaptive_lora.measures.request import Measurement, MeasurementKey, Request, key_of
from adaptive_lora.planning.strategies.decorators import take_outside
from adaptive_lora.planning.strategies.registry import OUTSIDE_MEASURES, OutsideMeasure

GROUPS: dict[str, MeasureGroup] = {
    group.name: group
    for group in (
        weights.GROUP,
        calibration_pass.GROUP,
        over_ranked.GROUP,
        adalora.GROUP,
        random_search.GROUP,
        marginal_gain.GROUP,
        hindsight.GROUP,
    )
}
"""All groups, from cheap to dear; `group_of` adds those of measures from outside."""


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
    """Parts of batches, or updates, done in this go, of `steps`."""
    steps: int
    share: float
    """Of this go's work that is done, about: steps are not all as long."""


def group_of(measure: str) -> MeasureGroup:
    """The group that a measure belongs to; UsageError where there is none."""
    if measure in OUTSIDE_MEASURES:
        return GROUPS.setdefault(measure, _outside_group(measure, OUTSIDE_MEASURES[measure]))
    for group in GROUPS.values():
        if measure in group.inputs:
            return group
    known = ", ".join(measure for group in GROUPS.values() for measure in group.inputs)
    raise UsageError(f"There is no measure {measure!r}. There are: {known}.")


def _outside_group(key: str, measure: OutsideMeasure) -> MeasureGroup:
    """A measure from outside the package, taken on one request at a time; the hash of its code is in its key."""

    def take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
        (request,) = (measurement.request for measurement in measurements)
        values = take_outside(measure, request.base, request.modules, request.batches)
        return GroupResult([MeasurementResult(values, calibration_facts(request))])

    return MeasureGroup(measure.name, {key: ("calibration",)}, take)


def measurements(needs: Iterable[str], request: Request) -> list[Measurement]:
    """One measurement for each measure that is needed of a request, with its key."""
    return [Measurement(key_of(need, group_of(need).inputs[need], request), request) for need in needs]


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
    done = 0

    def report(
        group: MeasureGroup, batch: Sequence[Measurement], step: int, steps: int, share: float | None = None
    ) -> None:
        if should_stop():
            raise KeyboardInterrupt
        measures = tuple(dict.fromkeys(m.measure for m in batch))
        seeds = tuple(dict.fromkeys(m.request.seed for m in batch))
        share = step / max(steps, 1) if share is None else share
        progress(MeasuringProgress(group.name, measures, seeds, done, len(distinct), step, steps, share))

    for group, batch in _goes(distinct):
        for taken in _take(group, batch, partial(report, group)):
            yield taken
            done += len(taken.results)


def in_goes(wanted: Iterable[Measurement]) -> list[list[Measurement]]:
    """What `take` takes together, in its order."""
    return [batch for _, batch in _goes({measurement.key: measurement for measurement in wanted}.values())]


def _goes(distinct: Iterable[Measurement]) -> list[tuple[MeasureGroup, list[Measurement]]]:
    every = list(distinct)
    return [
        (group, batch)
        for group in list(GROUPS.values())
        for batch in _batches(group, [m for m in every if m.measure in group.inputs])
    ]


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


def measure(needs: Sequence[str], request: Request) -> Measured:
    """`take` and `collect` for one request; raises what a measure raised."""
    found: dict[MeasurementKey, MeasurementResult | Exception] = {}
    for taken in take(measurements(needs, request)):
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


def _take(group: MeasureGroup, batch: Sequence[Measurement], report: Callable[..., None]) -> Iterator[Taken]:
    """One go; half and half again where it fails as a whole, so that one bad measurement costs no other."""
    report(batch, 0, 0)
    began = time.perf_counter()
    try:
        found = group.take(batch, partial(report, batch))
    except Exception as error:
        failure = error
    else:
        seconds = time.perf_counter() - began
        own = {"seconds": {group.name: seconds * found.share}}
        results = {
            m.key: each if isinstance(each, Exception) else MeasurementResult(each.values, {**each.facts, **own})
            for m, each in zip(batch, found.results, strict=True)
        }
        yield Taken(results, found.counts, seconds)
        return
    if len(batch) == 1:
        yield Taken({batch[0].key: failure}, {}, time.perf_counter() - began)
        return
    # The traceback holds the frames of the failed go, and they their memory.
    del failure
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _take(group, part, report)
