"""Recovery: how much of the oracle plan's gain a strategy's plan reaches, on models whose right ranks are known.

On one planted model, at equal trainable parameters and the same rate, data, order and initialisation, one student
is trained for uniform, for the oracle, for the floor and for every strategy's plan. `stats.recovery` compares them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import StrategyError, TrainingError
from adaptive_lora.groundtruth.planting import (
    Directions,
    Planted,
    open_planted,
    plant,
    planted_plan,
    random_directions,
    sample_texts,
)
from adaptive_lora.groundtruth.students import CHUNK, Answers, StudentBank, answer_loss, answers_of, train_students
from adaptive_lora.groundtruth.truths import truth_ranks
from adaptive_lora.measures.over_ranked import spectrum
from adaptive_lora.measures.request import PlannedTraining
from adaptive_lora.measures.short_run import ShortRun, train_short_runs
from adaptive_lora.planning.budget import Budget, spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.posthoc_svd import pooled
from adaptive_lora.planning.strategies.registry import plain_strategy_name
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import label_loss
from adaptive_lora.training.options import TrainingOptions

REAL = "real"
"""The truth that is cut from a fine-tuning on real data instead of drawn."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all tasks of a comparison share."""

    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    budget: Budget
    training: TrainingOptions
    texts: Sequence[Example]
    """Real texts: their beginnings start what the planted model writes, their whole trains the `real` truth."""
    length: int = 48
    """Tokens of a text."""
    beginning: int = 8
    """Tokens of it that are real."""
    test: int = 120
    """Held-out texts."""
    probes: int = 16
    """Texts that effects are measured on."""
    effect: float = 1.0
    """How far the planted model lies from the frozen one, nats per token."""
    by_answers: bool = False
    """Whether gradients of the frozen model, and AdaLoRA, see the planted distributions as the bank does, in place of
    the tokens that were sampled from them, which are what a data set would have."""
    equal_cost: bool = False
    """Whether what a strategy trains before it has a plan is also given to uniform ranks, as a longer training, and to
    a search by chance, as more draws."""

    @property
    def scaling(self) -> Scaling:
        return Scaling("constant", ScalingPart().reference, self.budget.reference_rank)


@dataclass(frozen=True)
class Task:
    """A planted model's texts and answers."""

    planted: Planted
    train: Sequence[Example]
    test: Sequence[Example]
    answers: Answers


def make_task(setting: Setting, truth: str, seed: int) -> Task:
    """Plants a truth and draws texts from it, enough that no student sees one twice."""
    probes = [replace(e, ids=e.ids[: setting.length], prompt_length=1) for e in setting.texts[: setting.probes]]
    if truth == REAL:
        plan, directions = real_directions(setting, seed)
        planted = plant(setting.base, plan, directions, probes, setting.effect, equal=False)
    else:
        plan = planted_plan(setting.modules, truth_ranks(truth, setting.modules, setting.budget.parameters, seed))
        planted = plant(setting.base, plan, random_directions(plan, seed), probes, setting.effect)
    count = setting.training.steps * setting.training.batch_size
    starts = [e.ids[: setting.beginning] for e in setting.texts]
    wanted = [starts[i % len(starts)] for i in range(count + setting.test)]
    texts = sample_texts(setting.base, planted, wanted, setting.length, seed)
    teacher = Member(plan=plan, options=setting.training, seed=0, examples=())
    with Bank(setting.base, [teacher], chunk_tokens=CHUNK) as bank:
        open_planted(bank, planted)
        answers = answers_of(bank, 0, texts)
    return Task(planted, texts[:count], texts[count:], answers)


def real_directions(setting: Setting, seed: int) -> tuple[RankPlan, Directions]:
    """The largest directions of an over-ranked fine-tuning on real texts, as many as the budget pays for."""
    texts = [replace(e, prompt_length=1) for e in setting.texts]  # a prompt may fill a text and leave nothing to learn
    training = PlannedTraining(replace(setting.training, steps=2 * setting.training.steps))
    short = ShortRun(
        base=setting.base, modules=setting.modules, examples=texts, training=training,
        budget=3 * setting.budget.parameters, scaling=setting.scaling, seed=seed,
    )  # fmt: skip
    (weights,) = train_short_runs(short, [short.member(seed)])
    if isinstance(weights, TrainingError):
        raise weights
    spectra = {name: spectrum(1.0, a, b) for name, (a, b) in weights.items()}
    ranks = pooled(setting.modules, spectra, setting.budget.parameters, min_rank=0, max_rank=None)
    plan = planted_plan(setting.modules, ranks)
    found = {}
    for m in plan.modules:
        a, b = weights[m.name]
        u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
        r = plan.ranks[m.name]
        found[m.name] = (v[:r].contiguous(), (u[:, :r] * s[:r]).t().contiguous())
    return plan, found


def recover(setting: Setting, truth: str, seed: int, strategies: Sequence[str]) -> dict[str, Any]:
    """Trains uniform, oracle, floor and every strategy's plan on one planted model.

    A strategy that has no plan there stands in it as one whose student diverged, with the reason under `planning`.
    """
    task = make_task(setting, truth, seed)
    arms = [ArmPart(name=plain_strategy_name(name), strategy=name) for name in ("uniform", *strategies)]
    totals = equal_costs(setting, arms) if setting.equal_cost else []
    arms += [
        ArmPart(name=f"search-x{n:g}", strategy="search", options={"draws": round(n) - 1}) for n in totals if n >= 3
    ]
    made = _Planned(setting, task, seed)
    for arm in arms:
        made.add(arm)
    plans, right = made.plans, {m.name: task.planted.plan.ranks.get(m.name, 0) for m in setting.modules}
    plans["oracle"] = replace(plans["uniform"], modules=task.planted.plan.modules, ranks=task.planted.plan.ranks)
    floor = spend(setting.modules, {name: float(r) for name, r in right.items()}, setting.budget.parameters)
    plans["floor"] = replace(plans["uniform"], ranks=floor)
    members = [Member(plan=p, options=setting.training, seed=seed, examples=task.train) for p in plans.values()]
    for total in totals:
        longer = replace(setting.training, steps=round(total * setting.training.steps))
        members.append(Member(plan=plans["uniform"], options=longer, seed=seed, examples=task.train))
    names = [*plans, *(f"uniform-x{total:g}" for total in totals)]
    found = dict(zip(names, train_students(setting.base, members, task.answers, task.test), strict=True))
    every = dict.fromkeys((*made.facts, *names))
    return {
        "truth": truth,
        "seed": seed,
        "planted_ranks": right,
        "planted_parameters": task.planted.plan.trainable_parameters,
        "divergence": {name: found.get(name, math.nan) for name in every},
        "correlation": {name: _correlation(plans[name], right) if name in plans else None for name in every},
        "plan_seconds": made.seconds,
        "planning": made.facts,
        "parameters": {name: p.trainable_parameters for name, p in plans.items()},
    }


def equal_costs(setting: Setting, arms: Sequence[ArmPart]) -> list[float]:
    """What the arms train in all, in units of one training, planning included; of those that train to plan."""
    planned = setting.training.steps
    found = set()
    for arm in arms:
        options = check_options(find_strategy(arm.strategy or ""), arm.options)
        updates = options.measuring().updates(planned)
        if updates:
            found.add(round(1 + updates / planned, 2))
    return sorted(found)


@dataclass
class _Planned:
    """The plans that are made on one planted model, with what each cost."""

    setting: Setting
    task: Task
    seed: int
    plans: dict[str, RankPlan] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, arm: ArmPart) -> None:
        """Makes an arm's plan; a failure stands among the facts, but for that of uniform, which is raised."""
        began, setting, task = time.perf_counter(), self.setting, self.task
        training = PlannedTraining(
            setting.training,
            lambda base, members: StudentBank(base, members, task.answers),
            answer_loss(task.answers) if setting.by_answers else label_loss,
        )
        try:
            self.plans[arm.name] = make_plan(
                setting.base, setting.modules, arm, setting.budget, ScalingPart(), self.seed, task.train, training
            )
            self.facts[arm.name] = dict(self.plans[arm.name].provenance.get("measured", {}))
        except (StrategyError, TrainingError) as error:
            if arm.name == "uniform":
                raise
            self.facts[arm.name] = {"failed": str(error)}
        self.seconds[arm.name] = time.perf_counter() - began


def _correlation(plan: RankPlan, right: Mapping[str, int]) -> float | None:
    """Spearman's, over modules; nothing where either side is constant."""
    from scipy.stats import spearmanr

    ranks = [plan.ranks.get(name, 0) for name in right]
    if len(set(ranks)) == 1 or len(set(right.values())) == 1:
        return None
    return float(spearmanr(ranks, list(right.values())).statistic)
