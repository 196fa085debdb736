"""What several short runs of one plan, each with its own draw of A and order of the data, agree on.

Over pairs of runs i ≠ j, for the update ΔW_i = s B_i A_i of one module of rank r,

    a = mean ⟨ΔW_i, ΔW_j⟩ / mean ‖ΔW_i‖²   the share of a run's update that the others confirm
    L = mean ⟨F^½ ΔW_i C^½, F^½ ΔW_j C^½⟩  what they share, as the loss feels it (C = E[x xᵀ], F = E[g gᵀ] on the
                                           frozen model: Kronecker-factored curvature, arXiv 1503.05671)
    w = a √(L / r)                         what the module wants of rank

both of which chance leaves at mean 0. Under Adam every entry moves about as far whether it learns or not, so that the
size of one run's update says little; and one gradient of the frozen model does not see which of many modules will take
an update on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.hooks import Hooks
from adaptive_lora.measures.short_run import ShortRun, Weights
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import sequence_losses


@dataclass(frozen=True)
class Agreement:
    """What runs share in one module; at least 0."""

    confirmed: float
    """a"""
    felt: float
    """L, up to a factor common to all modules."""
    rank: int

    @property
    def wanted(self) -> float:
        """w = a √(L / r)"""
        return self.confirmed * math.sqrt(self.felt / self.rank)


def agreements(
    short: ShortRun, plan: RankPlan, runs: Sequence[Weights], batches: Sequence[Sequence[Example]]
) -> dict[str, Agreement]:
    """Module -> what several trained runs of a plan share."""
    felt = _felt(short, runs, batches)
    found = {}
    for m in short.modules:
        own, square = [run[m.name] for run in runs], plan.scaling_of(m.name) ** 2
        pairs = [inner(one, other) for one, other in combinations(own, 2)]
        shared, size = sum(pairs) / len(pairs), sum(inner(w, w) for w in own) / len(own)
        confirmed = max(0.0, shared / size) if size else 0.0
        found[m.name] = Agreement(confirmed, square * max(0.0, felt[m.name]), plan.ranks[m.name])
    return found


def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """⟨B1 A1, B2 A2⟩ = Σ (B1ᵀ B2) ⊙ (A1 A2ᵀ), in float64, without making either product."""
    (a1, b1), (a2, b2) = ((a.double(), b.double()) for a, b in (one, other))
    return float(((b1.t() @ b2) * (a1 @ a2.t())).sum())


class UpdateMoments(Hooks):
    """Σ u uᵀ and Σ h hᵀ with u = A x and h = Bᵀ g of all runs at once, (runs · r, runs · r) a module."""

    def __init__(self, base: FrozenBase, runs: Sequence[Weights]) -> None:
        super().__init__(base, runs[0], lambda logits, batch, _: sequence_losses(logits, batch.labels).nll.sum())
        self.a = {name: torch.cat([run[name][0] for run in runs]).to(base.device) for name in self.names}
        self.b = {name: torch.cat([run[name][1] for run in runs], 1).to(base.device) for name in self.names}
        self.inputs = {name: torch.zeros(len(a), len(a), dtype=torch.float64) for name, a in self.a.items()}
        self.gradients = {name: torch.zeros_like(moment) for name, moment in self.inputs.items()}

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        a, b = self.a[name], self.b[name]
        u, h = self.counted(x.to(a.dtype) @ a.t()), g.to(b.dtype) @ b
        self.inputs[name] += (u.t() @ u).double().cpu()
        self.gradients[name] += (h.t() @ h).double().cpu()


def _felt(short: ShortRun, runs: Sequence[Weights], batches: Sequence[Sequence[Example]]) -> dict[str, float]:
    """L of every module, before scaling: tr(ΔW_iᵀ F ΔW_j C) = Σ (B_iᵀ F B_j) ⊙ (A_i C A_jᵀ)."""
    moments = UpdateMoments(short.base, runs)
    with moments.attached():
        for examples in batches:
            moments.run(examples)
    found = {}
    for name, inputs in moments.inputs.items():
        rank = len(inputs) // len(runs)
        both = (inputs * moments.gradients[name]).reshape(len(runs), rank, len(runs), rank).sum((1, 3))  # (runs, runs)
        pairs = [float(both[i, j]) for i, j in combinations(range(len(runs)), 2)]
        found[name] = sum(pairs) / len(pairs)
    return found
