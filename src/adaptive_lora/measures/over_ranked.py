"""Measures of an over-ranked run: an adapter at a uniform rank R above the budget's, trained for a while.

With u = A x and M = E[u uᵀ] over calibration tokens, (R, R),

    update-spectrum             singular values of ΔW = s B A, from matrices of size R alone
    update-spectrum-on-inputs   singular values of ΔW C^½: σ² = eig(s² BᵀB M),   C = E[x xᵀ]
    output-norm                 mean squared output E‖ΔW x‖² = Σ σ²
    update-spectrum-on-loss     singular values of F^½ ΔW C^½, C = E[x xᵀ] and F = E[g gᵀ] of the frozen model, g the
                                gradient of a token's loss by the module's output: Σ σ² beyond the b-th is, up to a
                                common factor, what the loss would lose if the update were cut to rank b (second order,
                                Kronecker-factored curvature, arXiv 1503.05671)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.agreement import UpdateMoments
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick, Value, calibration_facts
from adaptive_lora.measures.hooks import Hooks
from adaptive_lora.measures.request import Measurement, key_of
from adaptive_lora.measures.short_run import INPUTS, ShortRun, Weights, short_run_of, train_short_runs
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.streams import derive_seed
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers
from adaptive_lora.training.base import FrozenBase

_RUN = ("over_ranked_parameters", *INPUTS)


def over_ranked_seed(short: ShortRun) -> int:
    """The seed of the one run."""
    return derive_seed(short.seed, "calibration")


def spectrum(scaling: float, a: Tensor, b: Tensor) -> list[float]:
    """Singular values of scaling · B A, descending; by QR of both factors."""
    core = torch.linalg.qr(b.double())[1] @ torch.linalg.qr(a.double().t())[1].t()
    return [scaling * float(s) for s in torch.linalg.svdvals(core)]


@torch.no_grad()
def spectra_on_inputs(
    base: FrozenBase, plan: RankPlan, weights: Weights, batches: Sequence[Sequence[Example]]
) -> dict[str, list[float]]:
    """Singular values of ΔW C^½ of every module, descending; C of the adapted model's inputs."""
    with attached(base, plan, 0) as model:
        for name, layer in lora_layers(model).items():
            layer.lora_A[ADAPTER].weight.copy_(weights[name][0])
            layer.lora_B[ADAPTER].weight.copy_(weights[name][1])
        sums = _Sums(base, (f"{name}.lora_B.{ADAPTER}" for name in weights))
        with sums.attached():
            for examples in batches:
                sums.run(examples)
    tokens, found = sum(len(example.ids) for examples in batches for example in examples), {}
    for name, (_, b) in weights.items():
        values, vectors = torch.linalg.eigh((sums.totals[f"{name}.lora_B.{ADAPTER}"] / tokens).cpu())  # of M
        half = vectors * values.clamp_min(0).sqrt()
        found[name] = list(torch.linalg.svdvals((plan.scaling_of(name) * b).double() @ half).tolist())
    return found


def spectra_on_loss(
    base: FrozenBase, plan: RankPlan, weights: Weights, batches: Sequence[Sequence[Example]]
) -> dict[str, list[float]]:
    """Singular values of F^½ ΔW C^½ of every module, descending, up to a factor common to all.

    σ² = eig(s² · BᵀFB · A C Aᵀ), both (R, R): neither F nor C is formed.
    """
    moments = UpdateMoments(base, [weights])
    with moments.attached():
        for examples in batches:
            moments.run(examples)
    found = {}
    for name, inputs in moments.inputs.items():
        values, vectors = torch.linalg.eigh(inputs)
        half = vectors * values.clamp_min(0).sqrt()
        squares = torch.linalg.eigvalsh(half.t() @ moments.gradients[name] @ half).clamp_min(0).flip(0)
        found[name] = (plan.scaling_of(name) * squares.sqrt()).tolist()
    return found


class _Sums(Hooks):
    """Σ u uᵀ of what goes into every module's B, (R, R), float64."""

    def __init__(self, base: FrozenBase, names: Iterable[str]) -> None:
        super().__init__(base, names)
        self.totals: dict[str, Tensor] = {}

    def on_input(self, name: str, x: Tensor) -> None:
        rows = x.double()
        self.totals[name] = self.totals.get(name, 0) + rows.t() @ rows


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    """One run for all measurements that depend on the same, all runs in one bank."""
    keys = [key_of("over-ranked run", _RUN, m.request) for m in measurements]
    shorts = {
        key: short_run_of(m.request, m.request.over_ranked_budget) for key, m in zip(keys, measurements, strict=True)
    }
    members = [short.member(over_ranked_seed(short)) for short in shorts.values()]
    trained = dict(zip(shorts, train_short_runs(next(iter(shorts.values())), members, tick), strict=True))
    seen: dict[tuple[Hashable, ...], dict[str, list[float]]] = {}
    results: list[MeasurementResult | Exception] = []
    for key, measurement in zip(keys, measurements, strict=True):
        weights, short, request = trained[key], shorts[key], measurement.request
        if isinstance(weights, TrainingError):
            results.append(weights)
            continue
        facts, plan, values = short.facts([over_ranked_seed(short)]), short.plan(), dict[str, Value]()
        if measurement.measure == "update-spectrum":
            values |= {name: spectrum(plan.scaling_of(name), *pair) for name, pair in weights.items()}
        else:
            on = spectra_on_loss if measurement.measure == "update-spectrum-on-loss" else spectra_on_inputs
            place = on, key, request.calibration_hash, request.options.calibration_batch_size
            if place not in seen:
                seen[place] = on(request.base, plan, weights, request.batches)
                tick(short.steps, short.steps)  # all updates are done, but this may still be stopped
            facts |= calibration_facts(request)
            energy = measurement.measure == "output-norm"
            values |= {name: sum(s * s for s in own) if energy else own for name, own in seen[place].items()}
        results.append(MeasurementResult(values, facts))
    backward = sum(place[0] is spectra_on_loss for place in seen)
    counts = {"short_runs": len(shorts), "forward_passes": len(seen) - backward, "gradient_passes": backward}
    return GroupResult(results, counts, 1 / len(shorts))


GROUP = MeasureGroup(
    "over-ranked run",
    {
        "update-spectrum": _RUN,
        "update-spectrum-on-inputs": (*_RUN, "calibration"),
        "output-norm": (*_RUN, "calibration"),
        "update-spectrum-on-loss": (*_RUN, "calibration"),
    },
    _take,
    together=lambda measurement: "all",
)
