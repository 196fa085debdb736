"""What a study will cost, before it is run: runs, parameters, memory, time, and what its seeds can decide."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptive_lora.measures.measuring import in_goes
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.stats.design import Costs
from adaptive_lora.stats.power import Design
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.stats.spreads import Pilot
from adaptive_lora.study.engines.scores import scorer_of
from adaptive_lora.study.estimated_cost import (
    answer_seconds,
    answering_seconds,
    cost_by_bank,
    cost_by_reference,
    frozen_seconds,
)  # fmt: skip
from adaptive_lora.study.lock import undecidable
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.outlook import Outlook, StudyCosts, design_of, outlook
from adaptive_lora.study.plan_task import PlanTask, needed
from adaptive_lora.study.planning_phase import measuring_progress
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.pricing import seconds_of
from adaptive_lora.study.progress import ProgressListener, Silent
from adaptive_lora.study.scoring import metric_of_study
from adaptive_lora.training.bank import Member
from adaptive_lora.training.memory import forget_peak

_SPENT = 0.99
"""A plan that spends less than this share of its budget is worth a warning."""


@dataclass(frozen=True)
class Estimate:
    """A study's size."""

    runs: dict[str, int]
    """Runs by phase."""
    parameters: dict[str, int]
    """Arm at budget -> trainable parameters of its plan; where that is measured, of equal ranks on its budget."""
    steps: int
    """Updates per run of the baseline."""
    memory_bytes: int
    """The most in use at a time, about, as `top` shows it (RES): interpreter and libraries, weights, adapters with
    gradient and AdamW state, activations, logits. On CUDA of the device, and without libraries."""
    planning_seconds: float
    """Of these, what is measured for plans: each distinct measurement once."""
    seconds: float
    """All of the study, from timed updates and evaluations on this machine, loading included."""
    design: Design
    outlook: Outlook | None
    """What its seeds and records would show, what it takes under several true differences, and the cheapest size, by
    the spread of a pilot's arms; None without a pilot."""
    warnings: tuple[str, ...]


def estimate(prepared: PreparedStudy, pilot: Pilot | None = None, listener: ProgressListener | None = None) -> Estimate:
    """Times the first steps of all that is measured, trained and evaluated, by the study's engine; nothing is written.

    `listener` is told what is measured for plans.

    What seeds and records can tell apart is reckoned from the spread of a `pilot`: another study's arms, or the tuning
    runs of this one.
    """
    spec, matrix = prepared.study.spec, prepared.study.matrix
    seed, rate = spec.seeds.evaluation[0], spec.train.learning_rate[0]
    first = [Run(Phase.EVALUATION, cell, rate, seed) for cell in matrix.cells]
    listener = listener or Silent()
    forget_peak(prepared.base.device)
    listener.stage("timing the frozen model")
    frozen = frozen_seconds(prepared)
    if metric_of_study(prepared.study).is_scored:
        listener.stage(f"opening {metric_of_study(prepared.study).title}")
    scorer = scorer_of(prepared)
    answers = answer_seconds(prepared)
    plans, planning_seconds = _plan_all(prepared, first, listener)
    listener.stage("timing a few steps")
    examples = prepared.training_examples(seed)
    members = [
        Member(plan=plan, options=prepared.training_options(run), seed=seed, examples=examples)
        for run, plan in zip(first, plans, strict=True)
    ]
    parameters = {run.cell.label: plan.trainable_parameters for run, plan in zip(first, plans, strict=True)}
    unspent = [
        _unspent(run.cell.label, plan)
        for run, plan in zip(first, plans, strict=True)
        if run.arm.ranks is None and plan.trainable_parameters < _SPENT * plan.budget
    ]
    counts = matrix.counts()
    total = sum(counts.values())
    by_bank = spec.engine == "bank"
    cost = cost_by_bank(prepared, members, total) if by_bank else cost_by_reference(prepared, members[0])
    steps = [cell.steps for cell in matrix.cells]
    each = Costs(sum(steps) / len(steps) * cost.update + spec.data.validation * cost.record, cost.record)
    answering = answering_seconds(prepared, scorer, plans[0])
    each = replace(each, record=each.record + answering * _share_scored(prepared) / spec.data.test)
    once = prepared.seconds + planning_seconds + frozen + cost.check + answers + answering
    costs, design = StudyCosts(each, once, matrix), design_of(spec, matrix, pilot)
    return Estimate(
        runs={phase.value: count for phase, count in counts.items()},
        parameters=parameters,
        steps=matrix.by_key[matrix.baseline.name, spec.budgets[0]].steps,
        memory_bytes=cost.memory_bytes,
        planning_seconds=planning_seconds,
        seconds=costs.seconds(counts[Phase.EVALUATION], spec.data.test),
        design=design,
        outlook=outlook(pilot, design, costs) if pilot else None,
        warnings=(*_warnings(prepared, parameters), *unspent),
    )


def _plan_all(
    prepared: PreparedStudy, first: Sequence[Run], listener: ProgressListener
) -> tuple[list[RankPlan], float]:
    """Plans of the cells at one seed, and the seconds that planning the whole study will take.

    Each distinct measurement of the study is counted once, at the price of one of its kind here. What is measured is
    not waited for: uniform ranks stand for those that would follow from it, which take as long to train.
    """
    tasks = [prepared.plan_task(run) for run in first]
    progress, price = measuring_progress(listener), dict[str, float]()
    for together in in_goes(m for task in tasks for m in needed(task)):
        each = seconds_of(together, progress) / len(together)
        for measurement in together:
            price[measurement.measure] = max(price.get(measurement.measure, 0.0), each)
    plans = [
        task if isinstance(task, RankPlan) else _like_uniform(task) if task.needs else task.plan({}, {})
        for task in tasks
    ]
    matrix, spec = prepared.study.matrix, prepared.study.spec
    runs = [
        *matrix.tuning_runs(),
        *matrix.evaluation_runs({cell.key: spec.train.learning_rate[0] for cell in matrix.cells}),
    ]
    keys = {m.key for run in runs for m in needed(prepared.plan_task(run))}
    return plans, sum(price[key.measure] for key in keys)


def _share_scored(prepared: PreparedStudy) -> float:
    """Of the cells, those whose runs the study's metric covers."""
    metric, cells = metric_of_study(prepared.study), prepared.study.matrix.cells
    return sum(metric.covers(cell.arm.name) for cell in cells) / len(cells)


def _like_uniform(task: PlanTask) -> RankPlan:
    """Ranks as equal as the budget allows."""
    ranks = spend(task.modules, {m.name: 1.0 for m in task.modules}, task.budget.parameters)
    return RankPlan(task.strategy.name, task.budget.parameters, task.modules, ranks, task.scaling)


def _unspent(label: str, plan: RankPlan) -> str:
    return (
        f"{label} spends {plan.trainable_parameters:,} of {plan.budget:,} parameters: its {len(plan.modules)} modules "
        "hold no more, or their sizes do not divide it; arms of unequal size are hard to compare."
    )


def _warnings(prepared: PreparedStudy, parameters: dict[str, int]) -> list[str]:
    spec = prepared.study.spec
    found = []
    if not prepared.study.matrix.comparisons:
        found.append("no primary comparison: the study describes and gives no verdict.")
    elif refused := undecidable(prepared.study):
        found.append(f"`run` will refuse this study: {refused[1]}.")
    metric = metric_of_study(prepared.study)
    if metric.has_own_records:
        by = f"`{shlex.join(metric.command)}`" if metric.command else f"the task of {metric.title}"
        found.append(f"the time that {by} takes, once an evaluation run, is not counted.")
    if prepared.study.matrix.fixed_rates and len(spec.arms) > 1:
        found.append("one learning rate for all arms: a difference may be the rate's; give a grid and tuning seeds.")
    found += prepared.notes() + prepared.warnings()
    fixed = {arm.name for arm in spec.arms if arm.ranks is not None}
    sizes = {n for label, n in parameters.items() if label.split(" at ")[0] not in fixed}
    if fixed and len(set(parameters.values())) > len(sizes):
        found.append(f"{', '.join(sorted(fixed))}: fixed ranks, of a size of their own; not equal in parameters.")
    return found
