"""Takes the measures that a plan needs, what can be had together in one pass, and says what it cost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.data.splits import calibration_subset
from adaptive_lora.measures import adalora, one_pass, short_run
from adaptive_lora.measures.agreement import held_back, marginal_gains
from adaptive_lora.measures.weights import stable_ranks
from adaptive_lora.planning.budget import Budget, uniform_rank
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import Scaling
from adaptive_lora.planning.strategies.base import (
    AgreementOptions,
    CalibrationOptions,
    ComponentOptions,
    GradientOptions,
    OverRankOptions,
    ShortRunOptions,
)
from adaptive_lora.planning.strategies.decorators import take_outside
from adaptive_lora.planning.strategies.registry import OUTSIDE_MEASURES
from adaptive_lora.training.base import FrozenBase


@dataclass(frozen=True, kw_only=True)
class Request:
    """What measures are taken on."""

    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    examples: Sequence[Example]
    """Training examples; calibration draws from them."""
    options: CalibrationOptions
    seed: int
    budget: Budget
    scaling: Scaling
    practice: short_run.Practice

    def batches(self) -> list[list[Example]]:
        """The calibration batches."""
        size = self.options.calibration_batch_size
        chosen = calibration_subset(self.examples, self.options.calibration_batches * size, self.seed)
        return [list(chosen[at : at + size]) for at in range(0, len(chosen), size)]


@dataclass(frozen=True)
class Measured:
    """What was measured, and what that took."""

    scores: Mapping[str, Mapping[str, Any]]
    """Measure -> module -> value."""
    facts: Mapping[str, Any]
    """Seconds, calibration records, and what else a measure has to say of itself."""


Taking = Callable[[Sequence[str], Request], tuple[dict[str, dict[str, Any]], dict[str, Any]]]
"""Measures of one group -> their values, and facts about the taking."""


def measure(needs: Sequence[str], request: Request) -> Measured:
    """All measures in `needs`; each group is taken once, whatever the number of its measures."""
    scores: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {"seconds": {}}
    for need in needs:
        if (own := OUTSIDE_MEASURES.get(need)) is not None:
            began = time.perf_counter()
            batches = request.batches() if own.effort != "weights" else []
            scores[need] = take_outside(
                own, request.modules, base=request.base, batches=batches, seed=request.seed, options=request.options
            )
            facts |= calibration_facts(batches) if batches else {}
            facts["seconds"][own.name] = time.perf_counter() - began
    for group, (names, take) in GROUPS.items():
        if asked := [name for name in needs if name in names]:
            began = time.perf_counter()
            found, told = take(asked, request)
            scores |= found
            facts |= told
            facts["seconds"][group] = time.perf_counter() - began
    return Measured(scores, facts)


def _in_one_pass(needs: Sequence[str], request: Request) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    batches, options = request.batches(), request.options
    rank = uniform_rank(request.modules, request.budget.parameters)
    asked = one_pass.Pass(
        measures=frozenset(needs), base=request.base, modules=request.modules, batches=batches, seed=request.seed,
        rank=rank, scaling=request.scaling.at(rank), loss=request.practice.loss,
    )  # fmt: skip
    if isinstance(options, GradientOptions):
        asked = replace(asked, mode=options.mode)
    if isinstance(options, ComponentOptions):
        asked = replace(asked, tokens=options.tokens, components=round(options.rho * rank))
    found, facts = one_pass.take(asked)
    return found, {**facts, **calibration_facts(batches)}


def _by_weights(needs: Sequence[str], request: Request) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    return {"stable-rank": stable_ranks(request.base, request.modules)}, {}


def _by_over_ranked_run(needs: Sequence[str], request: Request) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    short, batches = _short(request, _times(request)), request.batches()
    found = short_run.over_ranked_scores(short, needs, batches)
    return found, {**short.facts(short_run.over_ranked_seeds(short)), **calibration_facts(batches)}


def _by_agreement(needs: Sequence[str], request: Request) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    options = request.options if isinstance(request.options, AgreementOptions) else AgreementOptions()
    judges, rest = held_back(request.examples, request.seed) if options.race else ([], list(request.examples))
    request = replace(request, examples=rest)
    batches = request.batches()
    gains, facts = marginal_gains(_short(request, 1.0), options, batches, judges)
    return {"marginal-gain": dict(gains)}, {**facts, **calibration_facts(batches)}


def _by_adalora(needs: Sequence[str], request: Request) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    short = _short(request, 1.0)
    found, facts = adalora.adalora_ranks(short), short.facts([short.seed])
    return {"adalora-rank": found}, {**facts, "short_run_parameters": adalora.parameters(short)}


def _times(request: Request) -> float:
    return request.options.over_rank if isinstance(request.options, OverRankOptions) else OverRankOptions().over_rank


def _short(request: Request, times: float) -> short_run.Short:
    options = request.options if isinstance(request.options, ShortRunOptions) else ShortRunOptions()
    return short_run.Short(
        base=request.base, modules=request.modules, examples=request.examples, practice=request.practice,
        steps=options.short_run_steps or request.practice.options.steps, learning_rate=options.short_run_learning_rate,
        budget=round(times * request.budget.parameters), scaling=request.scaling, seed=request.seed,
    )  # fmt: skip


def calibration_facts(batches: Sequence[Sequence[Example]]) -> dict[str, Any]:
    """How many records and tokens were used, and which: a hash of their tokens."""
    ids = [example.ids for batch in batches for example in batch]
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
    return {"calibration_records": len(ids), "calibration_tokens": sum(map(len, ids)), "calibration_hash": digest}


GROUPS: Mapping[str, tuple[frozenset[str], Taking]] = {
    "weights": (frozenset({"stable-rank"}), _by_weights),
    "one pass": (one_pass.MEASURES, _in_one_pass),
    "over-ranked run": (short_run.MEASURES, _by_over_ranked_run),
    "agreeing runs": (frozenset({"marginal-gain"}), _by_agreement),
    "adalora": (frozenset({"adalora-rank"}), _by_adalora),
}
"""Group -> the measures that one pass gives together, and who takes them."""
