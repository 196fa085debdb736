"""Rank where a short run's adapters change their layers' outputs most."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import OverRankOptions, Scores, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: OverRankOptions) -> dict[str, int]:
    """r_l ∝ g_l = E‖ΔW_l x‖² over calibration tokens, after a short over-ranked run.

    LoRA-drop (arXiv 2402.07721) keeps the layers with the largest g and lets the rest share one adapter;
    here g spends the budget over all.
    """
    return spend(modules, scores["output-norm"], budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "lora-drop",
    "rank follows the squared output of each adapter after a short run",
    "LoRA-drop, arXiv 2402.07721",
    allocate,
    OverRankOptions,
    needs=lambda options: ("output-norm",),
)
