"""Measures of an over-ranked run: an adapter at a uniform rank R above the budget's, trained for a while.

With u = A x and M = E[u uᵀ] over calibration tokens, (R, R),

    update-spectrum             singular values of ΔW = s B A, from matrices of size R alone
    update-spectrum-on-inputs   singular values of ΔW C^½: σ² = eig(s² BᵀB M),   C = E[x xᵀ]
    output-norm                 mean squared output E‖ΔW x‖² = Σ σ²
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import (
    GroupResult,
    MeasureGroup,
    MeasurementResult,
    Tick,
    Value,
    calibration_facts,
)
from adaptive_lora.measures.request import Measurement, MeasurementKey, Request, key_of
from adaptive_lora.measures.short_run import INPUTS, ShortRun, Weights, short_run_of, train_short_runs
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.streams import derive_seed
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import collate

_RUN = ("over_ranked_parameters", *INPUTS)


def over_ranked_seed(short: ShortRun) -> int:
    """The seed of the one run."""
    return derive_seed(short.seed, "calibration")


def spectrum(scaling: float, a: Tensor, b: Tensor) -> list[float]:
    """Singular values of scaling · B A, descending; by QR of both factors."""
    core = torch.linalg.qr(b.double())[1] @ torch.linalg.qr(a.double().t())[1].t()
    return [scaling * float(s) for s in torch.linalg.svdvals(core)]


def spectra_on_inputs(
    base: FrozenBase, plan: RankPlan, weights: Weights, batches: Sequence[Sequence[Example]]
) -> dict[str, list[float]]:
    """Singular values of ΔW C^½ of every module, descending; C of the adapted model's inputs."""
    moments = _moments(base, plan, weights, batches)
    return {name: _spectrum_on_inputs(plan.scaling_of(name) * b, moments[name]) for name, (_, b) in weights.items()}


def _spectrum_on_inputs(b: Tensor, moment: Tensor) -> list[float]:
    """Square roots of the eigenvalues of BᵀB M, descending."""
    values, vectors = torch.linalg.eigh(moment)
    half = vectors * values.clamp_min(0).sqrt()
    return list(torch.linalg.svdvals(b.double() @ half).tolist())


@torch.no_grad()
def _moments(
    base: FrozenBase, plan: RankPlan, weights: Weights, batches: Sequence[Sequence[Example]]
) -> dict[str, Tensor]:
    """E[u uᵀ] of every module over the tokens of the batches, (R, R), float64."""
    with attached(base, plan, 0) as model:
        for name, layer in lora_layers(model).items():
            layer.lora_A[ADAPTER].weight.copy_(weights[name][0])
            layer.lora_B[ADAPTER].weight.copy_(weights[name][1])
        with _summing(model) as sums:
            for examples in batches:
                batch = collate(list(examples)).to(base.device)
                sums.real = batch.attention_mask.bool().reshape(-1)
                sums.tokens += int(sums.real.sum())
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return {name: (total / sums.tokens).cpu() for name, total in sums.totals.items()}


class _Sums:
    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.real = torch.empty(0)
        self.tokens = 0

    def add(self, name: str, u: Tensor) -> None:
        rows = u.detach().reshape(-1, u.shape[-1])[self.real].double()
        self.totals[name] = self.totals.get(name, 0) + rows.t() @ rows


@contextmanager
def _summing(model: Any) -> Iterator[_Sums]:
    """Adds up u uᵀ of every adapter while the model runs."""
    sums = _Sums()
    handles = [
        layer.lora_A[ADAPTER].register_forward_hook(lambda _, __, u, name=name: sums.add(name, u))
        for name, layer in lora_layers(model).items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    """One run for all measurements that depend on the same, all runs in one bank."""
    keys = [key_of("over-ranked run", _RUN, m.request) for m in measurements]
    requests = {key: m.request for key, m in zip(keys, measurements, strict=True)}
    shorts = {key: short_run_of(request, request.over_ranked_budget) for key, request in requests.items()}
    members = [short.member(over_ranked_seed(short)) for short in shorts.values()]
    trained = dict(zip(shorts, train_short_runs(next(iter(shorts.values())), members, tick), strict=True))
    on_inputs: dict[tuple[MeasurementKey, str, int], dict[str, list[float]]] = {}

    def spectra(key: MeasurementKey, weights: Weights, request: Request) -> dict[str, list[float]]:
        place = key, request.calibration_hash, request.options.calibration_batch_size
        if place not in on_inputs:
            on_inputs[place] = spectra_on_inputs(request.base, shorts[key].plan(), weights, request.batches)
            tick(shorts[key].steps, shorts[key].steps)  # all updates are done, but this may still be stopped
        return on_inputs[place]

    results: list[MeasurementResult | Exception] = []
    for key, measurement in zip(keys, measurements, strict=True):
        weights, short, values = trained[key], shorts[key], dict[str, Value]()
        if isinstance(weights, TrainingError):
            results.append(weights)
            continue
        facts = short.facts([over_ranked_seed(short)])
        if measurement.measure == "update-spectrum":
            plan = short.plan()
            values |= {name: spectrum(plan.scaling_of(name), *pair) for name, pair in weights.items()}
        else:
            found = spectra(key, weights, measurement.request)
            facts |= calibration_facts(measurement.request)
            if measurement.measure == "output-norm":
                values |= {name: sum(s * s for s in own) for name, own in found.items()}
            else:
                values |= found
        results.append(MeasurementResult(values, facts))
    return GroupResult(results, {"short_runs": len(shorts), "forward_passes": len(on_inputs)}, 1 / len(shorts))


GROUP = MeasureGroup(
    "over-ranked run",
    {
        "update-spectrum": _RUN,
        "update-spectrum-on-inputs": (*_RUN, "calibration"),
        "output-norm": (*_RUN, "calibration"),
    },
    _take,
    together=lambda measurement: "all",
)
