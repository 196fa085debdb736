"""Everything that passes over the calibration batches can tell of every target module.

Inputs alone take forward passes; as soon as one measure needs a gradient, all come from the same forward
and backward passes, with the loss of training. The base stays frozen and takes no gradient.

`exact` keeps all sums of all modules at once, in one pass over the batches. `stream` takes the modules in
rounds, each a pass of its own, so that the spectra's sums of one round stay within bounds and are the same
as in `exact`; what lies before a round's first module then has no backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.capture import Capture, listening
from adaptive_lora.measures.gathering import BatchGradient, BSquares, Gatherer, Gradients, Keeper, WholeGradient
from adaptive_lora.measures.spectra import Moments
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Mode, Tokens
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import IGNORED, Loss, collate, label_loss
from adaptive_lora.training.options import initial_a

MEASURES = frozenset({"input-spectrum", "weight-gradient", "gradient-norm", "b-gradient", "whitened-rank"})

EXACT_ENTRIES = 1 << 25
"""Up to so many entries in all target weights together, `auto` is exact."""
ROUND_ENTRIES = 1 << 27
"""Most entries of gradients and covariances that a round of a stream keeps, unless one input alone takes more."""

Found = dict[str, dict[str, Any]]
"""Measure -> module -> a number, or a spectrum."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What is measured, and on what."""

    measures: frozenset[str]
    base: FrozenBase
    modules: Sequence[ModuleShape]
    batches: Sequence[Sequence[Example]]
    seed: int
    mode: Mode = "auto"
    tokens: Tokens = "all"
    """Which inputs count where no gradient is asked for; with gradients all real tokens count."""
    rank: int = 8
    """Of the adapter whose B is looked at."""
    scaling: float = 1.0
    """Of that adapter."""
    components: int | None = None
    """Leading components of the inputs that are asked for; nothing: all."""
    round_entries: int = ROUND_ENTRIES
    loss: Loss = label_loss
    """Whose gradients are taken."""

    @property
    def exact(self) -> bool:
        """Whether everything is kept at once."""
        entries = sum(m.d_in * m.d_out for m in self.modules)
        return self.mode == "exact" or (self.mode == "auto" and entries <= EXACT_ENTRIES)

    @property
    def backward(self) -> bool:
        """Whether any measure needs a gradient."""
        return self.measures != {"input-spectrum"}

    def weight(self, m: ModuleShape) -> Tensor:
        """W (d_out, d_in)."""
        weight: Tensor = self.base.model.get_submodule(m.name).weight.detach()
        return weight.T if m.fan_in_fan_out else weight


@dataclass
class Gathered:
    """What a round keeps of its modules; told by the hooks."""

    asked: Pass
    modules: Sequence[ModuleShape]
    moments: dict[str, Moments] = field(default_factory=dict)
    """By the module that is told of a shared input."""
    gatherers: dict[str, list[Gatherer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gatherers = {m.name: self._gatherers(m) for m in self.modules}

    def on_input(self, name: str, x: Tensor) -> None:
        if self.asked.measures & {"input-spectrum", "whitened-rank"}:
            self.moments.setdefault(name, Moments()).add(x)

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        for gatherer in self.gatherers[name]:
            gatherer.add(x, g)

    def on_complete(self, name: str) -> None:
        for gatherer in self.gatherers[name]:
            gatherer.complete()

    @property
    def bytes(self) -> int:
        """What is kept between batches."""
        kept = [gatherer.bytes for found in self.gatherers.values() for gatherer in found]
        return sum(kept) + sum(moments.bytes for moments in self.moments.values())

    def found(self, leaders: Mapping[str, str]) -> Found:
        """Everything asked for, of the round's modules; 0 for a module that took no part."""
        asked, scores = self.asked, {measure: dict[str, Any]() for measure in self.asked.measures}
        spectra: dict[str, tuple[float, ...]] = {}
        for m in self.modules:
            leader = leaders.get(m.name, m.name)
            moments = self.moments.get(leader, Moments())
            values: dict[str, Any] = {}
            for gatherer in self.gatherers[m.name]:
                values |= gatherer.values(len(asked.batches), moments if "whitened-rank" in asked.measures else None)
            if "input-spectrum" in asked.measures:
                if leader not in spectra:
                    spectra[leader] = moments.explained(asked.components or m.d_in)
                values["input-spectrum"] = spectra[leader]
            for measure, of_modules in scores.items():
                of_modules[m.name] = values.get(measure, 0.0)
        return scores

    def _gatherers(self, m: ModuleShape) -> list[Gatherer]:
        asked, keepers = self.asked, list[Keeper]()
        entrywise = bool(asked.measures & {"weight-gradient", "gradient-norm"})
        if "whitened-rank" in asked.measures or (entrywise and asked.exact):
            keepers.append(WholeGradient(asked.weight(m)))
        if entrywise and not asked.exact:
            keepers.append(BatchGradient(asked.weight(m)))  # its values count, being the later
        if "b-gradient" in asked.measures:
            a = torch.from_numpy(initial_a(asked.seed, m.name, min(asked.rank, m.largest_rank), m.d_in))
            double = asked.base.model.dtype == torch.float64
            b = BSquares(a.to(asked.base.device, torch.float64 if double else torch.float32), asked.scaling)
            if not keepers:
                return [b]
            keepers.append(b)
        return [Gradients(keepers)] if keepers else []


def take(asked: Pass) -> tuple[Found, dict[str, Any]]:
    """Measure -> module -> value, and facts. Every measure is a mean over the batches as the loss is.

    In a stream `weight-gradient` and `gradient-norm` are means over the batches of what each batch says, a
    module's gradient being dropped as soon as it is scored. A weight that took no part (an expert no token
    was sent to) scores 0. Raises TrainingError where a score is not finite, or all are 0.
    """
    scores: Found = {measure: {} for measure in asked.measures}
    rounds = [list(asked.modules)] if asked.exact else _rounds(asked)
    largest = 0
    for modules in rounds:
        gathered = Gathered(asked, modules)
        with listening(asked.base, [m.name for m in modules], gathered, asked.backward) as capture:
            for examples in asked.batches:
                _run(asked, capture, examples)
        largest = max(largest, gathered.bytes)
        for measure, values in gathered.found(capture.leaders).items():
            scores[measure] |= values
    _check(scores)
    return scores, {"mode": "exact" if asked.exact else "stream", "passes": len(rounds), "score_bytes": largest}


def _rounds(asked: Pass) -> list[list[ModuleShape]]:
    """The modules in their order, cut where a round would keep too much; those that share an input stay together."""
    sharing: dict[str, list[ModuleShape]] = {}
    silent = Gathered(replace(asked, measures=frozenset()), asked.modules)
    with listening(asked.base, [m.name for m in asked.modules], silent, backward=False) as capture:
        _run(asked, capture, asked.batches[0][:1])
    for m in asked.modules:
        sharing.setdefault(capture.leaders.get(m.name, m.name), []).append(m)
    rounds: list[list[ModuleShape]] = []
    free = 0
    for group in sharing.values():
        entries = 0
        if asked.measures & {"input-spectrum", "whitened-rank"}:
            entries += group[0].d_in ** 2
        if "whitened-rank" in asked.measures:
            entries += sum(m.d_in * m.d_out for m in group)
        if not rounds or entries > free:
            rounds.append([])
            free = asked.round_entries
        rounds[-1] += group
        free -= entries
    return rounds


def _run(asked: Pass, capture: Capture, examples: Sequence[Example]) -> None:
    """One batch; backward where the capture wants gradients."""
    batch = collate(examples).to(asked.base.device)
    mask = batch.attention_mask.bool()
    if asked.tokens == "completion" and not asked.backward:
        mask = batch.labels != IGNORED
    with capture.batch(mask), torch.set_grad_enabled(capture.backward):
        logits = asked.base.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        if capture.backward:
            asked.loss(logits, batch, examples).backward()  # type: ignore[no-untyped-call]


def _check(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """TrainingError where a measure says nothing."""
    for measure, values in scores.items():
        sums = {name: value if isinstance(value, float) else math.fsum(value) for name, value in values.items()}
        if bad := [name for name, value in sums.items() if not math.isfinite(value)]:
            raise TrainingError(f"The score {measure} of {bad[0]} is not finite; use float32 for the base model.")
        if not any(sums.values()):
            raise TrainingError(f"The score {measure} is 0 everywhere; use float32 for the base model.")
