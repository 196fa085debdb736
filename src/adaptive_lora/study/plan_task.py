"""One plan to be made: an arm on a budget with a seed, what must be measured for it, and the ranks that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import UsageError
from adaptive_lora.planning.budget import Budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling, fixed_ranks
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions
from adaptive_lora.streams import derive_seed
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.options import TrainingOptions

if TYPE_CHECKING:  # plans by shape need no torch
    from adaptive_lora.measures.groups import MeasurementResult
    from adaptive_lora.measures.request import Measurement, MeasurementKey, PlannedTraining, Request
    from adaptive_lora.training.base import FrozenBase

    Results = Mapping[MeasurementKey, MeasurementResult | Exception]

_CAREFUL = TrainingOptions(learning_rate=1e-3, steps=100)
"""What short runs imitate where no training was planned."""


@dataclass(frozen=True, kw_only=True)
class PlanTask:
    """A plan to be made; see `plan_task`."""

    strategy: Strategy
    options: StrategyOptions
    modules: tuple[ModuleShape, ...]
    budget: Budget
    scaling: Scaling
    seed: int
    needs: tuple[str, ...] = ()
    """Measures that the strategy reads."""
    request: Request | None = None
    """What they are taken on; None where there are none."""

    def plan(self, measured: Scores, facts: Mapping[str, Any]) -> RankPlan:
        """The plan that follows from what was measured; pure and deterministic. `facts` go into its provenance."""
        ranks = self.strategy.allocate(self.modules, measured, self.budget.parameters, self.options)
        covered = tuple(m for m in self.modules if ranks[m.name])  # some strategies leave modules out
        scores = measured[self.needs[0]] if self.needs else None
        return RankPlan(
            strategy=self.strategy.name,
            budget=self.budget.parameters,
            modules=covered,
            ranks={m.name: ranks[m.name] for m in covered},
            scaling=self.scaling,
            options=self.options.model_dump(mode="json"),
            scores={m.name: _as_number(scores[m.name]) for m in covered} if scores is not None else None,
            provenance={
                "seed": self.seed,
                "budget": self.budget.text,
                **({"measured": dict(facts)} if self.needs else {}),
                **({"code": self.strategy.code} if self.strategy.digest else {}),
            },
            left_out=tuple(m for m in self.modules if not ranks[m.name]),
        )


def plan_task(
    base: FrozenBase | None,
    modules: tuple[ModuleShape, ...],
    arm: ArmPart,
    budget: Budget,
    scaling: ScalingPart,
    seed: int,
    examples: Sequence[Example] = (),
    training: PlannedTraining | None = None,
) -> PlanTask | RankPlan:
    """What is to be done for an arm's plan on a budget; fixed ranks are a plan already.

    Plans that rest on data are measured on calibration examples drawn from `examples` (`base` is then
    needed), plans that rest on chance take the seed's stream `calibration`, unless the study file
    fixes their `seed` option. Short runs imitate `training`.
    """
    rule = Scaling(scaling.rule, scaling.reference, budget.reference_rank)
    if arm.ranks is not None:
        ranks = fixed_ranks(arm.ranks, modules, f"the arm {arm.name}")
        cost = sum(m.params_per_rank * ranks[m.name] for m in modules)
        return RankPlan("ranks", cost, modules, ranks, rule, provenance={"seed": seed})
    assert arm.strategy is not None  # ArmPart has either
    strategy = find_strategy(arm.strategy)
    options = check_options(strategy, arm.options)
    if strategy.chance and "seed" not in options.model_fields_set:
        options = options.model_copy(update={"seed": derive_seed(seed, "calibration")})
    request = None
    if needs := strategy.needs(options):
        if base is None or (not examples and strategy.effort_of(options) != "weights"):
            raise UsageError("This strategy measures on data: give `--data` (or `data` in the study file).")
        from adaptive_lora.measures.request import PlannedTraining, Request

        request = Request(
            base=base, modules=modules, examples=examples, options=options.measuring(), seed=seed,
            budget=budget.parameters, scaling=rule, training=training or PlannedTraining(_CAREFUL),
        )  # fmt: skip
    return PlanTask(
        strategy=strategy, options=options, modules=modules, budget=budget, scaling=rule, seed=seed,
        needs=tuple(needs), request=request,
    )  # fmt: skip


def needed(task: PlanTask | RankPlan) -> list[Measurement]:
    """What must be measured for a task."""
    if not isinstance(task, PlanTask) or task.request is None:
        return []
    from adaptive_lora.measures.measuring import measurements

    return measurements(task.needs, task.request)


def collected(task: PlanTask, stored: Results) -> tuple[Scores, Mapping[str, Any]]:
    """What a task needs out of what was measured, and facts about that; raises the error of one that failed."""
    if task.request is None:
        return {}, {}
    from adaptive_lora.measures.measuring import collect

    found = collect(task.needs, task.request, stored)
    return found.scores, found.facts


def make_plan(
    base: FrozenBase | None,
    modules: tuple[ModuleShape, ...],
    arm: ArmPart,
    budget: Budget,
    scaling: ScalingPart,
    seed: int,
    examples: Sequence[Example] = (),
    training: PlannedTraining | None = None,
) -> RankPlan:
    """One plan by itself: `plan_task`, with what it needs measured on the spot and shared with nobody."""
    task = plan_task(base, modules, arm, budget, scaling, seed, examples, training)
    if isinstance(task, RankPlan):
        return task
    if task.request is None:
        return task.plan({}, {})
    from adaptive_lora.measures.measuring import measure

    found = measure(task.needs, task.request)
    return task.plan(found.scores, found.facts)


def _as_number(score: Any) -> float:
    """A score for tables: a spectrum is summed."""
    return float(score) if isinstance(score, int | float) else float(sum(score))
