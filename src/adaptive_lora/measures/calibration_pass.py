"""Measures that come from passes over the calibration batches: input spectra and gradients of every target module.

Inputs alone take forward passes; as soon as one measure needs a gradient, all come from the same forward
and backward passes, with the loss of training. The base stays frozen and takes no gradient.

`exact` keeps all sums of all modules at once, in one pass over the batches. `stream` takes the modules in
rounds, each a pass of its own, so that the spectra's sums of one round stay within bounds and are the same
as in `exact`; what lies before a round's first module then has no backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.accumulators import BatchGradients, BGradient
from adaptive_lora.measures.groups import (
    GroupResult,
    MeasureGroup,
    MeasurementResult,
    Tick,
    Value,
    calibration_facts,
    check_values,
    no_tick,
)
from adaptive_lora.measures.hooks import Hooks
from adaptive_lora.measures.request import Measurement, resolve_mode
from adaptive_lora.measures.spectra import Moments
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Mode
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import Loss, label_loss
from adaptive_lora.training.options import initial_a
from adaptive_lora.training.quantised import dense_weight

ROUND_ENTRIES = 1 << 27
"""Most entries of gradients and covariances that a round of a stream keeps, unless one input alone takes more."""


class Quantity(NamedTuple):
    """A measure, and the size that it is asked for."""

    measure: str
    size: int | None = None
    """Rank of the adapter for `b-gradient`, leading components (None: all) for `input-spectrum`."""


Found = dict[Quantity, dict[str, Value]]
"""Quantity -> module -> value."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Which quantities are measured, and on what."""

    quantities: frozenset[Quantity]
    base: FrozenBase
    modules: Sequence[ModuleShape]
    batches: Sequence[Sequence[Example]]
    seed: int
    """Of the adapter's initial A."""
    mode: Mode = "auto"
    tokens: str = "all"
    """Which inputs count where no gradient is measured; with gradients all real tokens count."""
    round_entries: int = ROUND_ENTRIES
    loss: Loss = label_loss
    """Whose gradients are taken."""

    @property
    def measures(self) -> set[str]:
        """Names of what is measured."""
        return {quantity.measure for quantity in self.quantities}

    @property
    def exact(self) -> bool:
        """Whether everything is kept at once."""
        return resolve_mode(self.mode, self.modules) == "exact"

    @property
    def backward(self) -> bool:
        """Whether any measure needs a gradient."""
        return bool(self.measures - {"input-spectrum"})

    @property
    def moments(self) -> bool:
        """Whether any measure needs the covariance of inputs."""
        return bool(self.measures & {"input-spectrum", "whitened-rank"})


class _Round(Hooks):
    """Sums over the batches for some of the modules."""

    def __init__(self, plan: Pass, modules: Sequence[ModuleShape]) -> None:
        super().__init__(plan.base, [m.name for m in modules], plan.loss if plan.backward else None)
        self.plan, self.modules = plan, modules
        self.moments: dict[str, Moments] = {}
        """By the first module of those that share an input."""
        self.gradients = {m.name: self._gradients(m) for m in modules}
        self.b_gradients = {m.name: self._b_gradients(m) for m in modules}

    def on_input(self, name: str, x: Tensor) -> None:
        if self.plan.moments:
            self.moments.setdefault(name, Moments()).add(x)

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        for accumulator in self._all(name):
            accumulator.add(x, g)

    def on_complete(self, name: str) -> None:
        for accumulator in self._all(name):
            accumulator.complete()

    @property
    def bytes(self) -> int:
        """Bytes held between batches."""
        kept = [accumulator.bytes for name in self.names for accumulator in self._all(name)]
        return sum(kept) + sum(moments.bytes for moments in self.moments.values())

    def values(self) -> Found:
        """All quantities of the round's modules; 0 for a module that took no part."""
        found: Found = {quantity: {} for quantity in self.plan.quantities}
        batches, whitened = len(self.plan.batches), "whitened-rank" in self.plan.measures
        spectra: dict[tuple[str, int | None], list[float]] = {}
        for m in self.modules:
            leader = self.leaders.get(m.name, m.name)
            moments, own = self.moments.get(leader, Moments()), dict[str, float]()
            for gradients in self.gradients[m.name]:
                own = gradients.values(batches, moments if whitened else None)
            for quantity, by_module in found.items():
                if quantity.measure == "input-spectrum":
                    if (leader, quantity.size) not in spectra:
                        spectra[leader, quantity.size] = moments.explained(quantity.size or m.d_in)
                    by_module[m.name] = spectra[leader, quantity.size]
                elif quantity.measure == "b-gradient":
                    by_module[m.name] = self.b_gradients[m.name][quantity].squares / batches
                else:
                    by_module[m.name] = own.get(quantity.measure, 0.0)
        return found

    def _all(self, name: str) -> list[BatchGradients | BGradient]:
        return [*self.gradients[name], *self.b_gradients[name].values()]

    def _gradients(self, m: ModuleShape) -> list[BatchGradients]:
        entrywise = bool(self.plan.measures & {"weight-gradient", "gradient-norm"})
        keep = "whitened-rank" in self.plan.measures or (entrywise and self.plan.exact)
        if not (keep or entrywise):
            return []
        weight = functools.partial(dense_weight, self.base.model.get_submodule(m.name))
        return [BatchGradients(weight, keep, entrywise and not self.plan.exact)]

    def _b_gradients(self, m: ModuleShape) -> dict[Quantity, BGradient]:
        dtype = torch.float64 if self.base.model.dtype == torch.float64 else torch.float32
        found = {}
        for quantity in self.plan.quantities:
            if quantity.measure == "b-gradient":
                a = torch.from_numpy(initial_a(self.plan.seed, m.name, min(quantity.size or 0, m.largest_rank), m.d_in))
                found[quantity] = BGradient(a.to(self.base.device, dtype))
        return found


def run_pass(plan: Pass, tick: Tick = no_tick) -> tuple[Found, dict[str, Any]]:
    """Quantity -> module -> value, and facts. Every measure is a mean over the batches as the loss is.

    In a stream `weight-gradient` and `gradient-norm` are means over the batches of what each batch says, a
    module's gradient being dropped as soon as it is scored. A weight that took no part (an expert no token
    was sent to) scores 0.
    """
    found: Found = {quantity: {} for quantity in plan.quantities}
    rounds = [list(plan.modules)] if plan.exact else _rounds(plan)
    largest, completion, after = 0, plan.tokens == "completion" and not plan.backward, _after_part(plan, rounds, tick)
    for modules in rounds:
        sums = _Round(plan, modules)
        with sums.attached():
            for examples in plan.batches:
                sums.run(examples, completion, after)
        largest = max(largest, sums.bytes)
        for quantity, values in sums.values().items():
            found[quantity] |= values
    return found, {"mode": "exact" if plan.exact else "stream", "passes": len(rounds), "score_bytes": largest}


def _after_part(plan: Pass, rounds: Sequence[Sequence[ModuleShape]], tick: Tick) -> Callable[[Sequence[Example]], None]:
    """Counts parts of batches, and their tokens as the share of the work."""
    hooks = Hooks(plan.base, [m.name for m in plan.modules], plan.loss if plan.backward else None)
    steps = len(rounds) * sum(len(hooks.parts(examples)) for examples in plan.batches)
    tokens = len(rounds) * sum(map(_tokens_of, plan.batches))
    done = [0, 0]

    def after(part: Sequence[Example]) -> None:
        done[0] += 1
        done[1] += _tokens_of(part)
        tick(done[0], steps, done[1] / tokens)

    return after


def _tokens_of(examples: Sequence[Example]) -> int:
    return sum(len(example.ids) for example in examples)


def _rounds(plan: Pass) -> list[list[ModuleShape]]:
    """The modules in their order, cut where a round would keep too much; those that share an input stay together."""
    sharing: dict[str, list[ModuleShape]] = {}
    hooks = Hooks(plan.base, [m.name for m in plan.modules])
    with hooks.attached():
        hooks.run(plan.batches[0][:1])
    for m in plan.modules:
        sharing.setdefault(hooks.leaders.get(m.name, m.name), []).append(m)
    rounds: list[list[ModuleShape]] = []
    free = 0
    for group in sharing.values():
        entries = group[0].d_in ** 2 if plan.moments else 0
        if "whitened-rank" in plan.measures:
            entries += sum(m.d_in * m.d_out for m in group)
        if not rounds or entries > free:
            rounds.append([])
            free = plan.round_entries
        rounds[-1] += group
        free -= entries
    return rounds


def _quantity(measurement: Measurement) -> Quantity:
    sizes = {"b-gradient": measurement.request.rank, "input-spectrum": measurement.request.components}
    return Quantity(measurement.measure, sizes.get(measurement.measure))


def _tokens(measurement: Measurement) -> str:
    return measurement.request.tokens if measurement.measure == "input-spectrum" else "all"


def _together(measurement: Measurement) -> Hashable:
    """Equal for what one pass gives."""
    request = measurement.request
    batches = request.calibration_hash, request.options.calibration_batch_size
    return batches, request.seed, request.mode, _tokens(measurement)


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    request = measurements[0].request
    plan = Pass(
        quantities=frozenset(map(_quantity, measurements)), base=request.base, modules=request.modules,
        batches=request.batches, seed=request.seed, mode=request.mode, tokens=_tokens(measurements[0]),
        loss=request.training.loss,
    )  # fmt: skip
    found, facts = run_pass(plan, tick)
    facts |= calibration_facts(request)
    results: list[MeasurementResult | Exception] = []
    for measurement in measurements:
        values = found[_quantity(measurement)]
        results.append(check_values(measurement.measure, values) or MeasurementResult(values, facts))
    return GroupResult(results, {"gradient_passes" if plan.backward else "forward_passes": facts["passes"]})


GROUP = MeasureGroup(
    "calibration pass",
    {
        "input-spectrum": ("calibration", "tokens", "components"),
        "weight-gradient": ("calibration", "mode"),
        "gradient-norm": ("calibration", "mode"),
        "b-gradient": ("calibration", "seed", "rank"),
        "whitened-rank": ("calibration",),
    },
    _take,
    _together,
)
