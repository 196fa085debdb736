"""The same rank everywhere: what LoRA does, and the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: StrategyOptions) -> dict[str, int]:
    """r_l = r for all l.

    Where the budget is not a whole rank everywhere, ranks differ by one, or by what it takes to spend
    the budget exactly. Source: Hu et al., LoRA, arXiv 2106.09685.
    """
    return spend(modules, {m.name: 1.0 for m in modules}, budget, options.min_rank, options.max_rank)


STRATEGY = Strategy("uniform", "the same rank in every module", "Hu et al. 2021, arXiv 2106.09685", allocate)
