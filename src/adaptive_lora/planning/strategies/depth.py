"""Rank by depth alone: a falling line, a rising line, and a dip in the middle of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Allocate, Scores, Strategy, StrategyOptions

Shape = Callable[[float, Any], float]
"""(x, options) -> weight, x the depth scaled to [0, 1]."""


class LineOptions(StrategyOptions):
    """Options of ranks in a straight line over depth."""

    slope: Annotated[float, Field(gt=-2, lt=2)] = 1.0
    """How much of the mean rank lies between the first block and the last; negative turns the line round."""


class DipOptions(StrategyOptions):
    """Options of ranks in a parabola over depth."""

    dip: Annotated[float, Field(lt=1, allow_inf_nan=False)] = 0.5
    """How much of the ends' rank the middle lacks; negative gives the middle more."""


def shaped(weight: Shape) -> Allocate:
    """r_l ∝ weight(x_l), x_l = (depth_l - first) / (last - first); all alike where there is one block alone."""

    def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Any) -> dict[str, int]:
        first, last = min(m.depth for m in modules), max(m.depth for m in modules)
        span = max(last - first, 1)
        weights = {m.name: weight((m.depth - first) / span, options) for m in modules}
        return spend(modules, weights, budget, options.min_rank, options.max_rank)

    return allocate


def falling(x: float, options: LineOptions) -> float:
    """1 + slope · (1/2 - x): at slope 1 the first block gets three times the rank of the last (original study)."""
    return 1 + options.slope * (0.5 - x)


def rising(x: float, options: LineOptions) -> float:
    """1 + slope · (x - 1/2), the mirror of `falling`: PRILoRA (arXiv 2401.11316) raises the rank over depth."""
    return 1 + options.slope * (x - 0.5)


def dipped(x: float, options: DipOptions) -> float:
    """1 - dip · (1 - (2x - 1)²): a parabola, 1 at both ends and 1 - dip in the middle.

    What neither line can be: the ends against the middle, the third shape that depth alone can give.
    """
    return 1 - options.dip * (1 - (2 * x - 1) ** 2)


LINEAR_DECAY = Strategy(
    "linear-decay",
    "rank falls in a straight line over depth (negative slope: rises)",
    "original study",
    shaped(falling),
    LineOptions,
)
LINEAR_GROWTH = Strategy(
    "linear-growth",
    "rank rises in a straight line over depth (negative slope: falls)",
    "PRILoRA, arXiv 2401.11316",
    shaped(rising),
    LineOptions,
)
U_SHAPE = Strategy(
    "u-shape",
    "most rank at both ends of the network, `dip` less in the middle (negative: more)",
    "control of the two lines",
    shaped(dipped),
    DipOptions,
)
