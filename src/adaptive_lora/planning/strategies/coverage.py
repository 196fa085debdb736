"""Which modules get an adapter at all: one family on the whole budget, the others left out."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import Kind, ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions


def equal_in(
    covered: Sequence[ModuleShape], modules: Sequence[ModuleShape], budget: int, options: StrategyOptions
) -> dict[str, int]:
    """The whole budget in the covered modules, one rank for all of them as far as it can be met so; 0 in the others."""
    ranks = spend(covered, {m.name: 1.0 for m in covered}, budget, options.min_rank, options.max_rank)
    return {m.name: ranks.get(m.name, 0) for m in modules}


def only(kind: Kind, name: str, summary: str, source: str) -> Strategy:
    """A strategy with r_l = r for modules of `kind` and r_l = 0, no adapter, for all others.

    The whole budget goes to the covered modules, so that their rank is higher than uniform's and the
    plan costs the same. Caps may leave some of a large budget unspent: a module holds rank
    min(d_in, d_out) at the most.
    """

    def allocate(
        modules: Sequence[ModuleShape], scores: Scores, budget: int, options: StrategyOptions
    ) -> dict[str, int]:
        return equal_in(strategy.covered(modules), modules, budget, options)

    strategy = Strategy(name, summary, source, allocate, covers=kind)
    return strategy


ATTENTION_ONLY = only(
    "attention",
    "attention-only",
    "the same rank in every attention module, no adapter elsewhere",
    "habit since Hu et al. 2021, arXiv 2106.09685",
)
MLP_ONLY = only(
    "mlp",
    "mlp-only",
    "the same rank in every MLP module, no adapter elsewhere",
    "LoRA Without Regret (Thinking Machines 2025)",
)
