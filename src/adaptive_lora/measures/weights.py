"""Measures of the frozen weights alone, without any data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick
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
    return GroupResult([MeasurementResult(stable_ranks(m.request.base, m.request.modules), {}) for m in measurements])


GROUP = MeasureGroup("weights", {"stable-rank": ()}, _take)
