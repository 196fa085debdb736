"""A study made ready: base model, target modules, budgets and records loaded, everything checked."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora import demo
from adaptive_lora.data.encoding import Encoder, Example, Learn
from adaptive_lora.data.general import general_text, windows_of
from adaptive_lora.data.records import RecordSet
from adaptive_lora.data.sources import from_dicts, load_records
from adaptive_lora.data.splits import Splits, hash_examples, make_splits
from adaptive_lora.demo.tasks import generate
from adaptive_lora.errors import StudyFileError, UsageError
from adaptive_lora.models.locate import is_named, locate_model, model_note
from adaptive_lora.planning.budget import Budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.outline import DType, ModelOutline, Products, Quantise, outline_from_config
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.data_facts import Draw, data_counts, data_notices, split_rows
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.plan_task import PlanTask, plan_task
from adaptive_lora.study.preflight import check_distinct, check_equal_cost, check_metric, checked_budgets
from adaptive_lora.study.study_file import Study, shown
from adaptive_lora.study.targets import check_called, context_warnings, encoder_of, targets_of, warnings_of
from adaptive_lora.training.options import TrainingOptions, check_multipliers

if TYPE_CHECKING:  # plans by shape need no torch
    from adaptive_lora.training.base import FrozenBase

_NOT_SHARED = {"learning_rate", "widen", "tune", "activation_checkpointing"}
"""Of `train`, what runs say themselves, or what changes no result."""
DEMO_RECORDS = 4000
"""How many different records a generated source has at the most."""


def open_outline(name: str, revision: str | None = None) -> ModelOutline:
    """A model's outline, by its configuration alone; knows what `locate_model` knows."""
    if found := outline_from_config(name, Path(locate_model(name, revision))):
        return found
    from adaptive_lora.training.base import outline_of

    return outline_of(name, locate_model(name, revision), revision)


def open_base(
    name: str,
    revision: str | None = None,
    dtype: DType = "float32",
    device: str = "cpu",
    quantise: Quantise | None = None,
    products: Products | None = None,
) -> FrozenBase:
    """`training.base.load_base` that knows the embedded model, fetched ones and GGUF files."""
    from adaptive_lora.training.base import load_base

    return load_base(name, locate_model(name, revision), revision, dtype, device, quantise, products)


def open_encoder(
    name: str, max_length: int, template: str, revision: str | None = None, learn: Learn = "last"
) -> Encoder:
    """An encoder for a model of which only configuration and tokenizer are read."""
    from adaptive_lora.training.base import load_tokenizer

    outline = open_outline(name, revision)
    tokenizer = load_tokenizer(name, locate_model(name, revision), revision)
    return encoder_of(outline, tokenizer, max_length, template, learn)


def check_with_peft(plan: RankPlan, name: str, revision: str | None = None) -> None:
    """ModelError unless PEFT builds `plan` on the model `name` as it is written; reads its configuration alone."""
    from adaptive_lora.training import peft_check
    from adaptive_lora.training.base import meta_model

    model = meta_model(name, locate_model(name, revision), revision)
    peft_check.check_with_peft(model, plan, open_outline(name, revision).modules, name)


def open_records(source: str) -> RecordSet:
    """`data.sources.load_records` that knows the generated tasks (`demo:fine-tuning` and others)."""
    if source.startswith(demo.SOURCE_PREFIX):
        return _generated(source)
    return load_records(source)


@functools.cache
def _generated(source: str) -> RecordSet:
    """Records of a generated source; always the same ones, so a process makes them once."""
    rows = generate(source.removeprefix(demo.SOURCE_PREFIX), DEMO_RECORDS)
    return from_dicts(rows, source, exact_answers=True)


@dataclass(frozen=True)
class PreparedStudy:
    """A study's model and data, loaded and checked."""

    study: Study
    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    budgets: Mapping[str, Budget]
    source: RecordSet
    splits: Splits
    weight_norms: Mapping[str, float]
    """Frobenius norm of the frozen weight of every target module."""
    seconds: float = 0.0
    """That loading took."""
    general: tuple[Example, ...] = ()
    """Windows of the general text; empty where the study names none."""
    _draws: dict[int, Draw] = field(default_factory=dict, repr=False)
    _built: set[frozenset[str]] = field(default_factory=set, repr=False)
    """Names of modules that PEFT was seen to adapt together."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all records."""
        return self.source.fingerprint()

    @functools.cached_property
    def context(self) -> Mapping[str, Any]:
        """What all runs share and their results depend on; part of every run's identity."""
        spec = self.study.spec
        return {
            "model": {"revision": self.base.revision, "dtype": spec.model.dtype, **self._weights},
            "data": {
                "fingerprint": self.fingerprint,
                **spec.data.model_dump(mode="json", exclude={"source", "max_length", "general"}),
                "max_length": self.splits.encoder.max_length,
            },
            "tokenizer_and_chat_template": self.splits.encoding_hash,  # named as the cause where it alone differs
            "modules": [m.name for m in self.modules],
            "train": spec.train.model_dump(mode="json", exclude=_NOT_SHARED),
            "engine": spec.engine,
        }

    @property
    def _weights(self) -> dict[str, str]:
        """How the base's weights are kept and multiplied, where that is another way than `dtype`."""
        said = {"quantised": self.base.quantised, "products": self.base.products}
        return {name: value for name, value in said.items() if value}

    @property
    def material(self) -> Mapping[str, Any]:
        """`context`, and what results are measured on that is no part of a run."""
        return {**self.context, **({"general": hash_examples(self.general)} if self.general else {})}

    def facts(self) -> dict[str, Any]:
        """What a report says of model and data."""
        spec = self.study.spec
        return {
            "model": {
                "name": spec.model.name, "revision": self.base.revision, "dtype": spec.model.dtype,
                "total_parameters": self.base.outline.total_parameters, "context": self.base.outline.context,
                "unlimited_context": self.base.outline.context is None, "target_modules": len(self.modules),
                "note": model_note(self.base.name, self.base.quantised, self.base.products), **self._weights,
            },
            "data": {
                "source": shown(spec.data.source), "form": self.source.form, "revision": self.source.revision,
                "fingerprint": self.fingerprint, "records": len(self.source.records),
                "duplicates": self.splits.duplicates, "unusable": self.splits.unusable,
                "licence": self.source.licence, "exact_answers": self.source.exact_answers,
                **self.splits.encoder.facts(self.source.form),
                "truncated_test": sum(e.truncated for e in self.splits.test),
                **data_counts(self.source, self.splits, self._draw(spec.seeds.evaluation[0])),
                "warnings": self.data_warnings,
                "test_bytes": self.splits.encoder.completion_bytes(self.splits.test),
                **self._general_facts(),
            },
            "budgets": {text: budget.parameters for text, budget in self.budgets.items()},
            "splits": split_rows(self.splits, {s: self._draw(s) for s in (*spec.seeds.evaluation, *spec.seeds.tuning)}),
            "material": self.material,
        }  # fmt: skip

    def _general_facts(self) -> dict[str, Any]:
        if self.study.spec.data.general is None:
            return {}
        tokens = sum(example.completion_tokens for example in self.general)
        return {
            "general": {"source": shown(self.study.spec.data.general), "texts": len(self.general), "tokens": tokens}
        }

    @functools.cached_property
    def data_warnings(self) -> list[str]:
        """What should be known of the data: counted, and in sentences."""
        return data_notices(self.source, self.splits, self._draw(self.study.spec.seeds.evaluation[0]))

    def warnings(self) -> list[str]:
        """What should be known of the study's modules, context, tokenizer and data."""
        strategies = [arm.strategy for arm in self.study.spec.arms if arm.strategy]
        outline = self.base.outline
        found = warnings_of(outline, self.modules, strategies)
        found += context_warnings(outline, self.study.spec.data.max_length)
        return [*found, *self.splits.encoder.warnings(self.source.form), *self.data_warnings]

    def notes(self) -> list[str]:
        """What a user should be told before it begins: what the weights are, and which template writes the records."""
        note = model_note(self.base.name, self.base.quantised, self.base.products)
        own = [f"The model {self.base.name}: {note}."] if note else []
        return own + self.splits.encoder.notes(self.source.form)

    def check_plan(self, plan: RankPlan) -> None:
        """ModelError unless PEFT builds the plan's modules on the base; each set of modules is tried once."""
        from adaptive_lora.training.peft_check import check_with_peft, uniform_plan

        if (names := frozenset(plan.ranks)) not in self._built:
            check_with_peft(self.base.model, uniform_plan(plan.modules), self.base.outline.modules, self.base.name)
            self._built.add(names)

    def training_examples(self, seed: int) -> tuple[Example, ...]:
        """The training records of a seed, encoded once whatever the number of its runs."""
        return tuple(example for _, example in self._draw(seed))

    def _draw(self, seed: int) -> Draw:
        if seed not in self._draws:
            self._draws[seed] = self.splits.training_draw(self.study.spec.data.train, seed)
        return self._draws[seed]

    def training_options(self, run: Run) -> TrainingOptions:
        """The study's training for one run."""
        train = run.cell.training
        elsewhere = {"epochs", "steps", "learning_rate", "widen", "tune", "multipliers", "activation_checkpointing"}
        return TrainingOptions(
            learning_rate=run.learning_rate,
            steps=run.cell.steps,
            b_multiplier=train.multipliers.b,
            rank_exponent=train.multipliers.rank_exponent,
            module_multipliers=train.multipliers.modules,
            **train.model_dump(exclude=elsewhere),
        )

    def plan_task(self, run: Run) -> PlanTask | RankPlan:
        """What is to be done for the plan of a run, measured on its own training examples."""
        from adaptive_lora.measures.request import PlannedTraining

        training = PlannedTraining(self.training_options(run))
        examples, budget = self.training_examples(run.seed), self.budgets[run.budget]
        return plan_task(self.base, self.modules, run.arm, budget, run.cell.scaling, run.seed, examples, training)


def prepare(study: Study, device: str | None = None, checked: bool = False) -> PreparedStudy:
    """Loads and checks everything that a study needs before anything is written.

    `device`: by default the accelerator where there is one, else the CPU. `checked`: what has to be held against the
    study file was, by the process that this one works for; there are no budgets then.

    Raises UsageError with the remedy for whatever cannot work.
    """
    from adaptive_lora.measures.weights import weight_norms
    from adaptive_lora.training.base import check_device, default_device
    from adaptive_lora.training.peft_check import uniform_plan

    began, spec = time.monotonic(), study.spec
    device = device or default_device()
    check_device(device)
    location = spec.model.name if is_named(spec.model.name) else study.locate(spec.model.name)
    outline = open_outline(location, spec.model.revision)
    modules = targets_of(outline, spec.targets)
    budgets = {} if checked else checked_budgets(study, modules)
    if not checked:
        check_equal_cost(study, modules, budgets)
    try:
        check_multipliers(spec.train.multipliers.modules, modules)
    except UsageError as error:
        raise StudyFileError(
            str(study.path), [study.complaint(("train", "multipliers", "modules"), str(error))]
        ) from None
    source = open_records(study.locate(spec.data.source))
    if not checked:
        check_metric(study, source.exact_answers)
    chosen = spec.model
    base = open_base(location, chosen.revision, chosen.dtype, device, chosen.quantise, chosen.products)
    check_called(base.outline, modules)
    encoder = encoder_of(base.outline, base.tokenizer, spec.data.max_length, spec.data.template, spec.data.learn)
    data = spec.data
    splits = make_splits(source, encoder, data.train, data.validation, data.test, data.split_seed)
    general = _general(study, encoder) if data.general is not None else ()
    prepared = PreparedStudy(
        study, base, modules, budgets, source, splits, weight_norms(base, modules), general=general
    )
    if not checked:
        prepared.check_plan(uniform_plan(modules))
        prepared.training_examples(spec.seeds.evaluation[0])  # too few usable records should show now
        check_distinct(study, prepared.context)
    return replace(prepared, seconds=time.monotonic() - began)


def _general(study: Study, encoder: Encoder) -> tuple[Example, ...]:
    """Windows of the text that `data.general` names."""
    source = study.locate(study.spec.data.general or "")
    text = general_text(source, open_records)
    return windows_of(text, encoder.tokenizer, encoder.max_length, study.spec.data.split_seed, source)
