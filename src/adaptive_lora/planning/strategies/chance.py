"""Ranks by chance: what any informed strategy must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions
from adaptive_lora.streams import numpy_stream


class Options(StrategyOptions):
    """Options of `random`."""

    concentration: Annotated[float, Field(gt=0)] = 1.0
    """Of the Dirichlet distribution; large values are nearly uniform."""
    seed: int = 0
    """Of the draw; a study gives every run its own."""


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r ∝ Dirichlet(concentration) over the modules: separates "not uniform" from "informed".

    Each module draws from a stream of its own name, so that the order of modules is irrelevant.
    """
    weights = {m.name: numpy_stream(options.seed, "random-ranks", m.name).gamma(options.concentration) for m in modules}
    return spend(modules, weights, budget, options.min_rank, options.max_rank)


STRATEGY = Strategy(
    "random",
    "rank by chance (Dirichlet), the control of informed strategies",
    "control",
    allocate,
    Options,
    chance=True,
)
