"""Rank that falls, or rises, in a straight line over the depth of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions


class Options(StrategyOptions):
    """`slope` is how much of the mean rank is lost from the first block to the last; negative grows."""

    slope: Annotated[float, Field(gt=-2, lt=2)] = 1.0


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l ∝ 1 + slope · (1/2 - x_l), x_l the depth of module l scaled to [0, 1].

    At the default slope 1 the first block gets three times the rank of the last. The original
    study's decay is of this sign; PRILoRA (arXiv 2401.11316) argues for the other one.
    """
    first, last = min(m.depth for m in modules), max(m.depth for m in modules)
    span = max(last - first, 1)
    weights = {m.name: 1 + options.slope * (0.5 - (m.depth - first) / span) for m in modules}
    return spend(modules, weights, budget, options.min_rank, options.max_rank)


STRATEGY = Strategy(
    "linear-decay",
    "rank falls in a straight line over depth (negative slope: rises)",
    "original study; rising: PRILoRA, arXiv 2401.11316",
    allocate,
    Options,
)
