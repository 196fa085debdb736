"""More rank for one family of modules: attention-heavy, and its mirror mlp-heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import Kind, ModuleShape
from adaptive_lora.planning.strategies.base import Allocate, Scores, Strategy, StrategyOptions


class Options(StrategyOptions):
    """Options of strategies that favour one kind of module."""

    ratio: Annotated[float, Field(gt=0)] = 2.0
    """The rank of a favoured module over that of any other."""


def favouring(kind: Kind) -> Allocate:
    """r_l ∝ ratio for modules of `kind`, 1 for all others.

    The original study favoured attention; at equal parameters Thinking Machines' "LoRA Without Regret"
    and PEFT's stored comparison found the MLP to matter more.
    """

    def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
        weights = {m.name: options.ratio if m.kind == kind else 1.0 for m in modules}
        return spend(modules, weights, budget, options.min_rank, options.max_rank)

    return allocate


ATTENTION_HEAVY = Strategy(
    "attention-heavy",
    "attention modules get `ratio` times the rank of the others",
    "original study",
    favouring("attention"),
    Options,
)
MLP_HEAVY = Strategy(
    "mlp-heavy",
    "MLP modules get `ratio` times the rank of the others",
    "mirror of attention-heavy; LoRA Without Regret (Thinking Machines 2025)",
    favouring("mlp"),
    Options,
)
