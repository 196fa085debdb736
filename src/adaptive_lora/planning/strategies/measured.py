"""Rank in proportion to one number that is measured of each module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from adaptive_lora.planning.budget import spend, uniform_rank
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import (
    AgreementOptions,
    CalibrationOptions,
    GradientOptions,
    OverRankOptions,
    Scores,
    ShortRunOptions,
    Strategy,
    StrategyOptions,
    by_weights,
)

Power = Annotated[float, Field(ge=0)]


class EmpiricalOptions(GradientOptions):
    """Options of `empirical`."""

    importance: Literal["weight-gradient", "gradient-norm"] = "weight-gradient"
    """What is measured: mean |W ⊙ G|, or the norm of G per entry."""
    power: Power = 1.0
    """Bends the importance: 0.5 flattens it, 0 is uniform."""


class SpectralOptions(GradientOptions):
    """Options of `spectral`."""

    power: Power = 1.0
    """Bends the effective rank: 0.5 flattens it, 0 is uniform."""


class StableRankOptions(StrategyOptions):
    """Options of `stable-rank`."""

    power: Power = 1.0
    """Bends the stable rank: 0.5 flattens it, 0 is uniform."""


def follow(
    name: str, summary: str, source: str, measure: Callable[[Any], str], options: type[StrategyOptions]
) -> Strategy:
    """r_l ∝ s_l^power, s_l the measure that `measure(options)` names; without an option `power` it is 1."""

    @by_weights
    def allocate(modules: Sequence[ModuleShape], scores: Scores, asked: Any) -> dict[str, float]:
        measured, power = scores[measure(asked)], getattr(asked, "power", 1.0)
        return {m.name: measured[m.name] ** power for m in modules}

    return Strategy(name, summary, source, allocate, options, needs=lambda asked: (measure(asked),))


def allocate_fim(
    modules: Sequence[ModuleShape], scores: Scores, budget: int, options: CalibrationOptions
) -> dict[str, int]:
    """r_l ∝ F_l = mean over the entries of B_l of E_batch[(dL/dB_l)²], at B = 0 and the seed's own first A.

    The gradient is that of an adapter of the uniform rank r of the budget; `max_rank` is 2r where it is
    not given. Source: FIM-LoRA, arXiv 2605.16800 (a diagonal of the empirical Fisher information).
    """
    most = options.max_rank or max(options.min_rank, 2 * uniform_rank(modules, budget))
    return spend(modules, scores["b-gradient"], budget, options.min_rank, most)


EMPIRICAL = follow(
    "empirical",
    "rank follows mean |W·G| (or the gradient's size) on calibration batches of the training data",
    "original study; GoRA's importance, arXiv 2502.12171",
    lambda options: options.importance,
    EmpiricalOptions,
)
"""With G_l = dL/dW_l averaged over the calibration batches, `weight-gradient` is mean |W_l ⊙ G_l| (the importance of
GoRA) and `gradient-norm` ||G_l||_F / sqrt(d_in · d_out): means over the entries of the matrix, so that large matrices
do not win by their size. In `mode: stream` they are means over the batches of the same, with each batch's own gradient.
"""
FIM = Strategy(
    "fim",
    "rank follows the mean squared gradient of B at the start of training",
    "FIM-LoRA, arXiv 2605.16800",
    allocate_fim,
    CalibrationOptions,
    needs=lambda options: ("b-gradient",),
)
SPECTRAL = follow(
    "spectral",
    "rank follows the effective rank of the gradient, whitened by the module's inputs",
    "Lin 2026, spectral-effective",
    lambda options: "whitened-rank",
    SpectralOptions,
)
"""exp(H(p)), p_i = σ_i² / Σ σ², σ the singular values of G_l (C_l + εI)^{-1/2}: G_l = dL/dW_l (d_out, d_in) is the mean
over the calibration batches, C_l = E[x xᵀ] the second moment of the module's inputs over their tokens, ε a thousandth
of C_l's mean eigenvalue. Whitening takes out of G_l what comes of the inputs' own few strong directions. The best of
five scores at exactly equal parameters in Lin 2026.
"""
STABLE_RANK = follow(
    "stable-rank",
    "rank follows the stable rank of the frozen weight; needs no data",
    "SR-LoRA, arXiv 2507.00327",
    lambda options: "stable-rank",
    StableRankOptions,
)
"""||W_l||_F² / ||W_l||_2². SR-LoRA (ICCV 2025) takes it as rank itself, without a budget."""
LORA_DROP = follow(
    "lora-drop",
    "rank follows the squared output of each adapter after a short run",
    "LoRA-drop, arXiv 2402.07721",
    lambda options: "output-norm",
    OverRankOptions,
)
"""g_l = E‖ΔW_l x‖² over calibration tokens, after a short over-ranked run. LoRA-drop keeps the layers with the largest
g and lets the rest share one adapter; here g spends the budget over all."""
ADALORA = follow(
    "adalora",
    "the ranks that a run of AdaLoRA ends with",
    "AdaLoRA, arXiv 2303.10512, by PEFT",
    lambda options: "adalora-rank",
    ShortRunOptions,
)
"""AdaLoRA budgets ranks, whatever they cost; its counts are put on the parameter budget. Retraining takes its schedule
and its scaling (alpha over the first rank) out of the comparison."""
MARGINAL_GAIN = follow(
    "marginal-gain",
    "rank where short runs from different beginnings agree on the update",
    "this project; judged in bench/recovery.py",
    lambda options: "marginal-gain",
    AgreementOptions,
)
"""a_l √(L_l / r'_l), found in rounds, unless that loses a race against uniform.

Several runs differ in their draw of A and in the order of the data. What the data asks of a module they share, what is
chance cancels: a_l is the share of ‖ΔW_l,i‖² that ⟨ΔW_l,i , ΔW_l,j⟩ has over pairs of runs, L_l the same mean as the
loss feels it, r'_l the rank they trained at (`measures.agreement`). By default that costs eleven times the planned
training: two rounds of four runs, and a race of three.
"""
