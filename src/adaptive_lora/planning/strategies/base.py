"""What every strategy is: a name, its options, what it needs measured, and one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from adaptive_lora.planning.modules import ModuleShape

Scores = Mapping[str, Mapping[str, float]]
"""Measure -> module -> value; a strategy sees the measures it declared, for all target modules."""


class StrategyOptions(BaseModel):
    """Options that all strategies share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    min_rank: Annotated[int, Field(ge=1)] = 1
    """The least rank a target module gets."""
    max_rank: Annotated[int, Field(ge=1)] | None = None
    """The most rank a module gets, below its own limit min(d_in, d_out)."""


class CalibrationOptions(StrategyOptions):
    """Options of strategies that measure on batches of the training data."""

    calibration_batches: Annotated[int, Field(ge=1)] = 8
    calibration_batch_size: Annotated[int, Field(ge=1)] = 4


Allocate = Callable[[Sequence[ModuleShape], Scores, int, Any], dict[str, int]]


def needs_nothing(options: Any) -> tuple[str, ...]:
    """For strategies that go by shapes alone."""
    return ()


@dataclass(frozen=True)
class Strategy:
    """One way to spend a budget of trainable parameters.

    `allocate(modules, scores, budget, options)` is pure and deterministic and returns a whole rank for
    every module, exactly on the budget wherever integers allow.
    """

    name: str
    summary: str
    """One line for lists."""
    source: str
    """Paper or reasoning it comes from."""
    allocate: Allocate
    options: type[StrategyOptions] = StrategyOptions
    needs: Callable[[Any], tuple[str, ...]] = needs_nothing
    """Options -> names of the measures that must be taken first."""
    chance: bool = False
    """Whether the plan is drawn; its options then have a `seed`."""

    @property
    def rests_on(self) -> str:
        """`data`, `chance` or `nothing`: plans that rest on the first two are remade for every seed."""
        if self.needs(self.options()):
            return "data"
        return "chance" if self.chance else "nothing"
