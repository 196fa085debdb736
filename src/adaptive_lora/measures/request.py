"""What measurements are taken on, and which inputs each value depends on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.data.splits import calibration_subset, hash_examples
from adaptive_lora.planning.budget import uniform_rank
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import Scaling
from adaptive_lora.planning.strategies.base import (
    AgreementOptions,
    CalibrationOptions,
    ComponentOptions,
    GradientOptions,
    HindsightOptions,
    Mode,
    OverRankOptions,
    SearchOptions,
    ShortRunOptions,
    StrategyOptions,
)
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import Loss, label_loss
from adaptive_lora.training.options import TrainingOptions

EXACT_ENTRIES = 1 << 25
"""`auto` is exact up to so many entries in all target weights together."""

MakeBank = Callable[[FrozenBase, Sequence[Member]], Bank]


@dataclass(frozen=True)
class PlannedTraining:
    """The training that ranks are planned for: short runs imitate it, gradients are those of its loss."""

    options: TrainingOptions
    bank: MakeBank = Bank
    loss: Loss = label_loss
    """The loss that the bank minimises, for gradients and training without a bank."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that a measurement may depend on; `INPUTS` names the parts, each measure says which it uses."""

    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    examples: Sequence[Example]
    """Training examples; calibration draws from them."""
    options: CalibrationOptions
    """The strategy's, of which a measure reads what concerns it."""
    seed: int
    budget: int
    """Trainable parameters of the plan."""
    scaling: Scaling
    training: PlannedTraining

    @functools.cached_property
    def batches(self) -> list[list[Example]]:
        """The calibration batches."""
        size = self.options.calibration_batch_size
        chosen = calibration_subset(self.examples, self.options.calibration_batches * size, self.seed)
        return [list(chosen[at : at + size]) for at in range(0, len(chosen), size)]

    @functools.cached_property
    def calibration_hash(self) -> str:
        """Hash of the calibration records in their order."""
        return hash_examples([example for batch in self.batches for example in batch])[:16]

    @functools.cached_property
    def examples_hash(self) -> str:
        """Hash of all training examples in their order."""
        return hash_examples(self.examples)[:16]

    @property
    def mode(self) -> Mode:
        """How gradients are summed, `auto` resolved."""
        asked = self.options.mode if isinstance(self.options, GradientOptions) else "auto"
        return resolve_mode(asked, self.modules)

    @property
    def rank(self) -> int:
        """The uniform rank of the budget."""
        return uniform_rank(self.modules, self.budget)

    @property
    def components(self) -> int | None:
        """Leading principal components that are counted; None: all."""
        return round(self.options.rho * self.rank) if isinstance(self.options, ComponentOptions) else None

    @property
    def tokens(self) -> str:
        """Which inputs count in `input-spectrum`."""
        return self.options.tokens if isinstance(self.options, ComponentOptions) else "all"

    @property
    def agreement(self) -> AgreementOptions:
        """Rounds, runs and race of `marginal-gain`."""
        return self.options if isinstance(self.options, AgreementOptions) else AgreementOptions()

    @property
    def hindsight(self) -> HindsightOptions:
        """Runs and rounds of `loss-attribution`."""
        return self.options if isinstance(self.options, HindsightOptions) else HindsightOptions()

    @property
    def search(self) -> SearchOptions:
        """Draws of `random-search`."""
        return self.options if isinstance(self.options, SearchOptions) else SearchOptions()

    @property
    def over_ranked_budget(self) -> int:
        """Trainable parameters of an over-ranked run."""
        own = self.options if isinstance(self.options, OverRankOptions) else OverRankOptions()
        return round(own.over_rank * self.budget)

    @property
    def short_training(self) -> PlannedTraining:
        """The planned training with the steps and the learning rate of short runs; the schedule spans those steps."""
        own = self.options if isinstance(self.options, ShortRunOptions) else ShortRunOptions()
        planned = self.training.options
        steps = own.steps_of_a_run(planned.steps)
        rate = own.short_run_learning_rate or planned.learning_rate
        return replace(self.training, options=replace(planned, steps=steps, learning_rate=rate))


def resolve_mode(mode: Mode, modules: Sequence[ModuleShape]) -> Mode:
    """`exact` or `stream`: `auto` is exact for up to `EXACT_ENTRIES`."""
    if mode != "auto":
        return mode
    return "exact" if sum(m.d_in * m.d_out for m in modules) <= EXACT_ENTRIES else "stream"


def _calibration(request: Request) -> dict[str, Any]:
    return {"hash": request.calibration_hash, "batch_size": request.options.calibration_batch_size}


def _rounds(request: Request) -> dict[str, Any]:
    return _bounds_and(request.agreement, "runs", "rounds", "race")


def _bounds_and(options: StrategyOptions, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in (*names, "min_rank", "max_rank")}


INPUTS: Mapping[str, Callable[[Request], Any]] = {
    "calibration": _calibration,
    "seed": lambda request: request.seed,
    "mode": lambda request: request.mode,
    "rank": lambda request: request.rank,
    "components": lambda request: request.components,
    "tokens": lambda request: request.tokens,
    "examples": lambda request: request.examples_hash,
    "training": lambda request: asdict(request.short_training.options),
    "parameters": lambda request: request.budget,
    "over_ranked_parameters": lambda request: request.over_ranked_budget,
    "scaling": lambda request: asdict(request.scaling),
    "rounds": _rounds,
    "hindsight": lambda request: _bounds_and(request.hindsight, "runs", "rounds", "over_rank"),
    "search": lambda request: _bounds_and(request.search, "draws", "concentration"),
}
"""Input -> its value in a request, as JSON. What is not named by a measure must not change its value."""


@dataclass(frozen=True)
class MeasurementKey:
    """What a measurement is a function of; equal keys have equal values."""

    measure: str
    inputs: str
    """Canonical JSON: the base model's revision and precision, the target modules, and the inputs of the measure."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits of a SHA-256."""
        return hashlib.sha256(f"{self.measure} {self.inputs}".encode()).hexdigest()[:32]


def key_of(measure: str, inputs: Sequence[str], request: Request) -> MeasurementKey:
    """The key of a measure that depends on the named inputs of a request."""
    shapes = [(m.name, m.d_in, m.d_out) for m in request.modules]
    said = {"quantised": request.base.quantised, "products": request.base.products}
    other = {name: value for name, value in said.items() if value}
    found = {
        "base": {"revision": request.base.revision, "dtype": str(request.base.model.dtype), **other},
        "modules": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        **{name: INPUTS[name](request) for name in inputs},
    }
    return MeasurementKey(measure, json.dumps(found, sort_keys=True))


@dataclass(frozen=True)
class Measurement:
    """One measure to be taken on a request."""

    key: MeasurementKey
    request: Request

    @property
    def measure(self) -> str:
        return self.key.measure
