"""What short training runs say of where rank is needed.

**An over-ranked run** (`posthoc-svd`, `lora-drop`): an adapter at a uniform rank R above the budget's, trained for a
while. With u = A x and M = E[u uᵀ] over calibration tokens, (R, R),

    singular values of ΔW = s B A        from matrices of size R alone
    singular values of ΔW C^½            σ² = eig(s² BᵀB M),   C = E[x xᵀ]
    mean squared output E‖ΔW x‖²         their Σ σ²
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.streams import derive_seed
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import Loss, collate, label_loss
from adaptive_lora.training.options import DataOrder, TrainingOptions

MEASURES = frozenset({"update-spectrum", "update-spectrum-on-inputs", "output-norm"})
"""What an over-ranked run gives."""

MakeBank = Callable[[FrozenBase, Sequence[Member]], Bank]

Weights = Mapping[str, tuple[Tensor, Tensor]]
"""A (R, d_in) and B (d_out, R) by module."""


@dataclass(frozen=True)
class Practice:
    """How the planned adapter will be trained: what short runs go by."""

    options: TrainingOptions
    bank: MakeBank = Bank
    loss: Loss = label_loss
    """What the bank lowers, for what trains or takes gradients without one."""


@dataclass(frozen=True, kw_only=True)
class Short:
    """What short runs go by."""

    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    examples: Sequence[Example]
    """Training examples."""
    practice: Practice
    steps: int
    learning_rate: float | None
    """Nothing: the planned training's."""
    budget: int
    """Trainable parameters of a run."""
    scaling: Scaling
    seed: int

    @property
    def options(self) -> TrainingOptions:
        """The planned training, its schedule drawn together to fewer steps."""
        planned = self.practice.options
        rate = self.learning_rate or planned.learning_rate
        return replace(planned, steps=self.steps, learning_rate=rate)

    def plan(self) -> RankPlan:
        """A uniform plan on the budget, or as much of it as the modules can hold."""
        most = sum(m.params_per_rank * m.largest_rank for m in self.modules)
        ranks = spend(self.modules, {m.name: 1.0 for m in self.modules}, min(most, self.budget))
        return RankPlan("uniform", total_cost(self.modules, ranks), self.modules, ranks, self.scaling)

    def facts(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What runs with these seeds amount to."""
        return {
            "short_runs": len(seeds),
            "short_run_steps": self.steps,
            "short_run_parameters": self.plan().trainable_parameters,
            "short_run_tokens": sum(map(self.tokens, seeds)),
        }

    def tokens(self, seed: int) -> int:
        """How many tokens a run with this seed sees."""
        order = DataOrder(seed, len(self.examples), self.options.batch_size)
        return sum(len(self.examples[i].ids) for step in range(self.steps) for i in order.batch(step))


def train_short(
    short: Short, seeds: Sequence[int], plan: RankPlan | None = None
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """One adapter a seed, all in one bank, of a plan or the uniform one; their weights.

    Raises TrainingError where one of them diverged.
    """
    plan = plan or short.plan()
    with trained(short, [(plan, seed) for seed in seeds]) as bank:
        if cut := [slot.step for slot in bank.slots if slot.step < short.steps]:
            raise TrainingError(
                f"A short run diverged at step {min(cut)} of {short.steps}, so that nothing can be planned by it. Try "
                "a lower learning rate, or a lower `short_run_learning_rate` for these runs alone."
            )
        return [slot.weights() for slot in bank.slots]


@contextmanager
def trained(short: Short, runs: Sequence[tuple[RankPlan, int]]) -> Iterator[Bank]:
    """A bank at the end of short runs of some plans with some seeds."""
    members = [Member(plan=plan, options=short.options, seed=seed, examples=short.examples) for plan, seed in runs]
    with short.practice.bank(short.base, members) as bank:
        while bank.running:
            bank.step()
        yield bank


def over_ranked_seeds(short: Short) -> list[int]:
    """The seed of the one run."""
    return [derive_seed(short.seed, "calibration")]


def over_ranked_scores(
    short: Short, needs: Sequence[str], batches: Sequence[Sequence[Example]]
) -> dict[str, dict[str, Any]]:
    """Measure -> module -> spectrum, descending, or number."""
    (weights,) = train_short(short, over_ranked_seeds(short))
    plan = short.plan()
    found: dict[str, dict[str, Any]] = {}
    if "update-spectrum" in needs:
        found["update-spectrum"] = {name: spectrum(plan.scaling_of(name), *pair) for name, pair in weights.items()}
    if {"update-spectrum-on-inputs", "output-norm"} & set(needs):
        moments = _moments(short.base, plan, weights, batches)
        on_inputs = {
            name: _spectrum_on_inputs(plan.scaling_of(name) * b, moments[name]) for name, (_, b) in weights.items()
        }
        found["update-spectrum-on-inputs"] = on_inputs
        found["output-norm"] = {name: sum(s * s for s in values) for name, values in on_inputs.items()}
    return {need: found[need] for need in needs}


def spectrum(scaling: float, a: Tensor, b: Tensor) -> list[float]:
    """Singular values of scaling · B A, descending; by QR of both factors."""
    core = torch.linalg.qr(b.double())[1] @ torch.linalg.qr(a.double().t())[1].t()
    return [scaling * float(s) for s in torch.linalg.svdvals(core)]


def _spectrum_on_inputs(b: Tensor, moment: Tensor) -> list[float]:
    """Square roots of the eigenvalues of BᵀB M, descending."""
    values, vectors = torch.linalg.eigh(moment)
    half = vectors * values.clamp_min(0).sqrt()
    b = b.double()
    return list(torch.linalg.svdvals(b @ half).tolist())


@torch.no_grad()
def _moments(
    base: FrozenBase, plan: RankPlan, weights: Weights, batches: Sequence[Sequence[Example]]
) -> dict[str, Tensor]:
    """E[u uᵀ] of every module over the tokens of the batches, (R, R), float64."""
    with attached(base, plan, 0) as model:
        for name, layer in lora_layers(model).items():
            layer.lora_A[ADAPTER].weight.copy_(weights[name][0])
            layer.lora_B[ADAPTER].weight.copy_(weights[name][1])
        with _listening(model) as sums:
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
def _listening(model: Any) -> Iterator[_Sums]:
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
