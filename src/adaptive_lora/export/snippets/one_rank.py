"""The best plan that a tool with one rank for all modules can express: the same budget, spent under that constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adaptive_lora.errors import PlanError
from adaptive_lora.export.snippets.trainers import Trainer
from adaptive_lora.planning.modules import ModuleShape, role_of
from adaptive_lora.planning.plan import RankPlan


def expressible(plan: RankPlan, trainer: Trainer, available: Sequence[ModuleShape] | None = None) -> RankPlan:
    """`plan` where the tool can say it, else the largest one rank that the plan's budget pays for.

    The modules are the plan's, or all of the parts or roles that the plan adapts anywhere, as the tool can name them;
    for that `available` must be all modules of the model. Raises PlanError where the tool has no name for a module,
    where the budget does not pay for rank 1, and where alphas must be whole and are not.
    """
    if trainer.expresses == "any ranks":
        found = plan
    else:
        found = _with_one_rank(plan, trainer, _nameable(plan, trainer, available))
    if trainer.whole_alphas:
        _check_whole(found, trainer)
    return found


def _nameable(plan: RankPlan, trainer: Trainer, available: Sequence[ModuleShape] | None) -> tuple[ModuleShape, ...]:
    """The fewest modules that the tool can name and that hold all of the plan's."""
    if trainer.expresses == "one rank, modules by name":
        return plan.modules
    if available is None:
        raise PlanError(
            f"{trainer.title} names modules for all blocks at once; give all of the model's as `available`."
        )
    wanted = {role_of(m.name) for m in plan.modules}
    if trainer.parts:
        known = {role for roles in trainer.parts.values() for role in roles}
        if unknown := sorted(wanted - known):
            raise PlanError(
                f"{trainer.title} {trainer.version} has no name for {', '.join(unknown[:4])}; it adapts "
                f"{', '.join(sorted(known))}. Train where PEFT does (`--for peft`), or name other `--targets`."
            )
        wanted = {role for roles in trainer.parts.values() if wanted & set(roles) for role in roles}
    return tuple(m for m in available if role_of(m.name) in wanted)


def _with_one_rank(plan: RankPlan, trainer: Trainer, modules: tuple[ModuleShape, ...]) -> RankPlan:
    """The largest whole rank that, the same in all of `modules`, costs no more than the plan's budget."""
    unit = sum(m.params_per_rank for m in modules)
    rank = plan.budget // unit
    if rank < 1:
        raise PlanError(
            f"{trainer.title} has one rank for all modules: rank 1 in the {len(modules)} that it would adapt costs "
            f"{unit:,} parameters, the plan's budget is {plan.budget:,}. Raise the budget or name fewer `--targets`."
        )
    if modules == plan.modules and set(plan.ranks.values()) == {rank}:
        return plan
    chosen = set(modules)
    # A uniform plan is the reference of its own scaling rule.
    return replace(
        plan,
        strategy="uniform",
        options={},
        modules=modules,
        ranks={m.name: rank for m in modules},
        scaling=replace(plan.scaling, reference_rank=float(rank)),
        scores=None,
        provenance={**plan.provenance, "instead_of": plan.strategy},
        left_out=tuple(m for m in (*plan.modules, *plan.left_out) if m not in chosen),
    )


def _check_whole(plan: RankPlan, trainer: Trainer) -> None:
    odd = [name for name in plan.ranks if whole(plan.alpha_of(name)) is None]
    if odd:
        example = f"{odd[0]} has rank {plan.ranks[odd[0]]} and alpha {plan.alpha_of(odd[0]):g}"
        remedy = f", or train on from an adapter at step 0 (`--adapter DIR`, for its key `{trainer.continues}`)"
        raise PlanError(
            f"{trainer.title} {trainer.version} takes whole alphas alone, and {len(odd)} of the plan's are not: "
            f"{example}. Use the rule `constant` with a whole `--reference-scaling`"
            f"{remedy if trainer.continues else ''}."
        )


def whole(alpha: float) -> int | None:
    """A whole number where `alpha` is one up to rounding of floating point, else None.

    >>> whole(16.000000000000004), whole(5.66)
    (16, None)
    """
    nearest = round(alpha)
    return nearest if abs(alpha - nearest) <= 1e-12 * max(abs(alpha), 1) else None


def concession(plan: RankPlan, wanted: RankPlan) -> str | None:
    """What a tool trains in place of `wanted`, in words; None where `plan` is the same."""
    if same(plan, wanted):
        return None
    (rank,) = set(plan.ranks.values())
    gained = len(plan.ranks.keys() - wanted.ranks.keys())
    where = f"the plan's {len(wanted.ranks)} modules" + (
        f" and {gained} more that it cannot leave out" if gained else ""
    )
    spent, budget = plan.trainable_parameters, plan.budget
    return f"rank {rank} in {where}: {spent:,} of {budget:,} trainable parameters, {budget - spent:,} unspent"


def same(plan: RankPlan, other: RankPlan) -> bool:
    """Whether both adapt the same modules with the same ranks and scalings."""
    return dict(plan.ranks) == dict(other.ranks) and all(
        abs(plan.scaling_of(name) - other.scaling_of(name)) <= 1e-12 * other.scaling_of(name) for name in plan.ranks
    )
