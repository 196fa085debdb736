"""Rank in proportion to how many directions the whitened gradient has."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import GradientOptions, Scores, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: GradientOptions) -> dict[str, int]:
    """r_l ∝ exp(H(p)), p_i = σ_i² / Σ σ², σ the singular values of G_l (C_l + εI)^{-1/2}.

    G_l = dL/dW_l (d_out, d_in) is the mean over the calibration batches and C_l = E[x xᵀ] the second
    moment of the module's inputs over their tokens; ε is a thousandth of C_l's mean eigenvalue.
    Whitening takes out of G_l what comes of the inputs' own few strong directions. Source: Lin 2026,
    "spectral-effective", the best of five scores at exactly equal parameters there.
    """
    return spend(modules, scores["whitened-rank"], budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "spectral",
    "rank follows the effective rank of the gradient, whitened by the module's inputs",
    "Lin 2026, spectral-effective",
    allocate,
    GradientOptions,
    needs=lambda options: ("whitened-rank",),
)
