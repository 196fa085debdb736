"""The parts of a study file: what each may say, and what it means where it says nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adaptive_lora.data.templates import TemplateName
from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.planning.plan import ScalingRule
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.study.seeds import expand_seeds


def as_list(value: Any) -> Any:
    """One value as a list of one."""
    return value if isinstance(value, list) else [value]


def _with_known_variables(text: str) -> str:
    unset = [name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ]
    if unset:
        raise ValueError(
            f"the environment variable {' and '.join(unset)} is not set; set it to the folder that holds the material"
        )
    return text


def _parsed_budget(text: str) -> str:
    """`params:50_000` and `params:50000` are one budget: one way of writing it."""
    unit, number = parse_budget(text)
    return f"{unit}:{number}"


PathText = Annotated[str, AfterValidator(_with_known_variables)]
BudgetText = Annotated[str, AfterValidator(_parsed_budget)]


class Part(BaseModel):
    """A part of the study file: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelPart(Part):
    """Which base model."""

    name: PathText
    """`demo`, a folder, or a hub name owner/name."""
    revision: str | None = None
    """Hub commit, tag or branch."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"


class DataPart(Part):
    """Which records, and how many for what."""

    source: PathText
    """`demo:fine-tuning`, a .json, .jsonl or .parquet file, or a hub data set owner/name[:configuration]."""
    train: Annotated[int, Field(ge=1)]
    validation: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest text in tokens; the model's own context caps it."""
    template: TemplateName = "auto"
    split_seed: int = 0


class ScalingPart(Part):
    """How strongly updates count; see `planning.plan.Scaling`."""

    rule: ScalingRule = "constant"
    reference: Annotated[float, Field(gt=0)] = 2.0
    """s_ref: alpha / rank of a uniform plan."""


def _as_scaling(value: Any) -> Any:
    return {"rule": value} if isinstance(value, str) else value


ScalingField = Annotated[ScalingPart, BeforeValidator(_as_scaling)]


class MultipliersPart(Part):
    """By what the learning rate is multiplied where; see `training.options.rate_factors`."""

    b: Annotated[float, Field(gt=0)] = 1.0
    """The rate of B over that of A (LoRA+)."""
    rank_exponent: float = 0.0
    """Modules of rank r learn at (r_ref / r)^exponent times the rate."""
    modules: dict[str, Annotated[float, Field(gt=0)]] = {}
    """By full module name, last part of the name, or kind (attention, mlp)."""


class ArmTrainPart(Part):
    """What one arm trains otherwise than the study; what it does not name is the study's."""

    longer: Annotated[float, Field(gt=0)] = 1.0
    """Times the study's steps, to set a plain arm beside one whose plan was searched for."""
    warmup: Annotated[float, Field(ge=0)] | None = None
    multipliers: MultipliersPart | None = None


class ArmPart(Part):
    """One thing that is compared: a strategy with its options, or fixed ranks."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    strategy: str | None = None
    options: dict[str, Any] = {}
    scaling: ScalingField | None = None
    """Only where it differs from the study's."""
    train: ArmTrainPart | None = None
    """Only where it differs from the study's."""
    ranks: dict[str, int] | None = None
    """Fixed ranks by name (read from a file where one is named); exempt from equal size."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, "strategy": value}
        if isinstance(value, Mapping) and "name" not in value:
            return {**value, "name": value.get("strategy") or "ranks"}
        return value

    @model_validator(mode="after")
    def _one_of(self) -> ArmPart:
        if (self.strategy is None) == (self.ranks is None):
            raise ValueError("an arm has either a `strategy` or `ranks`")
        if self.strategy is not None:
            check_options(find_strategy(self.strategy), self.options)
        return self


def _seeds_of(phase: str) -> BeforeValidator:
    return BeforeValidator(lambda value: expand_seeds(value, phase))


class SeedsPart(Part):
    """How often: a number of seeds, or the seeds themselves."""

    evaluation: Annotated[list[int], _seeds_of("evaluation"), Field(min_length=1)]
    tuning: Annotated[list[int], _seeds_of("tuning")] = []


FIRST_RATES = (3e-4, 1e-3, 3e-3)
"""Where `learning_rate: auto` begins."""


class TrainPart(Part):
    """How each adapter is trained; every arm the same, but for what an arm's own `train` says."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[list[Annotated[float, Field(gt=0, lt=10)]], BeforeValidator(as_list), Field(min_length=1)]
    """One rate, or a grid from which each arm's is chosen on validation with the tuning seeds. `auto`, alone or in the
    grid, sets `widen`."""
    widen: bool = False
    """Whether the grid grows, for all arms, while the best rate of one lies at its edge."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    multipliers: MultipliersPart = MultipliersPart()
    activation_checkpointing: bool = False
    """Less memory for more time: activations are computed again on the way back (bank only)."""

    @model_validator(mode="before")
    @classmethod
    def _widening(cls, value: Any) -> Any:
        rates = as_list(value.get("learning_rate")) if isinstance(value, Mapping) else []
        if "auto" not in rates:
            return value
        return {**value, "learning_rate": [r for r in rates if r != "auto"] or list(FIRST_RATES), "widen": True}

    @model_validator(mode="after")
    def _one_length(self) -> TrainPart:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either `epochs` or `steps`")
        return self


class PrimaryPart(Part):
    """A hypothesis: an arm against the baseline, at one budget or at each."""

    arm: str
    budget: BudgetText | None = None


def _as_primary(value: Any) -> Any:
    return [{"arm": part} if isinstance(part, str) else part for part in value] if isinstance(value, list) else value


class AnalysisPart(Part):
    """How it will be judged."""

    baseline: str = "uniform"
    primary: Annotated[list[PrimaryPart] | None, BeforeValidator(_as_primary)] = None
    """The comparisons that get a verdict; by default every arm of the study's own at every budget. An empty list
    makes the whole study exploratory."""
    metric: Literal["test_loss"] = "test_loss"
    margin: Annotated[float, Field(gt=0)] = 0.01
    """Differences within it do not matter, nats per token; 0.01 is about 1 % of perplexity."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05


Control = Literal["random", "shuffled", "twin", "half", "double", "compute"]

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]

_ALL = list(get_args(Control))


def _as_controls(value: Any) -> Any:
    return {"all": _ALL, "none": []}.get(value, value) if isinstance(value, str) else value


class StudySpec(Part):
    """A whole study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    model: ModelPart
    data: DataPart
    targets: str | list[str] = "all-linear"
    budgets: Annotated[list[BudgetText], Field(min_length=1)]
    arms: Annotated[list[ArmPart], Field(min_length=1)]
    scaling: ScalingField = ScalingPart()
    seeds: SeedsPart
    train: TrainPart
    analysis: AnalysisPart = AnalysisPart()
    controls: Annotated[list[Control], BeforeValidator(_as_controls)] = Field(default_factory=_ALL.copy)
    """What stands beside the arms, see `study.protocol`; `all`, `none`, or some of them."""
    engine: Literal["bank", "reference"] = "bank"
    """All adapters together, or one after another through PEFT."""
    tracking: Annotated[list[Tracker], BeforeValidator(as_list)] = Field(default_factory=list)
    """Trackers that finished runs are told to, besides the ledger; changes no result."""
