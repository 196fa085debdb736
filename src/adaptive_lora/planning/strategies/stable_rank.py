"""Rank in proportion to the stable rank of the frozen weight; needs no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions


class Options(StrategyOptions):
    """Options of `stable-rank`."""

    power: Annotated[float, Field(ge=0)] = 1.0
    """Bends the stable rank: 0.5 flattens it, 0 is uniform."""


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l ∝ ||W_l||_F² / ||W_l||_2².

    SR-LoRA (ICCV 2025, arXiv 2507.00327) takes the stable rank itself as rank, without a budget; here it
    is a weight on the budget.
    """
    weights = {m.name: scores["stable-rank"][m.name] ** options.power for m in modules}
    return spend(modules, weights, budget, options.min_rank, options.max_rank)


STRATEGY = Strategy(
    "stable-rank",
    "rank follows the stable rank of the frozen weight; needs no data",
    "SR-LoRA, arXiv 2507.00327",
    allocate,
    Options,
    needs=lambda options: ("stable-rank",),
)
