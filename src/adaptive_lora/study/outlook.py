"""What a study can show, what it will take under several true differences, and which size would be the cheapest."""

from __future__ import annotations

from dataclasses import dataclass

from adaptive_lora.stats.design import Costs, Plan, cheapest, plan_of
from adaptive_lora.stats.expected import Expected, expected
from adaptive_lora.stats.metrics import metric_of
from adaptive_lora.stats.power import ArmPower, Design, power_by_arm
from adaptive_lora.stats.run_table import Comparison, Phase
from adaptive_lora.stats.spreads import Pilot
from adaptive_lora.study.matrix import Cell, Role, StudyMatrix
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.sequential import shadowed_arm


@dataclass(frozen=True)
class ExpectedRuns:
    """A study in which every comparison has the same true difference, on average."""

    margins: int
    """That difference, in margins."""
    difference: float
    """In the metric's unit."""
    seeds: float
    """Of an arm: until it is decided, or the cap."""
    runs: float
    """All of the study, tuning included."""
    seconds: float
    decided: float
    """Share of comparisons that get a verdict."""


@dataclass(frozen=True)
class Size:
    """Numbers of seeds and records, judged once."""

    seeds: int
    records: int
    power: float
    """Chance that a difference as large as the margin is found."""
    equivalence_power: float
    """Chance that equivalence is shown where there is no difference."""
    seconds: float
    """All of the study."""


@dataclass(frozen=True)
class Outlook:
    """From the spread of a pilot."""

    power: tuple[ArmPower, ...]
    """Of each arm of the pilot, with this study's seeds and records."""
    typical: ArmPower | None
    """The one with the median width, by which all below is reckoned; None of a pilot without differences."""
    expected: tuple[ExpectedRuns, ...]
    """Under no effect, the margin and twice the margin; no effect alone where the margin is not known."""
    planned: Size | None
    """The study file's; None where the margin is not known."""
    cheapest: Size | None
    """The cheapest with a power of `POWER` of both kinds; None where there is none."""


@dataclass(frozen=True)
class StudyCosts:
    """What a study's runs take, in seconds."""

    each: Costs
    """Of one run on average."""
    once: float
    """Before the first run, however many there are."""
    matrix: StudyMatrix

    @property
    def fixed(self) -> float:
        """All but the evaluation runs; a tuning run is evaluated on no test record."""
        return self.once + self.matrix.counts()[Phase.TUNING] * self.each.run

    @property
    def twins(self) -> int:
        """Evaluation runs that are there once, whatever the number of seeds."""
        baselines = sum(cell.role is Role.BASELINE for cell in self.matrix.cells)
        return baselines if "twin" in self.matrix.spec.controls else 0

    def seconds(self, evaluation_runs: float, records: int) -> float:
        """Of all of the study with so many evaluation runs."""
        return self.fixed + self.each.of(evaluation_runs, records)


def design_of(spec: StudySpec, matrix: StudyMatrix, pilot: Pilot | None = None) -> Design:
    """What a study file asks of its seeds and records."""
    margin, metric = spec.analysis.margin, metric_of(spec.analysis.model_dump(mode="json"))
    return Design(
        seeds=len(spec.seeds.evaluation),
        alpha=spec.analysis.alpha,
        comparisons=max(1, len(matrix.comparisons)),
        margin=margin if isinstance(margin, float) else None,
        records=spec.data.test,
        looks=tuple(spec.seeds.looks),
        correlation=pilot.correlation if pilot else 0.0,
        unit=metric.unit,
        own_records=metric.has_own_records,
    )


def outlook(pilot: Pilot, design: Design, costs: StudyCosts) -> Outlook:
    """By the comparison with the median spread."""
    power = power_by_arm(pilot.spreads, design)
    if not power:
        return Outlook((), None, (), None, None)
    by_width = sorted(zip(power, pilot.spreads, strict=True), key=lambda pair: pair[0].half_width)
    typical, spread = by_width[len(by_width) // 2]
    true = [0.0] if spread.margin is None else [0.0, spread.margin, 2 * spread.margin]
    found = tuple(_runs(k, expected(spread, design, d), design, costs) for k, d in enumerate(true))
    if spread.margin is None:
        return Outlook(tuple(power), typical, found, None, None)
    best, own = cheapest(spread, design, costs.each), plan_of(spread, design, costs.each)
    return Outlook(tuple(power), typical, found, _size(own, costs), None if best is None else _size(best, costs))


def _runs(margins: int, found: Expected, design: Design, costs: StudyCosts) -> ExpectedRuns:
    matrix = costs.matrix
    evaluation = sum(_seeds(matrix, cell, found) for cell in matrix.cells) + costs.twins
    runs, seconds = matrix.counts()[Phase.TUNING] + evaluation, costs.seconds(evaluation, design.records)
    return ExpectedRuns(margins, found.difference, found.seeds, runs, seconds, found.decided)


def _seeds(matrix: StudyMatrix, cell: Cell, found: Expected) -> float:
    """What is decided stops, with the control that has its ranks; what a verdict needs goes on until the last does."""
    if matrix.is_brief(cell):
        return len(matrix.first_seeds)
    own = {Comparison(arm, cell.budget) for arm in (cell.arm.name, shadowed_arm(matrix, cell)) if arm is not None}
    return found.seeds if own & set(matrix.comparisons) else found.last_seeds


def _size(plan: Plan, costs: StudyCosts) -> Size:
    seconds = costs.seconds(plan.seeds * len(costs.matrix.cells) + costs.twins, plan.records)
    return Size(plan.seeds, plan.records, plan.power, plan.equivalence_power, seconds)
