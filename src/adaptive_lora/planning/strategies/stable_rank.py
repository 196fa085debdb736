"""Rank in proportion to the stable rank of the frozen weight; needs no data."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import ScoredOptions, Scores, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: ScoredOptions) -> dict[str, int]:
    """r_l ∝ ||W_l||_F² / ||W_l||_2².

    SR-LoRA (ICCV 2025, arXiv 2507.00327) takes the stable rank itself as rank, without a budget; here it
    is a weight on the budget.
    """
    return spend(modules, scores["stable-rank"], budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "stable-rank",
    "rank follows the stable rank of the frozen weight; needs no data",
    "SR-LoRA, arXiv 2507.00327",
    allocate,
    ScoredOptions,
    needs=lambda options: ("stable-rank",),
)
