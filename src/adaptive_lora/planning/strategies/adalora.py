"""AdaLoRA's final ranks, trained afresh as an ordinary plan."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, ShortRunOptions, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: ShortRunOptions) -> dict[str, int]:
    """r_l ∝ the rank that AdaLoRA ends with in module l.

    AdaLoRA budgets ranks, whatever they cost; its counts are put on the parameter budget. Retraining takes
    its schedule and its scaling (alpha over the first rank) out of the comparison.
    """
    return spend(modules, scores["adalora-rank"], budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "adalora",
    "the ranks that a run of AdaLoRA ends with",
    "AdaLoRA, arXiv 2303.10512, by PEFT",
    allocate,
    ShortRunOptions,
    needs=lambda options: ("adalora-rank",),
)
