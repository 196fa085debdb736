"""What every strategy is: a name, its options, what it needs measured, and one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adaptive_lora.errors import StrategyError, nearest_hint
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import Kind, ModuleShape

Scores = Mapping[str, Mapping[str, Any]]
"""Measure -> module -> a number, or a descending sequence of them (a spectrum); a strategy sees the measures it
declared, for all target modules."""

Effort = Literal["none", "weights", "data", "gradients", "training"]
"""What a measure costs, from cheap to dear: the frozen weights, forward passes, backward passes, a short training."""

MEASURES: dict[str, Effort] = {
    "stable-rank": "weights",
    "condition-number": "weights",
    "input-spectrum": "data",
    "weight-gradient": "gradients",
    "gradient-norm": "gradients",
    "b-gradient": "gradients",
    "whitened-rank": "gradients",
    "update-spectrum": "training",
    "update-spectrum-on-inputs": "training",
    "output-norm": "training",
    "update-spectrum-on-loss": "training",
    "adalora-rank": "training",
    "marginal-gain": "training",
    "loss-attribution": "training",
    "random-search": "training",
}
"""What can be measured on a frozen model before ranks are planned; `registry.register_measure` adds to it."""


class StrategyOptions(BaseModel):
    """Options that all strategies share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True)

    min_rank: Annotated[int, Field(ge=1)] = 1
    """The least rank a target module gets."""
    max_rank: Annotated[int, Field(ge=1)] | None = None
    """The most rank a module gets, below its own limit min(d_in, d_out)."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> StrategyOptions:
        if self.max_rank is not None and self.min_rank > self.max_rank:
            raise StrategyError(
                f"`min_rank` {self.min_rank} is above `max_rank` {self.max_rank}; no rank lies between them. Lower the "
                "one or raise the other"
            )
        return self

    def measuring(self) -> CalibrationOptions:
        """What measuring goes by; strategies that measure weights alone have no such options of their own."""
        return self if isinstance(self, CalibrationOptions) else CalibrationOptions()


class ScoredOptions(StrategyOptions):
    """Options of strategies that spend the budget by something measured."""

    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Pulls the ranks towards uniform: r_l ∝ w_l^power, w the weights that the strategy spends the budget by. 1 is the
    strategy itself, 0.5 half way on a log scale, 0 uniform; above 1 it is sharper."""


def bends_weights(options: type[StrategyOptions]) -> bool:
    """Whether `power` is that of `ScoredOptions`, and no option of the strategy's own by that name."""
    own, field = options.model_fields.get("power"), ScoredOptions.model_fields["power"]
    return issubclass(options, ScoredOptions) and own is not None and own.description == field.description


class CalibrationOptions(ScoredOptions):
    """Options of strategies that measure on batches of the training data."""

    calibration_batches: Annotated[int, Field(ge=1)] = 8
    """Batches of training records that are measured on."""
    calibration_batch_size: Annotated[int, Field(ge=1)] = 4
    """Records in each of them."""

    def updates(self, planned: int) -> int:
        """Updates that are trained before there is a plan for a training of `planned` updates."""
        return 0


Mode = Literal["auto", "exact", "stream"]
"""How gradients are measured; see `GradientOptions`."""
Tokens = Literal["all", "completion"]
"""Which tokens inputs are measured on; padding never counts."""


class GradientOptions(CalibrationOptions):
    """Options of strategies that measure gradients of the frozen weights."""

    mode: Mode = "auto"
    """`exact` keeps one gradient for every target weight, `stream` only sums much smaller than that;
    `auto` is exact while the target weights together have at most 2^25 entries."""


class ComponentOptions(GradientOptions):
    """Options of strategies that count principal components of the modules' inputs."""

    rho: Annotated[float, Field(ge=1)] = 2.0
    """So many times the uniform rank are counted of one module at most."""
    tokens: Tokens = "all"
    """`all` real tokens, or those of the `completion` alone."""


class ShortRunOptions(CalibrationOptions):
    """Options of strategies that train for a while before they plan; what that costs stands in the plan."""

    short_run_steps: Annotated[int, Field(ge=1)] | None = 100
    """Updates of a short run; None: as many as the planned training has."""
    short_run_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Its rate; by default the one the plan is made for."""

    def updates(self, planned: int) -> int:
        """One short run."""
        return self.steps_of_a_run(planned)

    def steps_of_a_run(self, planned: int) -> int:
        """Updates of one short run before a training of `planned` updates."""
        return self.short_run_steps or planned


class OverRankOptions(ShortRunOptions):
    """Options of strategies that look at one run with more rank than there will be."""

    over_rank: Annotated[float, Field(ge=1)] = 2.0
    """The run's uniform rank, as a multiple of what the budget pays for."""


class AgreementOptions(ShortRunOptions):
    """Options of strategies that compare several runs on the budget itself."""

    short_run_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates of each run; by default as many as the planned training has."""
    runs: Annotated[int, Field(ge=2)] = 4
    """How many a round, each with its own draw of A and order of the data."""
    rounds: Annotated[int, Field(ge=1)] = 2
    """How often the plan is made; each round trains the plan of the round before."""
    race: bool = True
    """Whether the plans of all rounds are raced against uniform, which is kept unless one beats it for certain."""

    def updates(self, planned: int) -> int:
        """All runs of all rounds, and one for every plan in the race."""
        return super().updates(planned) * (self.runs * self.rounds + (self.rounds + 1 if self.race else 0))


class HindsightOptions(ShortRunOptions):
    """Options of strategies that train fat on the task itself and cut to the budget."""

    short_run_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates of each run; by default as many as the planned training has."""
    over_rank: Annotated[float, Field(ge=1)] = 2.0
    """The runs' parameters, as a multiple of the budget's."""
    runs: Annotated[int, Field(ge=1)] = 2
    """How many a round, each with its own draw of A and order of the data."""
    rounds: Annotated[int, Field(ge=1)] = 4
    """How often the plan is made; each round trains what the round before would have cut less."""

    def updates(self, planned: int) -> int:
        """All runs of all rounds."""
        return super().updates(planned) * self.runs * self.rounds


class SearchOptions(ShortRunOptions):
    """Options of strategies that try plans by chance."""

    short_run_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates of each try; by default as many as the planned training has."""
    draws: Annotated[int, Field(ge=1)] = 8
    """How many plans are tried."""
    concentration: Annotated[float, Field(gt=0)] = 1.0
    """Of the Dirichlet distribution that they are drawn from, as in `random`."""

    def updates(self, planned: int) -> int:
        """All tries."""
        return super().updates(planned) * self.draws


Allocate = Callable[[Sequence[ModuleShape], Scores, int, Any], dict[str, int]]
Pick = Callable[[Sequence[ModuleShape], Scores, int, Any], Sequence[ModuleShape]]


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
    covers: Kind | None = None
    """The only kind of module that gets a rank, where the strategy leaves the others out: these have rank 0."""
    picks: Pick | None = None
    """Modules, scores, budget and options -> the only modules with a rank, where that is no matter of their kind."""
    check_known: Callable[[Sequence[ModuleShape], int, Any], object] | None = None
    """(modules, budget, options): StrategyError where it is certain before measuring that there will be no plan."""
    origin: str | None = None
    """File or module that it was written in; None for the package's own."""
    digest: str | None = None
    """SHA-256 of the code in `origin`: edited code is another strategy."""

    @property
    def code(self) -> dict[str, str | None]:
        """The file it was written in, without its folder, and the hash of that file; for records."""
        return {"file": self.origin and Path(self.origin).name, "sha256": self.digest}

    @property
    def leaves_out(self) -> bool:
        """Whether some target modules may have rank 0."""
        return self.covers is not None or self.picks is not None

    def covered(
        self, modules: Sequence[ModuleShape], scores: Scores | None = None, budget: int = 0, options: Any = None
    ) -> list[ModuleShape]:
        """The modules that get a rank; StrategyError where none would. What else is given matters to `picks` alone."""
        if self.picks is not None:
            return list(self.picks(modules, scores or {}, budget, self.options() if options is None else options))
        found = [m for m in modules if self.covers in (None, m.kind)]
        if not found:
            raise StrategyError(
                f"{self.name} gives rank to {self.covers} modules alone, and none of the {len(modules)} target "
                f"is one. Add some to `targets`, or use another strategy."
            )
        return found

    def check_budget(self, modules: Sequence[ModuleShape], budget: int, options: Any) -> None:
        """UsageError where there can be no plan on a budget.

        Where scores must be measured first, the least rank in each covered module counts, and what the strategy knows.
        """
        if not self.needs(options):
            self.allocate(modules, {}, budget, options)
            return
        if self.picks is None:  # what is picked by scores is not known yet
            covered = self.covered(modules)
            spend(covered, {m.name: 1.0 for m in covered}, budget, options.min_rank, options.max_rank)
        if self.check_known is not None:
            self.check_known(modules, budget, options)

    def effort_of(self, options: Any) -> Effort:
        """The dearest of what its measures take."""
        order: tuple[Effort, ...] = get_args(Effort)
        return max((MEASURES[need] for need in self.needs(options)), key=order.index, default="none")

    def basis(self, options: Any) -> Literal["data", "chance", "none"]:
        """What a plan with these options rests on; those on the first two are remade for every seed."""
        if self.effort_of(options) not in ("none", "weights"):
            return "data"
        return "chance" if self.chance else "none"

    @property
    def rests_on(self) -> str:
        """The basis of its plans where no options are given."""
        return self.basis(self.options())


def check_options(strategy: Strategy, options: Mapping[str, Any]) -> StrategyOptions:
    """Options as the strategy's own type; StrategyError with all that is wrong with them."""
    try:
        return strategy.options(**options)
    except ValidationError as error:
        known = strategy.options.model_fields
        complaints = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                complaints.append(f"no option `{key}`{nearest_hint(key, known)}; it has {', '.join(known)}")
            elif isinstance(own := problem.get("ctx", {}).get("error"), StrategyError):
                complaints.append(str(own).removesuffix("."))
            else:
                complaints.append(f"`{key}`: {problem['msg'].lower()}, got {problem['input']!r}")
        raise StrategyError(f"{strategy.name}: {'; '.join(complaints)}.") from None
