"""An adapter in the last blocks alone, as some tools train by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions
from adaptive_lora.planning.strategies.coverage import equal_in


class Options(StrategyOptions):
    """Options of `last-blocks`."""

    blocks: Annotated[int, Field(ge=1)] | None = None
    """How many of the last blocks get an adapter; by default half of them, rounded up."""


def last(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> list[ModuleShape]:
    """The modules of the last blocks; all of them where there are no more blocks than that."""
    depths = sorted({m.depth for m in modules})
    kept = set(depths[-(options.blocks or -(-len(depths) // 2)) :])
    return [m for m in modules if m.depth in kept]


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l = r in the last `blocks` blocks and r_l = 0, no adapter, before them.

    The whole budget goes to these blocks, so that their rank is higher than uniform's and the plan costs the same,
    which is not what `--num-layers` of mlx-lm or Unsloth's last layers do: there fewer layers are fewer parameters.
    Caps may leave some of a large budget unspent.
    """
    return equal_in(last(modules, scores, budget, options), modules, budget, options)


STRATEGY = Strategy(
    "last-blocks",
    "the same rank in every module of the last `blocks` blocks, no adapter before them",
    "habit of mlx-lm (`--num-layers`) and Unsloth",
    allocate,
    Options,
    picks=last,
)
