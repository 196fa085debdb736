"""One plan or one adapter without a study: what the practitioner calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.templates import TemplateName
from adaptive_lora.errors import DataError, PlanError, UsageError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_outline, open_records, targets_of, warnings_of
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.options import TrainingOptions, rate_factors

if TYPE_CHECKING:  # plans by shape need no torch
    from adaptive_lora.training.base import FrozenBase

_CALIBRATION_POOL = 512


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a plan is asked for; the defaults are the usual case."""

    model: str
    """`demo`, a folder, or a hub name."""
    strategy: str = "uniform"
    budget: str = "rank:8"
    data: str | None = None
    """Where calibration records come from, for strategies that measure."""
    targets: str | Sequence[str] = "all-linear"
    scaling: str = "constant"
    reference_scaling: float = 2.0
    options: Mapping[str, Any] | None = None
    seed: int = 0
    max_length: int = 512
    template: TemplateName = "auto"
    revision: str | None = None


def plan(request: PlanRequest) -> RankPlan:
    """The rank plan of a request, exactly on its budget.

    Plans by shape need the model's configuration alone; plans by measurement load model and data.
    Raises UsageError with the remedy. The provenance holds `base_parameters` and `plan_seconds`.

    >>> plan(PlanRequest(model="demo", budget="rank:4")).trainable_parameters
    49152
    """
    began = time.monotonic()
    strategy = find_strategy(request.strategy)
    options = check_options(strategy, request.options or {})
    outline = open_outline(request.model, request.revision)
    modules = targets_of(outline, request.targets)
    budget = resolve_budget(request.budget, modules)
    base, examples = None, []
    if (effort := strategy.effort_of(options)) != "nothing":
        if request.data is None and effort != "weights":
            raise UsageError(
                f"{strategy.name} measures on data: give `--data` a file, a hub data set or `demo:fine-tuning`."
            )
        base = open_base(request.model, request.revision)
        examples = _some_examples(request, base) if request.data is not None else []
    arm = ArmPart(name=strategy.name, strategy=strategy.name, options=dict(request.options or {}))
    try:
        scaling = ScalingPart(rule=request.scaling, reference=request.reference_scaling)  # type: ignore[arg-type]
    except ValueError:
        raise UsageError(
            f"The scaling rule must be constant, rslora or alpha-over-r and its reference above 0, got "
            f"{request.scaling!r} and {request.reference_scaling!r}."
        ) from None
    made = make_plan(base, modules, arm, budget, scaling, request.seed, examples)
    facts = {
        "model": request.model,
        "base_parameters": outline.total_parameters,
        "data": request.data,
        "plan_seconds": time.monotonic() - began,
        "warnings": warnings_of(outline, modules, [strategy.name]),
    }
    return replace(made, provenance={**made.provenance, **facts})


def train(
    plan: RankPlan,
    model: str,
    data: str,
    out: Path,
    options: TrainingOptions,
    seed: int = 0,
    max_length: int = 512,
) -> list[float]:
    """Trains one adapter of `plan` on all usable records of `data` and saves it in PEFT's format in `out`.

    Returns the training loss per step, nats per completion token.
    """
    from adaptive_lora.training.adapter import attached, save_adapter, weights_of
    from adaptive_lora.training.reference import train as train_reference

    base = open_base(model)
    if missing := {m.name for m in plan.modules} - {m.name for m in base.outline.modules}:
        raise PlanError(f"The plan is of another model: {model} has no module {sorted(missing)[0]}.")
    encoder = Encoder(base.tokenizer, min(max_length, base.outline.context))
    examples = [e for e in encoder.encode_all(open_records(data).records) if e.completion_tokens > 0]
    if not examples:
        raise DataError(f"No record of {data} has room for a completion within {encoder.max_length} tokens.")
    with attached(base, plan, seed, options.dropout) as adapted:
        factors = rate_factors(plan, options)
        progress = train_reference(adapted, examples, options, seed, factors=factors)
        save_adapter(weights_of(adapted), plan, out, base, options.dropout)
    return [record.loss for record in progress.curve]


def plan_json(made: RankPlan) -> dict[str, Any]:
    """A plan as the `plan` verb prints it: sizes and cost of planning first, then ranks and scalings by module."""
    return {
        "strategy": made.strategy,
        "options": dict(made.options),
        "budget": made.provenance.get("budget", made.budget),
        "budget_parameters": made.budget,
        "modules": len(made.modules),
        "trainable_parameters": made.trainable_parameters,
        "total_parameters": made.provenance["base_parameters"] + made.trainable_parameters,
        "scaling": made.scaling.rule,
        "plan_seconds": made.provenance["plan_seconds"],
        "measured": made.provenance.get("measured"),
        "ranks": {m.name: made.ranks[m.name] for m in made.modules},
        "scalings": {m.name: made.scaling_of(m.name) for m in made.modules},
        "left_out": [m.name for m in made.left_out],
    }


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are checked by the strategy. A dot leads into an option's own options.

    >>> parse_options(["slope=-1", "source_options.power=0.5"])
    {'slope': '-1', 'source_options': {'power': '0.5'}}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"An option is written key=value, got {pair!r}. For example --option slope=-1.")
        outer, dot, inner = key.strip().partition(".")
        if dot:
            found[outer] = {**(within if isinstance(within := found.get(outer), dict) else {}), inner: value.strip()}
        else:
            found[outer] = value.strip()
    return found


def _some_examples(request: PlanRequest, base: FrozenBase) -> list[Example]:
    """Usable records in an order drawn from the seed."""
    records = open_records(request.data or "").records
    encoder = Encoder(base.tokenizer, min(request.max_length, base.outline.context), request.template)
    order = numpy_stream(request.seed, "subset").permutation(len(records))[:_CALIBRATION_POOL]
    found = [e for e in encoder.encode_all(records[i] for i in order) if e.completion_tokens > 0]
    if not found:
        raise DataError(f"No record of {request.data} has room for a completion within {encoder.max_length} tokens.")
    return found
