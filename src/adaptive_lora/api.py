"""Plans, adapters and studies from Python: `plan`, `train`, `load_study`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.data.encoding import Example, Learn
from adaptive_lora.data.records import RecordSet
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.errors import DataError, PlanError, UsageError
from adaptive_lora.models.locate import model_note
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import Strategy, check_options, find_strategy
from adaptive_lora.planning.strategies.registry import pinned, register, with_pinned_source
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study import study_file
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_outline, open_records
from adaptive_lora.study.schema import ArmPart, ScalingPart, StudySpec
from adaptive_lora.study.seeds import check_seed
from adaptive_lora.study.status import StudyStatus
from adaptive_lora.study.targets import encoder_of, targets_of, warnings_of
from adaptive_lora.training.options import TrainingOptions, rate_factors

if TYPE_CHECKING:  # plans by shape need no torch
    from concurrent.futures import Executor

    from transformers import PreTrainedModel

    from adaptive_lora.planning.outline import DType, Quantise
    from adaptive_lora.study.executors.door import Workers
    from adaptive_lora.study.progress import ProgressListener
    from adaptive_lora.training.base import FrozenBase

_CALIBRATION_POOL = 512
Records = str | Path | Sequence[Mapping[str, Any]]
"""A source (file, hub data set, `demo:fine-tuning`) or the records themselves."""


def plan(
    model: str | Path | PreTrainedModel,
    strategy: str | Strategy = "uniform",
    budget: str = "rank:8",
    *,
    data: Records | None = None,
    tokenizer: Any = None,
    targets: str | Sequence[str] = "all-linear",
    scaling: str | Mapping[str, Any] = "constant",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_length: int = 512,
    template: str = "auto",
    learn: Learn = "last",
    revision: str | None = None,
    dtype: DType = "float32",
    quantise: Quantise | None = None,
    device: str | None = None,
) -> RankPlan:
    """The rank plan of a strategy, exactly on its budget.

    `model` is `demo`, a folder, a hub name, or a loaded model, then with its `tokenizer` where data is measured. Plans
    by shape need the model's configuration alone; others load its weights in `dtype` on `device` (by default the
    accelerator where there is one; a loaded model stays where it is), the linear layers' in 4 or 8 bits where
    `quantise` says `nf4` or `int8`. `strategy` is a name, `my_file.py:name`, or a
    decorated function. `scaling` is a rule or `{"rule": ..., "reference": ...}`. Records are encoded by `template` up
    to `max_length` tokens; of a conversation `learn` takes the `last` answer or `all`.

    Raises UsageError with the remedy. The provenance holds model, data, device and `plan_seconds`.

    >>> plan("demo", budget="rank:4").trainable_parameters
    49152
    """
    began, seed = time.monotonic(), check_seed(seed)
    name = (
        strategy if isinstance(strategy, str) else strategy.name if strategy.digest is None else register(strategy).name
    )
    reference = pinned(name)
    known, own = find_strategy(reference), with_pinned_source(reference, options or {})
    effort = known.effort_of(check_options(known, own))
    if effort not in ("none", "weights") and data is None:
        raise UsageError(
            f"{known.name} measures on data: give `--data` (in Python `data=`) a file, a hub data set or "
            "`demo:fine-tuning`."
        )
    weights = None if effort == "none" and isinstance(model, str | Path) else (dtype, quantise, device)
    with _opened(model, tokenizer, revision, weights) as (base, outline):
        modules = targets_of(outline, targets)
        made = make_plan(
            base,
            modules,
            ArmPart(name="plan", strategy=reference, options=own),
            resolve_budget(budget, modules),
            _scaling(scaling),
            seed,
            _examples(data, base, (max_length, template, learn), seed)
            if base and data is not None and effort != "none"
            else [],
        )
        facts = {
            "model": outline.name,
            "model_note": model_note(str(model), base.quantised if base else None)
            if isinstance(model, str | Path)
            else None,
            "base_parameters": outline.total_parameters,
            "data": str(data) if isinstance(data, str | Path) else data and f"{len(data)} records",
            "device": str(base.device) if base and effort != "none" else None,
            "plan_seconds": time.monotonic() - began,
            "warnings": warnings_of(outline, modules, [reference]),
        }
    return replace(made, provenance={**made.provenance, **facts})


def train(
    plan: RankPlan | str | Path,
    model: str | Path | PreTrainedModel,
    data: Records,
    out: str | Path,
    options: TrainingOptions,
    *,
    tokenizer: Any = None,
    seed: int = 0,
    max_length: int = 512,
    template: str = "auto",
    learn: Learn = "last",
    revision: str | None = None,
    dtype: DType = "float32",
    quantise: Quantise | None = None,
    device: str | None = None,
) -> list[float]:
    """Trains one adapter of `plan` on all usable records of `data` and saves it in PEFT's format in `out`.

    Parameters as in `adaptive_lora.plan`. Returns the training loss per step, nats per completion token.
    """
    from adaptive_lora.training import peft_check
    from adaptive_lora.training.adapter import attached, save_adapter, weights_of
    from adaptive_lora.training.reference import train as train_reference

    seed = check_seed(seed)
    plan = plan if isinstance(plan, RankPlan) else RankPlan.load(plan)
    with _opened(model, tokenizer, revision, (dtype, quantise, device)) as (base, outline):
        assert base is not None  # weights were asked for
        if missing := [m for m in plan.modules if m not in outline.modules]:
            raise PlanError(
                f"The plan is of another model: {outline.name} has no module {missing[0].name} of size "
                f"{missing[0].d_in} × {missing[0].d_out}."
            )
        peft_check.check_with_peft(base.model, plan, outline.modules, outline.name)
        examples = _examples(data, base, (max_length, template, learn))
        with attached(base, plan, seed, options.dropout) as adapted:
            progress = train_reference(adapted, examples, options, seed, factors=rate_factors(plan, options))
            save_adapter(weights_of(adapted), plan, Path(out), base, options.dropout)
        peft_check.read_back(Path(out), plan)
    return [record.loss for record in progress.curve]


@dataclass(frozen=True)
class Study:
    """A validated study."""

    parsed: study_file.Study

    @property
    def spec(self) -> StudySpec:
        """What the study says, with every default filled in."""
        return self.parsed.spec

    def run(
        self,
        out: str | Path,
        *,
        device: str | None = None,
        listener: ProgressListener | None = None,
        checkpoint_seconds: float = 30.0,
        deviation: str | None = None,
        executor: str | Executor | Workers = "local",
        bank_size: int | None = None,
    ) -> StudyStatus:
        """`study.runner.run_study`: trains what is missing in the folder `out`; read it with `load_results(out)`.

        `device`: by default the accelerator where there is one. `executor`: who trains the banks, each of at most
        `bank_size` runs: `local`, `processes`, `ray`, `slurm`, any `concurrent.futures.Executor`, or `Workers` that say
        more (how many, how long a lease, which resources).
        """
        from adaptive_lora.study.executors.door import Workers
        from adaptive_lora.study.runner import Limits, run_study

        workers = executor if isinstance(executor, Workers) else Workers(executor)
        limits = Limits(largest_bank=bank_size)
        return run_study(self.parsed, Path(out), listener, device, checkpoint_seconds, deviation, limits, workers)


def load_study(source: str | Path | Mapping[str, Any]) -> Study:
    """A study from its file, or from a mapping that says what a file would; StudyFileError with all that is wrong.

    In a mapping, relative paths are relative to the current folder, and an arm may be a decorated function.
    """
    if isinstance(source, Mapping):
        return Study(study_file.study_of_mapping(source))
    return Study(study_file.load_study(Path(source)))


def plan_json(made: RankPlan) -> dict[str, Any]:
    """A plan as the `plan` verb prints it: sizes and cost of planning first, then ranks and scalings by module."""
    return {
        "model": made.provenance["model"],
        "model_note": made.provenance.get("model_note"),
        "strategy": made.strategy,
        "options": dict(made.options),
        "budget": made.provenance.get("budget", made.budget),
        "budget_parameters": made.budget,
        "modules": len(made.modules),
        "trainable_parameters": made.trainable_parameters,
        "total_parameters": made.provenance["base_parameters"] + made.trainable_parameters,
        "scaling": made.scaling.rule,
        "plan_seconds": made.provenance["plan_seconds"],
        "device": made.provenance["device"],
        "measured": made.provenance.get("measured"),
        "ranks": {m.name: made.ranks[m.name] for m in made.modules},
        "scalings": {m.name: made.scaling_of(m.name) for m in made.modules},
        "left_out": [m.name for m in made.left_out],
    }


@contextlib.contextmanager
def _opened(
    model: Any, tokenizer: Any, revision: str | None, weights: tuple[DType, Quantise | None, str | None] | None
) -> Iterator[tuple[FrozenBase | None, Any]]:
    """The model and its outline; of a name without its `weights` (dtype, quantise, device) the outline alone."""
    if isinstance(model, str | Path):
        name = str(model)
        if weights is None:
            yield None, open_outline(name, revision)
            return
        from adaptive_lora.training.base import check_device, default_device

        dtype, quantise, device = weights
        base = open_base(name, revision, dtype, str(check_device(device or default_device())), quantise)
        yield base, base.outline
        return
    from adaptive_lora.training.base import check_device, frozen

    with frozen(model, tokenizer) as base:
        _, quantise, device = weights or (None, None, None)
        if device and base.device.type != check_device(device).type:
            raise UsageError(f"The model lies on {base.device}, got device={device!r}: move it with `model.to`.")
        if quantise and base.quantised != quantise:
            raise UsageError(
                f"The model was loaded with its weights in {base.quantised or base.model.dtype}, got "
                f"quantise={quantise!r}: load it with a `BitsAndBytesConfig`, or give its name."
            )
        yield base, base.outline


def _scaling(given: str | Mapping[str, Any]) -> ScalingPart:
    try:
        return ScalingPart.model_validate({"rule": given} if isinstance(given, str) else given)
    except ValueError:
        raise UsageError(
            f"The scaling rule must be constant, rslora or alpha-over-r and its reference above 0, got {given!r}."
        ) from None


def _examples(
    data: Records, base: FrozenBase, encoding: tuple[int, str, Learn], seed: int | None = None
) -> list[Example]:
    """All usable records; with a `seed` some of them for calibration, in an order drawn from it.

    `encoding`: the longest text in tokens, the template, and which answers of a conversation are learnt.
    """
    if base.tokenizer is None:
        raise UsageError("A loaded model needs its `tokenizer` to read records: give `tokenizer=`.")
    source = _record_set(data)
    encoder = encoder_of(base.outline, base.tokenizer, *encoding)
    records = source.records
    if seed is not None:
        order = numpy_stream(seed, "subset").permutation(len(records))[:_CALIBRATION_POOL]
        records = tuple(records[i] for i in order)
    records = tuple(record for record in records if not record.is_empty)
    found = [e for e in encoder.encode_all(records) if e.completion_tokens > 0]
    if not found:
        raise DataError(f"No record of {source.name} has room for a completion within {encoder.max_length} tokens.")
    return found


def _record_set(data: Records) -> RecordSet:
    return open_records(str(data)) if isinstance(data, str | Path) else from_dicts(data, "the list of records")
