"""The rank allocation of an adapter made elsewhere as a plan: to be judged in a study, or trained anew."""

from __future__ import annotations

from adaptive_lora.export.reading import AdapterOutline
from adaptive_lora.planning.budget import resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, depth_of, kind_of, total_cost
from adaptive_lora.planning.plan import RankPlan, Scaling


def rank_plan(outline: AdapterOutline, budget: str | None = None, source: str = "") -> RankPlan:
    """Ranks as they are, or in the same proportions on a budget, exactly; needs no tensors and no base model.

    `budget` is `rank:r` or `params:N`. The scaling is the adapter's where all its modules have the same, else constant
    and 2. Raises BudgetError as `spend`.
    """
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
