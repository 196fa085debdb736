"""The parts of a study file: what each may say, and what it means where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from adaptive_lora.data.encoding import Learn
from adaptive_lora.planning.outline import DType, Products, Quantise
from adaptive_lora.planning.plan import ScalingRule
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.registry import pinned, with_pinned_source
from adaptive_lora.study.schema_metric import MetricField
from adaptive_lora.study.schema_report import ReportPart
from adaptive_lora.study.schema_texts import BudgetText, Name, PathText, TemplateText
from adaptive_lora.study.schema_training import ArmTrainPart, Part, TrainPart, as_list, without_default
from adaptive_lora.study.seeds import MOST_SEEDS, expand_seeds


class ModelPart(Part):
    """Which base model."""

    name: PathText
    """`demo`, `smollm2` (see `fetch`), a folder, a .gguf file, or a hub name owner/name."""
    revision: str | None = None
    """Hub commit, tag or branch."""
    dtype: DType = "float32"
    """Number type of the frozen weights; adapters are float32, and float64 where the model is."""
    quantise: Quantise | None = None
    """Keep the weights of the frozen linear layers in 4 bits (`nf4`) or 8 (`int8`), by bitsandbytes; products are in
    `dtype`. A model that is stored so needs no word."""
    products: Products | None = None
    """`bfloat16`: what the frozen linear layers of a float32 model multiply in, several times faster where the hardware
    has such products; sums, adapters and all else stay in float32."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that says nothing of `quantise` or `products` stays what it was before there were such keys."""
        return without_default(without_default(dump(self), "quantise", None), "products", None)

    @model_validator(mode="after")
    def _quantisable(self) -> ModelPart:
        if self.quantise and self.dtype == "float64":
            raise ValueError(f"{self.quantise} weights are made of float32, bfloat16 or float16, got dtype float64")
        if self.products and (self.quantise or self.dtype != "float32"):
            weights = self.quantise or self.dtype
            raise ValueError(
                f"products in {self.products} are of float32 weights, got {weights}: leave one of them out"
            )
        return self


class DataPart(Part):
    """Which records, and how many for what."""

    source: PathText
    """`demo:fine-tuning`, a .json, .jsonl, .csv or .parquet file, or a hub data set owner/name[:configuration]."""
    train: Annotated[int, Field(ge=1)]
    """Training records; each seed draws its own, the same for all arms."""
    validation: Annotated[int, Field(ge=1)]
    """Records on which learning rates are chosen."""
    test: Annotated[int, Field(ge=1)]
    """Records on which arms are compared; never used to choose anything."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest text in tokens; the model's own context caps it."""
    template: TemplateText = "auto"
    """How a record becomes text: `auto`, `chat`, `alpaca`, `alpaca-short`, `question`, `plain`, or a named
    chat template of the model. `auto` is `chat` for models that have one, else goes by the form of the records."""
    learn: Learn = "last"
    """Of a conversation the `last` answer, or `all` of them."""
    split_seed: int = 0
    """Which records are for training, validation and test; the same for all runs."""
    general: PathText | None = None
    """A general text whose loss is measured beside the test loss, to see what is forgotten: a .txt file, or what
    `source` takes."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that says nothing of `learn` or `general` stays the study that it was before there were such keys."""
        return without_default(without_default(dump(self), "learn", "last"), "general", None)


class ScalingPart(Part):
    """How strongly updates count: s = s_ref · (r_ref / r)^g, where r_ref is the uniform rank of the budget."""

    rule: ScalingRule = "constant"
    """g: 0 for `constant`, 1/2 for `rslora`, 1 for `alpha-over-r` (what PEFT does when alpha is left constant)."""
    reference: Annotated[float, Field(gt=0)] = 2.0
    """s_ref: alpha / rank of a uniform plan."""


def _as_scaling(value: Any) -> Any:
    return {"rule": value} if isinstance(value, str) else value


ScalingField = Annotated[ScalingPart, BeforeValidator(_as_scaling, json_schema_input_type=ScalingRule | ScalingPart)]


_RANKS_OR_FILE = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}},
        {"type": "string"},
        {"type": "null"},
    ]
}


def _pinned(strategy: str | None) -> str | None:
    return None if strategy is None else pinned(strategy)


class ArmPart(Part):
    """One thing that is compared: a strategy with its options, or fixed ranks."""

    name: Name
    """What tables and figures call it; by default the strategy, or the rank file's name."""
    strategy: Annotated[str | None, AfterValidator(_pinned)] = None
    """How the budget is spent: a name (`adaptive-lora strategies` lists them), or your own as `my_file.py:name`, which
    the lock pins by the hash of its code."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the strategy."""
    scaling: ScalingField | None = None
    """Where it differs from the study's `scaling`."""
    train: ArmTrainPart | None = None
    """Where it differs from the study's `train`."""
    ranks: Annotated[dict[str, int] | None, WithJsonSchema(_RANKS_OR_FILE)] = None
    """Fixed ranks instead of a strategy: rank by module name or its ending, or a JSON file of them. A
    hypothesis only where they cost what the baseline costs."""

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

    @field_validator("options")
    @classmethod
    def _pinned_source(cls, options: dict[str, Any], arm: ValidationInfo) -> dict[str, Any]:
        return with_pinned_source(arm.data.get("strategy") or "", options)


def _seeds_of(phase: str, least: int) -> BeforeValidator:
    counted = Annotated[int, Field(ge=least, le=MOST_SEEDS)] | Annotated[list[int], Field(min_length=least)]
    return BeforeValidator(lambda value: expand_seeds(value, phase), json_schema_input_type=counted)


class SeedsPart(Part):
    """How often everything is trained: a number of seeds, or the seeds themselves."""

    evaluation: Annotated[list[int], _seeds_of("evaluation", 1), Field(min_length=1)]
    """Seeds of the runs that are compared."""
    tuning: Annotated[list[int], _seeds_of("tuning", 0)] = Field(default_factory=list)
    """Seeds of the runs that choose learning rates; never those of `evaluation`."""
    looks: list[Annotated[int, Field(ge=2)]] = Field(default_factory=list)
    """After how many evaluation seeds the study is judged, such as `[4, 6, 8, 10, 12]`: arms that are decided stop, and
    the study with the last of them. The last look has all evaluation seeds, which are so its cap. By default there is
    one judgement, when all of them are done."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study without looks stays the study that it was before there were any."""
        said: dict[str, Any] = dump(self)
        return {key: value for key, value in said.items() if key != "looks" or value}


class PrimaryPart(Part):
    """A hypothesis: an arm against the baseline, at one budget or at each."""

    arm: str
    """Name of the arm."""
    budget: BudgetText | None = None
    """One of the study's budgets; by default each of them."""


def _as_primary(value: Any) -> Any:
    return [{"arm": part} if isinstance(part, str) else part for part in value] if isinstance(value, list) else value


class AnalysisPart(Part):
    """How it will be judged."""

    baseline: str = "uniform"
    """The arm that all others are compared with."""
    primary: Annotated[
        list[PrimaryPart] | None,
        BeforeValidator(_as_primary, json_schema_input_type=list[str | PrimaryPart] | None),
    ] = None
    """The comparisons that get a verdict; by default every arm of the study's own at every budget. An empty list
    makes the whole study exploratory."""
    metric: MetricField = "test_loss"
    """What is compared. `test_loss`: mean negative log-likelihood per completion token of the test records, in nats.
    `exact_match`: the share of test records whose whole completion the model would have chosen, where the data have one
    right answer each. `answer_match`: the share whose greedy answer gives the record's own, as `answers: auto` has it.
    Or with settings: answers, a task of lm-evaluation-harness, or a command of your own that scores adapters."""
    margin: Annotated[float, Field(gt=0)] | Literal["half-budget"] = "half-budget"
    """Differences within it do not matter. `half-budget` measures it: a quarter of what half the budget costs on this
    task, by the control `half`. Or a number in the metric's unit: nats per token of `test_loss`, where 0.01 is about
    1 % of perplexity, a share of the records of `exact_match`, percentage points of other shares of right answers."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance of any false difference over all primary comparisons and looks, and of any false equivalence."""
    ceiling: list[str] = Field(default_factory=list)
    """Arms that stand for the best an allocation can do, such as those that know the end of training. At a budget where
    each of them is shown to gain less than a quarter of what half the budget costs, allocation is closed."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study without a ceiling stays the study that it was before there was such a key."""
        return without_default(dump(self), "ceiling", [])


Control = Literal["random", "shuffled", "twin", "half", "double", "compute", "own-shuffled", "unclipped"]

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]

_ALL = [name for name in get_args(Control) if name not in ("own-shuffled", "unclipped")]
"""What `all` has always meant; by name alone: `own-shuffled`, which costs a control for every hypothesis."""


def _as_controls(value: Any) -> Any:
    return {"all": _ALL, "none": []}.get(value, value) if isinstance(value, str) else value


class StudySpec(Part):
    """A whole study file."""

    name: Name
    """What reports call the study."""
    model: ModelPart
    """Which base model."""
    data: DataPart
    """Which records, and how many for what."""
    targets: str | list[str] = "all-linear"
    """Which modules get adapters: `all-linear`, `attention`, `mlp`, or module names or their endings."""
    budgets: Annotated[list[BudgetText], Field(min_length=1)]
    """Trainable parameters, the same for every arm: `rank:r` is what a uniform rank r costs, `params:N` is N."""
    arms: Annotated[list[ArmPart], Field(min_length=1)]
    """What is compared: a strategy's name, or a strategy with options, or fixed ranks."""
    scaling: ScalingField = ScalingPart()
    """How strongly updates count; a rule's name alone will do."""
    seeds: SeedsPart
    """How often everything is trained."""
    train: TrainPart
    """How each adapter is trained."""
    analysis: AnalysisPart = AnalysisPart()
    """How the arms are judged."""
    controls: Annotated[
        list[Control],
        BeforeValidator(_as_controls, json_schema_input_type=Literal["all", "none"] | list[Control]),
    ] = Field(default_factory=_ALL.copy, json_schema_extra={"default": "all"})
    """What is trained beside the arms so that a verdict can be trusted: `all` (but the last two), `none`, or a list.
    `own-shuffled` gives every hypothesis that measures its own ranks elsewhere, in place of the one `shuffled`;
    `unclipped` trains the baseline without clipping of gradients."""
    engine: Literal["bank", "reference"] = "bank"
    """All adapters together, or one after another through PEFT."""
    tracking: Annotated[list[Tracker], BeforeValidator(as_list, json_schema_input_type=Tracker | list[Tracker])] = (
        Field(default_factory=list)
    )
    """Experiment trackers that finished runs are sent to; changes no result."""
    report: ReportPart = ReportPart()
    """What the page shows beside what it compares; changes no result."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that says nothing of `report` stays the study that it was before there was such a key."""
        return without_default(dump(self), "report", ReportPart().model_dump(mode="json"))
