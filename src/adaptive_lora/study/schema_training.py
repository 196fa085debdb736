"""The parts of a study file that say how adapters are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class Part(BaseModel):
    """A part of the study file: unknown keys are errors, values are frozen.

    Docstrings of fields are their descriptions in the JSON schema and in the key reference of the documentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def as_list(value: Any) -> Any:
    """One value as a list of one."""
    return value if isinstance(value, list) else [value]


def without_default(said: Mapping[str, Any], key: str, default: Any) -> dict[str, Any]:
    """What a part says, but for a key at its default, so that files from before the key keep their identity."""
    return {name: value for name, value in said.items() if name != key or value != default}


class MultipliersPart(Part):
    """By what the learning rate is multiplied in which parameters."""

    b: Annotated[float, Field(gt=0)] = 1.0
    """The rate of B over that of A (LoRA+)."""
    rank_exponent: float = 0.0
    """Modules of rank r learn at (r_ref / r)^exponent times the rate."""
    modules: dict[str, Annotated[float, Field(gt=0)]] = {}
    """By full module name, last part of the name, or kind (attention, mlp)."""


class ArmTrainPart(Part):
    """Where the training of one arm differs from the study's `train`."""

    longer: Annotated[float, Field(gt=0)] = 1.0
    """The study's steps times this, for an arm that is compared with one whose plan took training too."""
    warmup: Annotated[float, Field(ge=0)] | None = None
    """As in `train`."""
    multipliers: MultipliersPart | None = None
    """As in `train`."""
    clip: bool = True
    """Whether gradients are clipped at the study's `max_grad_norm`."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that says nothing of `clip` stays the study that it was before there was such a key."""
        return without_default(dump(self), "clip", True)


ONE_RATE_FOR_ALL = ("shared", "shared-by-budget")
"""Ways to tune by which all arms of a budget have one rate."""

FIRST_RATES = (3e-4, 1e-3, 3e-3)
"""Where `learning_rate: auto` begins."""


Rate = Annotated[float, Field(gt=0, lt=10)]
_RateOrAuto = Rate | Literal["auto"]


class TrainPart(Part):
    """How each adapter is trained (AdamW); the same for every arm, but for what an arm's own `train` says."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training records; either this or `steps`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer updates; either this or `epochs`."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Records an update."""
    learning_rate: Annotated[
        list[Rate],
        BeforeValidator(
            as_list, json_schema_input_type=_RateOrAuto | Annotated[list[_RateOrAuto], Field(min_length=1)]
        ),
        Field(min_length=1),
    ]
    """One rate, or a grid from which each arm's is chosen on validation with the tuning seeds. `auto`, alone or in the
    grid, sets `widen`."""
    widen: bool = False
    """Whether the grid grows, for all arms, while the best rate of one lies at its edge."""
    tune: Literal["baseline", "every-arm", "shared", "shared-by-budget"] = "every-arm"
    """`every-arm`: the whole grid for each arm, controls too. `baseline`: for the baseline alone, in steps of 1.8
    around the rate, or the best of the rates, that `learning_rate` gives, as far as it takes; each arm is then tried
    one step to either side and gets a rate of its own where it prefers one beyond the noise. `shared`: the whole grid
    for the baseline at the first budget alone, whose rate all arms have at all budgets; the least there is to train.
    `shared-by-budget`: the same at each budget by itself, half and double ones too."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after the warm-up: to 0 linearly, to 0 as a cosine, or not at all."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Below 1 a share of all steps, from 1 on a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients of an adapter are clipped to this norm; null clips none."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' inputs."""
    multipliers: MultipliersPart = MultipliersPart()
    """Learning rates that differ by matrix, rank or module."""
    activation_checkpointing: bool = False
    """Less memory for more time: activations are computed again in the backward pass (bank only)."""

    @model_validator(mode="before")
    @classmethod
    def _widening(cls, value: Any) -> Any:
        rates = as_list(value.get("learning_rate")) if isinstance(value, Mapping) else []
        if "auto" not in rates:
            return value
        return {**value, "learning_rate": [r for r in rates if r != "auto"] or list(FIRST_RATES), "widen": True}

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that says nothing of `tune` stays the study that it was before there was such a key."""
        return without_default(dump(self), "tune", "every-arm")

    @model_validator(mode="after")
    def _one_length(self) -> TrainPart:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either `epochs` or `steps`")
        return self
