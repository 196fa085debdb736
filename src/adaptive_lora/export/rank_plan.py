"""The rank allocation of an adapter made elsewhere as a plan: to be judged in a study, or trained anew."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.reading import AdapterOutline
from adaptive_lora.export.variants import refusals
from adaptive_lora.planning.budget import resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, depth_of, kind_of, role_of, select_targets, total_cost
from adaptive_lora.planning.plan import RankPlan, Scaling


def rank_plan(outline: AdapterOutline, budget: str | None = None, source: str = "") -> RankPlan:
    """Ranks as they are, or in the same proportions on a budget, exactly; needs no tensors and no base model.

    `budget` is `rank:r` or `params:N`. The scaling is the adapter's where all its modules have the same, else constant
    and 2. Raises BudgetError as `spend`, AdapterError where there is no adapted module.
    """
    if not outline.modules:
        raise AdapterError(source, refusals(outline.beyond))
    modules = tuple(
        ModuleShape(name, kind_of(name), depth_of(name), module.d_in, module.d_out)
        for name, module in outline.modules.items()
    )
    ranks = {name: module.rank for name, module in outline.modules.items()}
    if budget is None:
        cost, told = total_cost(modules, ranks), {}
        reference = cost / sum(module.params_per_rank for module in modules)
    else:
        asked = resolve_budget(budget, modules)
        ranks = spend(modules, {name: float(rank) for name, rank in ranks.items()}, asked.parameters)
        cost, reference, told = asked.parameters, asked.reference_rank, {"budget": budget}
    scalings = {module.scaling for module in outline.modules.values()}
    one = next(iter(scalings)) if len(scalings) == 1 else 0.0
    return RankPlan(
        strategy="ranks",
        budget=cost,
        modules=modules,
        ranks=ranks,
        scaling=Scaling(reference_scaling=one if one > 0 else 2.0, reference_rank=reference),
        provenance={"adapter": source, "base": outline.base_name, **told},
    )


def study_targets(made: RankPlan, available: Sequence[ModuleShape]) -> str:
    """What a study file says as `targets` so that they are the plan's modules: in as few words as do.

    `available` are all modules of the base model that could be targets.

    >>> modules = [ModuleShape(f"{i}.{leaf}", "other", i, 2, 2) for i in (0, 1) for leaf in "qv"]
    >>> study_targets(RankPlan("ranks", 8, tuple(modules[::2]), {"0.q": 1, "1.q": 1}, Scaling()), modules)
    '[q]'
    """
    chosen = {module.name for module in made.modules}
    if chosen == {module.name for module in available}:
        return "all-linear"
    for ending in (lambda name: name.rpartition(".")[2], role_of):
        named = sorted({ending(module.name) for module in made.modules})
        if chosen == {module.name for module in select_targets(available, named)}:
            return f"[{', '.join(named)}]"
    return f"[{', '.join(module.name for module in made.modules)}]"
