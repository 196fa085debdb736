"""Measures of the frozen weights alone, without any data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick, no_tick
from adaptive_lora.measures.request import Measurement
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.quantised import dense_weight

_SMALL = 1024
"""Up to this smaller side all singular values are computed, beyond it the largest alone."""


def stable_ranks(base: FrozenBase, modules: Sequence[ModuleShape]) -> dict[str, float]:
    """||W||_F² / ||W||_2² of every target weight, between 1 and its rank; 0 for a weight of zeros.

    Computed in double precision. Raises TrainingError where one is not finite.
    """
    found = {m.name: stable_rank(dense_weight(base.model.get_submodule(m.name))) for m in modules}
    if bad := [name for name, value in found.items() if not value < float("inf")]:
        raise TrainingError(f"The stable rank of {bad[0]} is not finite: its weights are not.")
    return found


def condition_numbers(base: FrozenBase, modules: Sequence[ModuleShape], tick: Tick = no_tick) -> dict[str, float]:
    """σ_max / σ_min of every target weight; all singular values are computed, in float32.

    As `peft.helpers.KappaTuneSelector` has it: σ_max / (σ_min + 1e-8), so that a singular weight has a large number and
    not an infinite one. Raises TrainingError where a weight is not finite.
    """
    found = {}
    for done, m in enumerate(modules, 1):
        weight = dense_weight(base.model.get_submodule(m.name)).float()
        if not weight.isfinite().all():
            raise TrainingError(f"The condition number of {m.name} is not finite: its weights are not.")
        sigma = torch.linalg.svdvals(weight)
        found[m.name] = float(sigma[0] / (sigma[-1] + 1e-8))
        tick(done, len(modules))
    return found


def weight_norms(base: FrozenBase, modules: Sequence[ModuleShape]) -> dict[str, float]:
    """||W||_F of every target weight."""
    return {m.name: float(dense_weight(base.model.get_submodule(m.name)).float().norm()) for m in modules}


def stable_rank(weight: Tensor) -> float:
    """||W||_F² / ||W||_2².

    >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    1.5
    """
    wide = weight.cpu().double()
    if not wide.isfinite().all():
        return float("nan")
    if min(wide.shape) <= _SMALL:
        largest = float(torch.linalg.matrix_norm(wide, 2))
    else:
        from scipy.sparse.linalg import svds

        start = torch.ones(min(wide.shape), dtype=torch.float64).numpy()
        largest = float(svds(wide.numpy(), k=1, v0=start, return_singular_vectors=False)[0])
    return float(wide.square().sum()) / largest**2 if largest else 0.0


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    (measurement,) = measurements
    request = measurement.request
    if measurement.measure == "stable-rank":
        values = stable_ranks(request.base, request.modules)
    else:
        values = condition_numbers(request.base, request.modules, tick)
    return GroupResult([MeasurementResult(values, {})])


GROUP = MeasureGroup("weights", {"stable-rank": (), "condition-number": ()}, _take)
"""One at a time: a weight is read once for each."""
