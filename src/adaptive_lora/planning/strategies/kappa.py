"""An adapter where the frozen weight is best conditioned; needs no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions
from adaptive_lora.planning.strategies.coverage import equal_in


class Options(StrategyOptions):
    """Options of `kappa`."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the target modules that get an adapter, rounded down, one at the least (PEFT's own name and default)."""


def best_conditioned(
    modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options
) -> list[ModuleShape]:
    """The `top_p` of the modules with the lowest condition number, ascending; ties go by name."""
    kappa = scores["condition-number"]
    return sorted(modules, key=lambda m: (kappa[m.name], m.name))[: _count(modules, options)]


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l = r in the `top_p` of modules with the lowest κ_l = σ_max / σ_min of W_l, and r_l = 0 in all others.

    KappaTune (arXiv 2506.16289) adapts the weights with the lowest condition numbers, which carry, it is argued, the
    least of what was learnt before; the modules are those of `peft.helpers.find_kappa_target_modules` among the target
    modules. The whole budget goes to them, where KappaTune's adapters are as small as they are few. Caps may leave
    some of a large budget unspent.
    """
    return equal_in(best_conditioned(modules, scores, budget, options), modules, budget, options)


def _count(modules: Sequence[ModuleShape], options: Options) -> int:
    return max(1, int(len(modules) * options.top_p))


def _check_known(modules: Sequence[ModuleShape], budget: int, options: Options) -> None:
    """BudgetError where not even the cheapest modules could be the chosen ones."""
    cheapest = sorted(modules, key=lambda m: m.params_per_rank)[: _count(modules, options)]
    spend(cheapest, {m.name: 1.0 for m in cheapest}, budget, options.min_rank, options.max_rank)


STRATEGY = Strategy(
    "kappa",
    "the same rank in the fifth of the modules (`top_p`) with the lowest condition number, no adapter elsewhere",
    "KappaTune, arXiv 2506.16289",
    allocate,
    Options,
    needs=lambda options: ("condition-number",),
    picks=best_conditioned,
    check_known=_check_known,
)
