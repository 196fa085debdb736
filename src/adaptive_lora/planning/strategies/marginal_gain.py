"""Our own: rank where short runs from different beginnings agree on what to learn."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import AgreementOptions, Scores, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: AgreementOptions) -> dict[str, int]:
    """r_l ∝ a_l √(L_l / r'_l), found in rounds, unless that loses a race against uniform.

    Several runs differ in their draw of A and in the order of the data. What the data asks of a module they
    share, what is chance cancels: a_l is the share of ‖ΔW_l,i‖² that ⟨ΔW_l,i , ΔW_l,j⟩ has over pairs of runs,
    L_l the same mean as the loss feels it, r'_l the rank they trained at (`scores.agreement`). By default that
    costs eleven times the planned training: two rounds of four runs, and a race of three.
    """
    return spend(modules, scores["marginal-gain"], budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "marginal-gain",
    "rank where short runs from different beginnings agree on the update",
    "this project; judged in bench/recovery.py",
    allocate,
    AgreementOptions,
    needs=lambda options: ("marginal-gain",),
)
