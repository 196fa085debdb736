"""What a study is refused for once its model is known: budgets and arms that cannot be, and arms that are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive_lora.errors import BudgetError, StudyFileError, UsageError
from adaptive_lora.planning.budget import Budget, resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.plan import fixed_ranks
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.protocol import (
    arms_on_budgets,
    assay_budgets,
    baseline_of,
    control_arms,
    primary_comparisons,
)
from adaptive_lora.study.runs import RunSpec
from adaptive_lora.study.schema import ArmPart
from adaptive_lora.study.settings import scaling_of
from adaptive_lora.study.study_file import Study
from adaptive_lora.study.yaml import Location


def checked_budgets(study: Study, modules: tuple[ModuleShape, ...]) -> dict[str, Budget]:
    """Every budget resolved and every arm seen to fit it; StudyFileError with all that do not."""
    budgets: dict[str, Budget] = {}
    complaints: dict[Location, str] = {}
    alone: list[tuple[Location, str]] = []
    for text in assay_budgets(study.spec):
        try:
            budgets[text] = resolve_budget(text, modules)
            _try_arm(baseline_of(study.spec), modules, budgets[text])
        except UsageError as error:
            alone.append((("controls",), f"the baseline at {text}: {error} Or name the `controls` without it."))
    for index, text in enumerate(study.spec.budgets):
        try:
            budgets[text] = resolve_budget(text, modules)
        except BudgetError as error:
            complaints["budgets", index] = str(error)
            continue
        for position, arm in enumerate((*study.spec.arms, *control_arms(study.spec, text))):
            try:
                _try_arm(arm, modules, budgets[text])
            except BudgetError as error:
                complaints.setdefault(("budgets", index), str(error))
            except UsageError as error:
                at: Location = ("arms", position, *(["ranks"] if arm.ranks is not None else []))
                if position < len(study.spec.arms):
                    complaints.setdefault(at, str(error))
                else:
                    complaints.setdefault(("controls",), f"{error} Or name the `controls` without {arm.strategy}.")
    if found := [*alone, *complaints.items()]:
        raise StudyFileError(str(study.path), [study.complaint(at, message) for at, message in found])
    return budgets


def _try_arm(arm: ArmPart, modules: tuple[ModuleShape, ...], budget: Budget) -> None:
    """UsageError where an arm can have no plan."""
    if arm.ranks is not None:
        fixed_ranks(arm.ranks, modules, f"the arm {arm.name}")
        return
    assert arm.strategy is not None  # ArmPart has either
    strategy = find_strategy(arm.strategy)
    strategy.check_budget(modules, budget.parameters, check_options(strategy, arm.options))


def check_distinct(study: Study, context: Mapping[str, Any]) -> None:
    """StudyFileError where two arms would be one run: what is written differently can come to the same."""
    seen: dict[str, str] = {}
    for budget, arm in arms_on_budgets(study.spec):
        run = RunSpec(Phase.EVALUATION, arm, budget, scaling_of(study.spec, arm), learning_rate=1.0, seed=0)
        other = seen.setdefault(run.run_id(context), arm.name)
        if other != arm.name:
            own = [own.name for own in study.spec.arms]
            at: Location = ("arms", own.index(arm.name)) if arm.name in own else ("controls",)
            raise StudyFileError(
                str(study.path),
                [study.complaint(at, f"{arm.name!r} at {budget} is the same run as {other!r}; leave one out")],
            )


def check_equal_cost(study: Study, modules: tuple[ModuleShape, ...], budgets: Mapping[str, Budget]) -> None:
    """StudyFileError where a hypothesis has fixed ranks that do not cost what the baseline costs."""
    spec, found = study.spec, []
    names = [arm.name for arm in spec.arms]
    for comparison in primary_comparisons(spec):
        arm = spec.arms[names.index(comparison.arm)]
        if arm.ranks is not None:
            own, baseline = (_cost(each, modules, budgets[comparison.budget]) for each in (arm, baseline_of(spec)))
            if own != baseline:
                message = (
                    f"the ranks of {arm.name!r} cost {own:,} trainable parameters and the baseline {baseline:,} at "
                    f"{comparison.budget}: a verdict would not be on equal parameters; change the ranks or the budget, "
                    "or leave the arm out of `analysis.primary`"
                )
                found.append(study.complaint(("arms", names.index(arm.name), "ranks"), message))
    if found:
        raise StudyFileError(str(study.path), found)


def _cost(arm: ArmPart, modules: tuple[ModuleShape, ...], budget: Budget) -> int:
    """Trainable parameters of an arm; what a strategy spends of a budget does not depend on its scores."""
    if arm.ranks is not None:
        return total_cost(modules, fixed_ranks(arm.ranks, modules, f"the arm {arm.name}"))
    strategy = find_strategy(arm.strategy or "")
    options, covered = check_options(strategy, arm.options), strategy.covered(modules)
    equal = spend(covered, {m.name: 1.0 for m in covered}, budget.parameters, options.min_rank, options.max_rank)
    return total_cost(covered, equal)
