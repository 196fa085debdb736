"""Rank in proportion to a measured importance of the frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import GradientOptions, Scores, Strategy


class Options(GradientOptions):
    """Options of `empirical`."""

    importance: Literal["weight-gradient", "gradient-norm"] = "weight-gradient"
    """What is measured: mean |W ⊙ G|, or the norm of G per entry."""


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l ∝ I_l, with G_l = dL/dW_l averaged over the calibration batches and

    - `weight-gradient`: I_l = mean |W_l ⊙ G_l| (the importance of GoRA, arXiv 2502.12171),
    - `gradient-norm`:   I_l = ||G_l||_F / sqrt(d_in · d_out).

    Both are means over the entries of the matrix, so that large matrices do not win by their size.
    In `mode: stream` they are means over the batches of the same, with each batch's own gradient.
    """
    measured = scores[options.importance]
    weights = {m.name: measured[m.name] for m in modules}
    return spend(modules, weights, budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "empirical",
    "rank follows mean |W·G| (or the gradient's size) on calibration batches of the training data",
    "original study; GoRA's importance, arXiv 2502.12171",
    allocate,
    Options,
    needs=lambda options: (options.importance,),
)
