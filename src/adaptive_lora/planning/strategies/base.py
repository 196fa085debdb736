"""What every strategy is: a name, its options, what it needs measured, and one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from adaptive_lora.planning.modules import ModuleShape

Scores = Mapping[str, Mapping[str, Any]]
"""Measure -> module -> a number, or a descending sequence of them (a spectrum); a strategy sees the measures it
declared, for all target modules."""

Effort = Literal["nothing", "weights", "data", "gradients", "a short run"]
"""What a measure takes, from cheap to dear: the frozen weights, forward passes, backward passes, training."""

MEASURES: Mapping[str, Effort] = {
    "stable-rank": "weights",
    "input-spectrum": "data",
    "weight-gradient": "gradients",
    "gradient-norm": "gradients",
    "b-gradient": "gradients",
    "whitened-rank": "gradients",
    "update-spectrum": "a short run",
    "output-norm": "a short run",
    "adalora-rank": "a short run",
    "marginal-gain": "a short run",
}
"""What can be measured on a frozen model before ranks are planned; `scores.measuring` takes them."""


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


class ShortRunOptions(CalibrationOptions):
    """Options of strategies that train for a while before they plan; what that costs stands in the plan."""

    short_run_steps: Annotated[int, Field(ge=1)] = 100
    """Updates of the short run."""
    over_rank: Annotated[float, Field(ge=1)] = 2.0
    """Its uniform rank, as a multiple of what the budget pays for."""
    short_run_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Its rate; by default the one the plan is made for."""


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

    def effort_of(self, options: Any) -> Effort:
        """The dearest of what its measures take."""
        order: tuple[Effort, ...] = get_args(Effort)
        return max((MEASURES[need] for need in self.needs(options)), key=order.index, default="nothing")

    @property
    def rests_on(self) -> str:
        """`data`, `chance` or `nothing`: plans that rest on the first two are remade for every seed."""
        if self.effort_of(self.options()) not in ("nothing", "weights"):
            return "data"
        return "chance" if self.chance else "nothing"
