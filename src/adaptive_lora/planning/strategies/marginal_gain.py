"""Our own: rank where short runs from different beginnings agree on what to learn."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import AgreementOptions, Scores, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: AgreementOptions) -> dict[str, int]:
    """r_l ∝ a_l, a_l², √(E_l L_l) or a_l √(E_l L_l), whichever won a race against each other and uniform.

    Several short runs differ in their draw of A and in the order of the data. What the data asks of a module
    they share, what is chance cancels: E_l is the mean of ⟨ΔW_l,i , ΔW_l,j⟩ over pairs of runs, a_l its share
    of ‖ΔW_l,i‖², L_l the same mean as the loss feels it (`scores.agreement`). The plans are trained for a while,
    and the one with the lowest loss on held-back records is taken if it beats uniform for certain.
    """
    return spend(modules, scores["marginal-gain"], budget, options.min_rank, options.max_rank)


STRATEGY = Strategy(
    "marginal-gain",
    "rank where short runs from different beginnings agree on the update",
    "this project; judged in bench/recovery.py",
    allocate,
    AgreementOptions,
    needs=lambda options: ("marginal-gain",),
)
