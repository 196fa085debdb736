"""Rank in proportion to the Fisher information of B at its start."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend, uniform_rank
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import CalibrationOptions, Scores, Strategy


def allocate(
    modules: Sequence[ModuleShape], scores: Scores, budget: int, options: CalibrationOptions
) -> dict[str, int]:
    """r_l ∝ F_l = mean over the entries of B_l of E_batch[(dL/dB_l)²], at B = 0 and the seed's own first A.

    The gradient is that of an adapter of the uniform rank r of the budget; `max_rank` is 2r where it is
    not given. Source: FIM-LoRA, arXiv 2605.16800 (a diagonal of the empirical Fisher information).
    """
    measured = scores["b-gradient"]
    most = options.max_rank or max(options.min_rank, 2 * uniform_rank(modules, budget))
    return spend(modules, {m.name: measured[m.name] for m in modules}, budget, options.min_rank, most, options.power)


STRATEGY = Strategy(
    "fim",
    "rank follows the mean squared gradient of B at the start of training",
    "FIM-LoRA, arXiv 2605.16800",
    allocate,
    CalibrationOptions,
    needs=lambda options: ("b-gradient",),
)
