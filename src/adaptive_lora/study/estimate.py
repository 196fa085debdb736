"""What a study will cost, before it is run: runs, parameters, memory, time, and what its seeds can decide."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.measuring import in_goes
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.stats.design import Costs
from adaptive_lora.stats.power import Design
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.stats.spreads import Pilot
from adaptive_lora.study.lock import undecidable
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.outlook import Outlook, StudyCosts, design_of, outlook
from adaptive_lora.study.plan_task import PlanTask, needed
from adaptive_lora.study.planning_phase import measuring_progress
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.pricing import PATIENCE, seconds_of, seconds_per_token, timed_update
from adaptive_lora.study.progress import ProgressListener, Silent
from adaptive_lora.study.scoring import metric_of_study
from adaptive_lora.training.adapter import attached, set_training, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.fidelity import spread
from adaptive_lora.training.head import largest_logits
from adaptive_lora.training.memory import members_at_once, state_bytes
from adaptive_lora.training.quantised import dequantised_bytes, model_bytes
from adaptive_lora.training.reference import update

_TRIED_TOKENS = 1000
"""Of the validation records on which evaluation is timed."""
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
    """About: weights, adapters with gradient and AdamW state, activations (measured), logits."""
    planning_seconds: float
    """Of these, what is measured for plans: each distinct measurement once."""
    seconds: float
    """All runs, from timed updates and evaluations on this machine."""
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
    cost = _by_bank(prepared, members, total) if spec.engine == "bank" else _by_reference(prepared, members[0])
    steps = [cell.steps for cell in matrix.cells]
    each = Costs(sum(steps) / len(steps) * cost.update + spec.data.validation * cost.record, cost.record)
    once = planning_seconds + cost.frozen
    costs, design = StudyCosts(each, once, matrix), design_of(spec, matrix, pilot)
    return Estimate(
        runs={phase.value: count for phase, count in counts.items()},
        parameters=parameters,
        steps=matrix.by_key[matrix.baseline.name, spec.budgets[0]].steps,
        memory_bytes=_weights(prepared) + max(cost.working_bytes, _scoring(prepared)),
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


def _like_uniform(task: PlanTask) -> RankPlan:
    """Ranks as equal as the budget allows."""
    ranks = spend(task.modules, {m.name: 1.0 for m in task.modules}, task.budget.parameters)
    return RankPlan(task.strategy.name, task.budget.parameters, task.modules, ranks, task.scaling)


@dataclass(frozen=True)
class _Cost:
    update: float
    """Seconds of one adapter's update."""
    record: float
    """Seconds to evaluate one adapter on one record."""
    frozen: float
    """Seconds to evaluate the frozen model before the first run."""
    working_bytes: int
    """What training takes besides the base model."""


def _by_bank(prepared: PreparedStudy, members: Sequence[Member], runs: int) -> _Cost:
    checkpointing = prepared.study.spec.train.activation_checkpointing
    with contextlib.ExitStack() as stack:
        for count in (1, 8):  # many side by side cost less each where a pass is short, and too long to try where not
            count = min(runs, max(count, torch.get_num_threads() if prepared.base.device.type == "cpu" else 1))
            together = list(itertools.islice(itertools.cycle(members), count))
            bank = stack.enter_context(Bank(prepared.base, together, checkpointing=checkpointing))
            first = timed_update(bank)
            if count >= min(runs, 8) or first[0] > PATIENCE / 3:
                break
            stack.close()
        per_token = seconds_per_token(bank, first)
        record = _per_record(prepared, bank.evaluate) / len(together)
        batch = sum(bank.tokens.values()) / len(together) / (1 - bank.padding_share)
        positions = min(bank.chunk_tokens, batch * runs) * bank.workers
        activations = positions * bank.bytes_per_position()
    plans = [member.plan for member in members]
    adapters = min(runs, members_at_once(prepared.base, plans)) * max(state_bytes(prepared.base, p) for p in plans)
    vocabulary = prepared.base.model.config.get_text_config().vocab_size
    logits = 3 * 4 * min(largest_logits(prepared.base.device), int(positions) * vocabulary)
    examples = members[0].examples
    tokens = members[0].options.batch_size * sum(len(example.ids) for example in examples) / len(examples)
    frozen = _frozen_seconds(prepared) + record * len(prepared.splits.test)  # once by the bank, to compare
    return _Cost(per_token * tokens, record, frozen, int(adapters + activations + logits))


def _per_record(prepared: PreparedStudy, evaluated: Callable[[Sequence[Example]], object]) -> float:
    """Seconds that a validation record of mean length takes, by some of them."""
    records = prepared.splits.validation
    some = [records[i] for i in spread(records, _TRIED_TOKENS)]
    tokens = sum(len(record.ids) for record in some)
    return _seconds(lambda: evaluated(some)) / tokens * sum(len(record.ids) for record in records) / len(records)


def _frozen_seconds(prepared: PreparedStudy) -> float:
    """Of the model by itself on validation and test."""
    base, splits = prepared.base, prepared.splits
    each = _per_record(prepared, lambda some: evaluate(base.model, some, base.device))
    return each * (len(splits.validation) + len(splits.test))


def _by_reference(prepared: PreparedStudy, member: Member) -> _Cost:
    options, examples = member.options, member.examples
    with attached(prepared.base, member.plan, member.seed, options.dropout) as model:
        optimizer = torch.optim.AdamW(trainable(model).values())
        set_training(model, True)
        times = [
            _seconds(lambda step=step: update(model, optimizer, member.batch(step), options, step))  # type: ignore[misc]
            for step in range(4)
        ]
        set_training(model, False)
        record = _per_record(prepared, lambda some: evaluate(model, some, prepared.base.device))
    longest = max(len(example.ids) for example in examples)
    logits = 3 * 4 * options.batch_size * longest * prepared.base.model.config.get_text_config().vocab_size
    working = state_bytes(prepared.base, member.plan) + logits
    return _Cost(sorted(times[1:])[1], record, _frozen_seconds(prepared), working)


def _unspent(label: str, plan: RankPlan) -> str:
    return (
        f"{label} spends {plan.trainable_parameters:,} of {plan.budget:,} parameters: its {len(plan.modules)} modules "
        "hold no more, or their sizes do not divide it; arms of unequal size are hard to compare."
    )


def _seconds(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _weights(prepared: PreparedStudy) -> int:
    """Of the base; where it is quantised, also of one weight at a time that each pass dequantises."""
    model = prepared.base.model
    passes = torch.get_num_threads() if prepared.base.device.type == "cpu" else 1
    return model_bytes(model) + passes * dequantised_bytes(model, model.dtype)


def _scoring(prepared: PreparedStudy) -> int:
    """A gradient for every target weight, where a strategy measures."""
    arms = [(find_strategy(arm.strategy), arm.options) for arm in prepared.study.spec.arms if arm.strategy]
    measures = any(strategy.basis(check_options(strategy, options)) == "data" for strategy, options in arms)
    return 4 * sum(m.d_in * m.d_out for m in prepared.modules) if measures else 0


def _warnings(prepared: PreparedStudy, parameters: dict[str, int]) -> list[str]:
    spec = prepared.study.spec
    found = []
    if not prepared.study.matrix.comparisons:
        found.append("no primary comparison: the study describes and gives no verdict.")
    elif refused := undecidable(prepared.study):
        found.append(f"`run` will refuse this study: {refused[1]}.")
    if command := metric_of_study(prepared.study).command:
        found.append(f"the time that `{shlex.join(command)}` takes, once an evaluation run, is not counted.")
    if prepared.study.matrix.fixed_rates and len(spec.arms) > 1:
        found.append("one learning rate for all arms: a difference may be the rate's; give a grid and tuning seeds.")
    found += prepared.notes() + prepared.warnings()
    fixed = {arm.name for arm in spec.arms if arm.ranks is not None}
    sizes = {n for label, n in parameters.items() if label.split(" at ")[0] not in fixed}
    if fixed and len(set(parameters.values())) > len(sizes):
        found.append(f"{', '.join(sorted(fixed))}: fixed ranks, of a size of their own; not equal in parameters.")
    return found
