"""Checks of a study once its model is known: budgets that cannot be met, arms without a plan, equal arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive_lora.errors import BudgetError, StudyFileError, UsageError
from adaptive_lora.planning.budget import Budget, resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.plan import fixed_ranks
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.stats.metrics import EXACT_MATCH
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.matrix import Cell, Role, Run
from adaptive_lora.study.schema import ArmPart
from adaptive_lora.study.study_file import Study
from adaptive_lora.study.yaml import Location


def checked_budgets(study: Study, modules: tuple[ModuleShape, ...]) -> dict[str, Budget]:
    """Every budget resolved and every arm seen to fit it; StudyFileError with all that do not."""
    budgets: dict[str, Budget] = {}
    complaints: dict[tuple[Location, str], str] = {}
    for index, text in enumerate(study.spec.budgets):
        try:
            budgets[text] = resolve_budget(text, modules)
        except BudgetError as error:
            complaints[("budgets", index), ""] = str(error)
    for cell in study.matrix.cells:
        try:
            if cell.role is Role.ASSAY:
                budgets[cell.budget] = resolve_budget(cell.budget, modules)
            if cell.budget in budgets:
                _check_fits(cell.arm, modules, budgets[cell.budget])
        except UsageError as error:
            at, message = _complaint(study, cell, error)
            # One cause makes one complaint: a budget too small for ten arms is one, each control is its own.
            complaints.setdefault((at, cell.label if at == ("controls",) else ""), message)
    if complaints:
        raise StudyFileError(str(study.path), [study.complaint(at, text) for (at, _), text in complaints.items()])
    return budgets


def _complaint(study: Study, cell: Cell, error: UsageError) -> tuple[Location, str]:
    """The key of the study file that is to blame, and what to do."""
    if cell.role is Role.ASSAY:
        return ("controls",), f"the baseline at {cell.budget}: {error} Or name the `controls` without it."
    if isinstance(error, BudgetError):
        return ("budgets", study.spec.budgets.index(cell.budget)), str(error)
    if cell.role in (Role.ARM, Role.BASELINE):
        own = ["ranks"] if cell.arm.ranks is not None else []
        return ("arms", study.spec.arms.index(cell.arm), *own), str(error)
    return ("controls",), f"{error} Or name the `controls` without {cell.arm.strategy}."


def _check_fits(arm: ArmPart, modules: tuple[ModuleShape, ...], budget: Budget) -> None:
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
    for cell in study.matrix.cells:
        run_id = Run(Phase.EVALUATION, cell, learning_rate=1.0, seed=0).run_id(context)
        name, other = cell.arm.name, seen.setdefault(run_id, cell.arm.name)
        if other != name:
            own = [arm.name for arm in study.spec.arms]
            at: Location = ("arms", own.index(name)) if name in own else ("controls",)
            message = f"{name!r} at {cell.budget} is the same run as {other!r}; leave one out"
            raise StudyFileError(str(study.path), [study.complaint(at, message)])


def check_metric(study: Study, exact_answers: bool) -> None:
    """StudyFileError where arms are to be compared by right answers, and the data have no single ones."""
    if study.spec.analysis.metric == EXACT_MATCH.name and not exact_answers:
        message = (
            f"`{EXACT_MATCH.name}` counts whole completions that are right, and nothing says that "
            f"{study.spec.data.source} has one right answer a record; compare by `test_loss`, or by a command of your "
            "own that knows what is right"
        )
        raise StudyFileError(str(study.path), [study.complaint(("analysis", "metric"), message)])


def check_equal_cost(study: Study, modules: tuple[ModuleShape, ...], budgets: Mapping[str, Budget]) -> None:
    """StudyFileError where a hypothesis has fixed ranks that do not cost what the baseline costs."""
    spec, found = study.spec, []
    names = [arm.name for arm in spec.arms]
    for comparison in study.matrix.comparisons:
        arm = spec.arms[names.index(comparison.arm)]
        if arm.ranks is not None:
            own, baseline = (_cost(each, modules, budgets[comparison.budget]) for each in (arm, study.matrix.baseline))
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
    options = check_options(strategy, arm.options)
    covered = strategy.covered(modules, options)
    equal = spend(covered, {m.name: 1.0 for m in covered}, budget.parameters, options.min_rank, options.max_rank)
    return total_cost(covered, equal)
