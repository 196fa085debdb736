"""Rank by what each next one is worth: the loss that a short run's update would lose if it were cut there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import OverRankOptions, Scores, Strategy


class Options(OverRankOptions):
    """Options of `nested`."""

    short_run_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates of the short run; None: the share `short_run_share` of the planned training's."""
    short_run_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The short run's updates over those of the planned training."""

    def steps_of_a_run(self, planned: int) -> int:
        """As many as are asked for, or the share, rounded, one at the least."""
        return self.short_run_steps or max(1, round(self.short_run_share * planned))


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l ∝ (Σ_i σ_li²)², the singular values of F^½ ΔW_l C^½ after a short over-ranked run.

    σ_li² is what the i-th rank of module l is worth: cutting the update to rank b costs, to second order and up to a
    common factor, Σ_{i > b} σ_li² of the loss. C = E[x xᵀ] are the inputs of the module, F = E[g gᵀ] the gradients of
    its outputs, so that a direction counts for what the loss feels of it and not for its size. What a short run learns
    by chance lies in all modules alike; the square keeps it from getting most of the budget (`power: 0.5` undoes it).

    DyLoRA (arXiv 2210.07558) trains every rank by itself, cutting the adapter at a rank drawn anew for each update; the
    singular vectors put the directions of an ordinary run in their order afterwards. The run is a quarter of the
    planned training by default (`short_run_share`).
    """
    spectra = scores["update-spectrum-on-loss"]
    weights = {m.name: math.fsum(sigma**2 for sigma in spectra[m.name]) ** 2 for m in modules}
    return spend(modules, weights, budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "nested",
    "rank follows what a short over-ranked run's next ranks are worth to the loss",
    "this project; after DyLoRA, arXiv 2210.07558",
    allocate,
    Options,
    needs=lambda options: ("update-spectrum-on-loss",),
)
