"""What a study works on: base model, target modules, budgets, records; `demo` resolved, everything checked."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora import demo
from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.sources import RecordSet, from_dicts, load_records
from adaptive_lora.data.splits import Splits, make_splits
from adaptive_lora.data.templates import as_template
from adaptive_lora.demo.tasks import generate
from adaptive_lora.errors import ModelError, StudyFileError, UsageError
from adaptive_lora.measures.measuring import Measured, Request, measure
from adaptive_lora.measures.short_run import Practice
from adaptive_lora.measures.weights import weight_norms
from adaptive_lora.planning.budget import Budget
from adaptive_lora.planning.modules import ModuleShape, select_targets
from adaptive_lora.planning.plan import RankPlan, Scaling, fixed_ranks
from adaptive_lora.planning.strategies import check_options, coverage_warnings, find_strategy
from adaptive_lora.streams import derive_seed
from adaptive_lora.study.preflight import check_distinct, check_equal_cost, checked_budgets
from adaptive_lora.study.runs import RunSpec
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.study.settings import steps_of, training_of
from adaptive_lora.study.study_file import Study
from adaptive_lora.training.base import FrozenBase, ModelOutline, check_device, load_base, load_tokenizer, outline_of
from adaptive_lora.training.options import TrainingOptions, check_multipliers

_PRACTICE = Practice(TrainingOptions(learning_rate=1e-3, steps=100))
"""For short runs where no training was planned: a careful rate."""

DEMO_RECORDS = 4000
"""How many different records a generated source has at the most."""


def open_outline(name: str, revision: str | None = None) -> ModelOutline:
    """`training.base.outline_of` that knows the embedded model."""
    return outline_of(name, _location(name), revision)


def open_base(name: str, revision: str | None = None, dtype: Any = "float32", device: str = "cpu") -> FrozenBase:
    """`training.base.load_base` that knows the embedded model."""
    return load_base(name, _location(name), revision, dtype, device)


def open_encoder(name: str, max_length: int, template: str, revision: str | None = None) -> Encoder:
    """An encoder for a model of which only configuration and tokenizer are read."""
    outline = open_outline(name, revision)
    tokenizer = load_tokenizer(name, _location(name), revision)
    return Encoder(tokenizer, min(max_length, outline.context), as_template(template))


def open_records(source: str) -> RecordSet:
    """`data.sources.load_records` that knows the generated tasks (`demo:fine-tuning` and others)."""
    if source.startswith(demo.SOURCE_PREFIX):
        rows = generate(source.removeprefix(demo.SOURCE_PREFIX), DEMO_RECORDS)
        return from_dicts(rows, source, exact_answers=True)
    return load_records(source)


def _location(name: str) -> str | Path:
    return demo.model_folder() if name == demo.MODEL else os.path.expanduser(name)


@dataclass(frozen=True)
class Material:
    """A study's model and data, loaded and checked."""

    study: Study
    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    budgets: Mapping[str, Budget]
    source: RecordSet
    splits: Splits
    weight_norms: Mapping[str, float]
    """Frobenius norm of the frozen weight of every target module."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all records."""
        return self.source.fingerprint()

    def context(self) -> dict[str, Any]:
        """What all runs share and their results depend on; part of every run's identity."""
        spec = self.study.spec
        return {
            "model": {"revision": self.base.revision, "dtype": spec.model.dtype},
            "data": {
                "fingerprint": self.fingerprint,
                **spec.data.model_dump(mode="json", exclude={"source", "max_length"}),
                "max_length": self.splits.encoder.max_length,
            },
            "tokenizer_and_chat_template": self.splits.encoding_hash,  # named as the cause where it alone differs
            "modules": [m.name for m in self.modules],
            "train": spec.train.model_dump(mode="json", exclude={"learning_rate", "widen", "activation_checkpointing"}),
            "engine": spec.engine,
        }

    def facts(self) -> dict[str, Any]:
        """What a report says of the material."""
        spec = self.study.spec
        return {
            "model": {
                "name": spec.model.name, "revision": self.base.revision, "dtype": spec.model.dtype,
                "total_parameters": self.base.outline.total_parameters, "context": self.base.outline.context,
                "target_modules": len(self.modules),
            },
            "data": {
                "source": spec.data.source, "form": self.source.form, "revision": self.source.revision,
                "fingerprint": self.fingerprint, "records": len(self.source.records),
                "duplicates": self.splits.duplicates, "unusable": self.splits.unusable,
                "licence": self.source.licence, "exact_answers": self.source.exact_answers,
                "truncated_test": sum(e.truncated for e in self.splits.test),
                "test_bytes": self.splits.encoder.completion_bytes(self.splits.test),
            },
            "budgets": {text: budget.parameters for text, budget in self.budgets.items()},
            "material": self.context(),
        }  # fmt: skip

    def warnings(self) -> list[str]:
        """`warnings_of` the study's model and arms."""
        strategies = [arm.strategy for arm in self.study.spec.arms if arm.strategy]
        return warnings_of(self.base.outline, self.modules, strategies)

    def training_examples(self, seed: int) -> tuple[Example, ...]:
        """The training records of a seed."""
        return self.splits.training_subset(self.study.spec.data.train, seed)

    def training_options(self, run: RunSpec) -> TrainingOptions:
        """The study's training for one run."""
        train = training_of(self.study.spec, run.arm)
        elsewhere = {"epochs", "steps", "learning_rate", "widen", "multipliers", "activation_checkpointing"}
        return TrainingOptions(
            learning_rate=run.learning_rate,
            steps=steps_of(self.study.spec, run.arm),
            b_multiplier=train.multipliers.b,
            rank_exponent=train.multipliers.rank_exponent,
            module_multipliers=train.multipliers.modules,
            **train.model_dump(exclude=elsewhere),
        )

    def plan(self, run: RunSpec, examples: Sequence[Example]) -> RankPlan:
        """The plan of a run, measured on its own training examples where its strategy measures."""
        budget, options = self.budgets[run.budget], self.training_options(run)
        return make_plan(self.base, self.modules, run.arm, budget, run.scaling, run.seed, examples, Practice(options))


def make_plan(
    base: FrozenBase | None,
    modules: tuple[ModuleShape, ...],
    arm: ArmPart,
    budget: Budget,
    scaling: ScalingPart,
    seed: int,
    examples: Sequence[Example] = (),
    practice: Practice | None = None,
) -> RankPlan:
    """An arm's plan on a budget.

    Plans that rest on data are measured on calibration examples drawn from `examples` (`base` is then
    needed), plans that rest on chance take the seed's stream `calibration`, unless the study file
    fixes their `seed` option. Short runs go by `practice`.
    """
    rule = Scaling(scaling.rule, scaling.reference, budget.reference_rank)
    if arm.ranks is not None:
        ranks = fixed_ranks(arm.ranks, modules, f"the arm {arm.name}")
        cost = sum(m.params_per_rank * ranks[m.name] for m in modules)
        return RankPlan("ranks", cost, modules, ranks, rule, provenance={"seed": seed})
    assert arm.strategy is not None  # ArmPart has either
    strategy = find_strategy(arm.strategy)
    options = check_options(strategy, arm.options)
    if strategy.chance and "seed" not in options.model_fields_set:
        options = options.model_copy(update={"seed": derive_seed(seed, "calibration")})
    measured = Measured({}, {})
    if needs := strategy.needs(options):
        if base is None or (not examples and strategy.effort_of(options) != "weights"):
            raise UsageError("This strategy measures on data: give `--data` (or `data` in the study file).")
        request = Request(
            base=base, modules=modules, examples=examples, options=options.measuring(), seed=seed, budget=budget,
            scaling=rule, practice=practice or _PRACTICE,
        )  # fmt: skip
        measured = measure(needs, request)
    ranks = strategy.allocate(modules, measured.scores, budget.parameters, options)
    covered = tuple(m for m in modules if ranks[m.name])  # some strategies leave modules out
    return RankPlan(
        strategy=strategy.name,
        budget=budget.parameters,
        modules=covered,
        ranks={m.name: ranks[m.name] for m in covered},
        scaling=rule,
        options=options.model_dump(mode="json"),
        scores={m.name: _as_number(measured.scores[needs[0]][m.name]) for m in covered} if needs else None,
        provenance={
            "seed": seed,
            "budget": budget.text,
            **({"measured": measured.facts} if needs else {}),
            **({"strategy": arm.strategy, "strategy_sha256": strategy.digest} if strategy.digest else {}),
        },
        left_out=tuple(m for m in modules if not ranks[m.name]),
    )


def _as_number(score: Any) -> float:
    """A score for tables: a spectrum is summed."""
    return float(score) if isinstance(score, int | float) else float(sum(score))


def prepare(study: Study, device: str = "cpu") -> Material:
    """Loads and checks everything that a study needs before anything is written.

    Raises UsageError with the remedy for whatever cannot work.
    """
    spec = study.spec
    check_device(device)
    location = spec.model.name if spec.model.name == demo.MODEL else study.locate(spec.model.name)
    outline = open_outline(location, spec.model.revision)
    modules = targets_of(outline, spec.targets)
    budgets = checked_budgets(study, modules)
    check_equal_cost(study, modules, budgets)
    try:
        check_multipliers(spec.train.multipliers.modules, modules)
    except UsageError as error:
        raise StudyFileError(
            str(study.path), [study.complaint(("train", "multipliers", "modules"), str(error))]
        ) from None
    source = open_records(study.locate(spec.data.source))
    base = open_base(location, spec.model.revision, spec.model.dtype, device)
    encoder = Encoder(base.tokenizer, min(spec.data.max_length, outline.context), spec.data.template)
    data = spec.data
    splits = make_splits(source, encoder, data.train, data.validation, data.test, data.split_seed)
    material = Material(study, base, modules, budgets, source, splits, weight_norms(base, modules))
    material.training_examples(spec.seeds.evaluation[0])  # too few usable records should show now
    check_distinct(study, material.context())
    return material


def warnings_of(outline: ModelOutline, modules: Sequence[ModuleShape], strategies: Iterable[str]) -> list[str]:
    """What a user should know before trusting plans on these modules."""
    found = coverage_warnings(modules, strategies)
    if outline.fused_parameters:
        share = 100 * outline.fused_parameters / outline.total_parameters
        found.append(
            f"{share:.0f} % of the parameters of {outline.name} lie in fused stacks (experts of a mixture), which get "
            "no adapter: plans speak of the rest alone."
        )
    return found


def targets_of(outline: ModelOutline, targets: str | Sequence[str]) -> tuple[ModuleShape, ...]:
    """The target modules of a model; ModelError where there are none."""
    if not outline.modules:
        raise ModelError(f"The model {outline.name} has no linear modules to adapt.")
    return select_targets(outline.modules, targets)
