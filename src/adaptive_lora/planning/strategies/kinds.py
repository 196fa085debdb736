"""Rank by the kind of a module alone: the same for all, more for one kind, or for one kind only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import Kind, ModuleShape
from adaptive_lora.planning.strategies.base import Allocate, Scores, Strategy, StrategyOptions, by_weights


class FavouringOptions(StrategyOptions):
    """Options of strategies that favour one kind of module."""

    ratio: Annotated[float, Field(gt=0)] = 2.0
    """The rank of a favoured module over that of any other."""


def favouring(kind: Kind) -> Allocate:
    """r_l ∝ ratio for modules of `kind`, 1 for all others.

    The original study favoured attention; at equal parameters Thinking Machines' "LoRA Without Regret"
    and PEFT's stored comparison found the MLP to matter more.
    """

    @by_weights
    def allocate(modules: Sequence[ModuleShape], scores: Scores, options: FavouringOptions) -> dict[str, float]:
        return {m.name: options.ratio if m.kind == kind else 1.0 for m in modules}

    return allocate


def equal(name: str, summary: str, source: str, kind: Kind | None = None) -> Strategy:
    """A strategy with r_l = r for modules of `kind`, by default all, and r_l = 0, no adapter, for others.

    Where the budget is not a whole rank everywhere, ranks differ by one, or by what it takes to spend it exactly. With
    a `kind` the whole budget goes to the covered modules, so that their rank is higher than uniform's and the plan
    costs the same. Caps may leave some of a large budget unspent: a module holds rank min(d_in, d_out) at the most.
    """

    def allocate(
        modules: Sequence[ModuleShape], scores: Scores, budget: int, options: StrategyOptions
    ) -> dict[str, int]:
        covered = strategy.covered(modules)
        ranks = spend(covered, {m.name: 1.0 for m in covered}, budget, options.min_rank, options.max_rank)
        return {m.name: ranks.get(m.name, 0) for m in modules}

    strategy = Strategy(name, summary, source, allocate, covers=kind)
    return strategy


UNIFORM = equal("uniform", "the same rank in every module", "Hu et al. 2021, arXiv 2106.09685")
ATTENTION_ONLY = equal(
    "attention-only",
    "the same rank in every attention module, no adapter elsewhere",
    "habit since Hu et al. 2021, arXiv 2106.09685",
    "attention",
)
MLP_ONLY = equal(
    "mlp-only",
    "the same rank in every MLP module, no adapter elsewhere",
    "LoRA Without Regret (Thinking Machines 2025)",
    "mlp",
)
ATTENTION_HEAVY = Strategy(
    "attention-heavy",
    "attention modules get `ratio` times the rank of the others",
    "original study",
    favouring("attention"),
    FavouringOptions,
)
MLP_HEAVY = Strategy(
    "mlp-heavy",
    "MLP modules get `ratio` times the rank of the others",
    "mirror of attention-heavy; LoRA Without Regret (Thinking Machines 2025)",
    favouring("mlp"),
    FavouringOptions,
)
