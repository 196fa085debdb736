"""Rank where fat runs of the task itself turned out to need it: the ceiling that cheaper strategies are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import HindsightOptions, Scores, Strategy
from adaptive_lora.planning.strategies.posthoc_svd import pooled


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: HindsightOptions) -> dict[str, int]:
    """r_l = #{i : v_li / c_l >= τ}, v_li what direction i of module l is worth, c_l = d_in + d_out, τ where the budget
    is spent.

    v_li shares out the fall of the loss on records held back among the directions of runs with several times the
    budget's parameters, trained as long as planned and on the same records (`measures.attribution`). By default that
    costs eight times the planned training: it is no method for use, but what a method that knew the end could reach.
    `power` below 1 shrinks the ranks towards uniform.
    """
    weights = cut(modules, scores["loss-attribution"], budget, options)
    return spend(modules, weights, budget, options.min_rank, options.max_rank, options.power)


def cut(
    modules: Sequence[ModuleShape], values: Mapping[str, Sequence[float]], budget: int, options: HindsightOptions
) -> dict[str, float]:
    """How many of each module's directions the budget pays for, those first that bring most per parameter.

    >>> from adaptive_lora.planning.modules import ModuleShape
    >>> q, up = ModuleShape("q", "attention", 0, 8, 8), ModuleShape("up", "mlp", 0, 8, 24)
    >>> cut([q, up], {"q": [0.3, 0.2, 0.0], "up": [0.5, 0.2, 0.1]}, 64, HindsightOptions())
    {'q': 2.0, 'up': 1.0}
    """
    priced = {m.name: [value / m.params_per_rank for value in values[m.name]] for m in modules}
    counts = pooled(modules, priced, budget, options.min_rank, options.max_rank)
    return {name: float(count) for name, count in counts.items()}


STRATEGY = Strategy(
    "hindsight",
    "rank where fat runs of the whole training turned out to need it; a ceiling, not a method",
    "this project; integrated gradients, arXiv 1703.01365; judged in bench/recovery.py",
    allocate,
    HindsightOptions,
    needs=lambda options: ("loss-attribution",),
)
