"""Rank by the gradient energy that an adapter starts with: in proportion to it, or in the best modules alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import GradientOptions, Scores, Strategy


class TopOptions(GradientOptions):
    """Options of `page-top-k`."""

    k: Annotated[int, Field(ge=1)] = 1
    """How many of the best modules get an adapter, if they can hold the budget."""


def energies(modules: Sequence[ModuleShape], scores: Scores) -> dict[str, float]:
    """PAGE of every module, up to a common factor: ||G_l||² / d_in, G_l = dL/dW_l.

    The adapter's whole gradient at its start is that of B, s G Aᵀ (A's is 0 while B is 0). Over the draw of A, whose
    entries have the variance 1 / (3 d_in), its squared norm has the mean s² r ||G||² / (3 d_in).
    """
    norms = scores["gradient-norm"]  # ||G|| / √(d_in · d_out)
    return {m.name: norms[m.name] ** 2 * m.d_out for m in modules}


def spread(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: GradientOptions) -> dict[str, int]:
    """r_l ∝ ||G_l||² / d_in, the expected gradient energy that a unit of rank starts with.

    PAGE (Projected Adapter Gradient Energy, arXiv 2605.06183) is "the initial trainable gradient energy available to
    each candidate adapter". We know its abstract and not its formula: the mean over the draw of A is worked out here.
    The paper spreads nothing by it, see `page-top-k`.
    """
    return spend(modules, energies(modules, scores), budget, options.min_rank, options.max_rank, options.power)


def best(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: TopOptions) -> list[ModuleShape]:
    """The k modules with the most energy, and the next ones until together they hold the budget; ties go by name."""
    energy = energies(modules, scores)
    ordered = sorted(modules, key=lambda m: (-energy[m.name], m.name))
    return ordered[: _enough(ordered, budget, options)]


def top(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: TopOptions) -> dict[str, int]:
    """r_l ∝ ||G_l||² / d_in in the k modules where that is largest, and r_l = 0 in all others, at equal parameters.

    DomLoRA (arXiv 2605.06183) puts one adapter where PAGE is largest, at about 0.7 % of the parameters of adapters
    everywhere. Here that module gets the whole budget, as far as it can hold it: to rank min(d_in, d_out) or
    `max_rank`. Where k modules cannot hold the budget the next best join, so that the plan costs what all others cost.
    """
    covered, energy = best(modules, scores, budget, options), energies(modules, scores)
    ranks = spend(covered, energy, budget, options.min_rank, options.max_rank, options.power)
    return {m.name: ranks.get(m.name, 0) for m in modules}


def _enough(ordered: Sequence[ModuleShape], budget: int, options: TopOptions) -> int:
    """k, or how many of the first modules it takes to hold the budget, as long as it pays for their least rank."""
    most = [m.params_per_rank * min(m.largest_rank, options.max_rank or m.largest_rank) for m in ordered]
    least = [m.params_per_rank * min(m.largest_rank, options.min_rank) for m in ordered]
    count = min(options.k, len(ordered))
    while count < len(ordered) and sum(most[:count]) < budget >= sum(least[: count + 1]):
        count += 1
    return count


def _check_known(modules: Sequence[ModuleShape], budget: int, options: TopOptions) -> None:
    """BudgetError where not even the cheapest modules could be the best."""
    cheapest = sorted(modules, key=lambda m: m.params_per_rank)[: options.k]
    spend(cheapest, {m.name: 1.0 for m in cheapest}, budget, options.min_rank, options.max_rank)


SPREAD = Strategy(
    "page",
    "rank follows the gradient energy that a unit of rank starts with",
    "PAGE, arXiv 2605.06183",
    spread,
    GradientOptions,
    needs=lambda options: ("gradient-norm",),
)
TOP_K = Strategy(
    "page-top-k",
    "all rank in the `k` modules whose adapters start with the most gradient energy, no adapter elsewhere",
    "DomLoRA, arXiv 2605.06183, at equal parameters",
    top,
    TopOptions,
    needs=lambda options: ("gradient-norm",),
    picks=best,
    check_known=_check_known,
)
