"""Where short runs agree, and which plan that makes: what `marginal-gain` plans by.

Several adapters of one plan, each with its own draw of A and its own order of the data, are trained side by side in
one bank. Over pairs of runs i ≠ j, for the update ΔW_i = s B_i A_i of one module of rank r,

    a = mean ⟨ΔW_i, ΔW_j⟩ / mean ‖ΔW_i‖²   the share of a run's update that the others confirm
    L = mean ⟨F^½ ΔW_i C^½, F^½ ΔW_j C^½⟩  what they share, as the loss feels it (C = E[x xᵀ], F = E[g gᵀ] on the
                                           frozen model: Kronecker-factored curvature, arXiv 1503.05671)
    w = a √(L / r)                         what the module wants of rank

both of which chance leaves at mean 0. Under Adam every entry moves about as far whether it learns or not, so that the
size of one run's update says little; and one gradient of the frozen model does not see which of many modules will take
an update on. The first round trains uniform plans, the next ones the plan that the round before has made: where rank
has gone, the update can concentrate. The plans of all rounds are then raced against uniform from one beginning, and
judged on records that none of them has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.capture import listening
from adaptive_lora.measures.short_run import Short, Weights, train_short, trained
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies.base import AgreementOptions
from adaptive_lora.streams import derive_seed, numpy_stream
from adaptive_lora.training.batches import collate, sequence_losses

HELD_BACK = (0.15, 64)
"""Share of the training records that judges the race, and at most how many."""
CERTAIN = 2.0
"""Standard errors, over held-back records, by which a plan must beat uniform."""

Wishes = Mapping[str, float]
"""What each module wants of rank."""


@dataclass(frozen=True)
class Agreement:
    """What runs share in one module; nothing below 0."""

    confirmed: float
    """a"""
    felt: float
    """L, up to a factor common to all modules."""
    rank: int

    @property
    def wanted(self) -> float:
        """w = a √(L / r)"""
        return self.confirmed * math.sqrt(self.felt / self.rank)


def marginal_gains(
    short: Short, options: AgreementOptions, batches: Sequence[Sequence[Example]], judges: Sequence[Example]
) -> tuple[Wishes, dict[str, Any]]:
    """Module -> what it wants of rank, and what was found on the way; without judges there is no race."""
    plans, wishes = [short.plan()], [{m.name: 1.0 for m in short.modules}]
    for _ in range(options.rounds):
        found = agreements(short, plans[-1], options.runs, batches)
        wishes.append({name: agreement.wanted for name, agreement in found.items()})
        plans.append(_spent(plans[0], wishes[-1], options))
    facts = _facts(short, options)
    if not judges:
        return wishes[-1], facts
    losses, winner = _race(short, plans, judges)
    tokens = len(plans) * short.tokens(_race_seed(short))
    names = ["uniform", *(f"round {i}" for i in range(1, len(plans)))]
    return wishes[winner], {**facts, "race_losses": dict(zip(names, losses, strict=True)),
                            "race_winner": names[winner], "race_runs": len(plans), "race_tokens": tokens}  # fmt: skip


def agreements(short: Short, plan: RankPlan, runs: int, batches: Sequence[Sequence[Example]]) -> dict[str, Agreement]:
    """Module -> what so many runs of a plan share."""
    found = train_short(short, _seeds(short, runs), plan)
    felt = _felt(short, found, batches)
    gains = {}
    for m in short.modules:
        own, square = [run[m.name] for run in found], plan.scaling_of(m.name) ** 2
        pairs = [inner(own[i], own[j]) for i, j in combinations(range(runs), 2)]
        shared, size = sum(pairs) / len(pairs), sum(inner(w, w) for w in own) / runs
        confirmed = max(0.0, shared / size) if size else 0.0
        gains[m.name] = Agreement(confirmed, square * max(0.0, felt[m.name]), plan.ranks[m.name])
    return gains


def held_back(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Judges of the race, and the rest."""
    share, most = HELD_BACK
    count = max(1, min(most, round(share * len(examples))))
    order = numpy_stream(seed, "calibration", "held-back").permutation(len(examples))
    chosen = set(order[:count].tolist())
    judges = [e for i, e in enumerate(examples) if i in chosen]
    return judges, [e for i, e in enumerate(examples) if i not in chosen] or list(examples)


def _spent(even: RankPlan, wishes: Wishes, options: AgreementOptions) -> RankPlan:
    """The plan by wishes: uniform where nothing is wished for."""
    if not any(wishes.values()):
        return even
    ranks = spend(even.modules, wishes, even.trainable_parameters, options.min_rank, options.max_rank)
    return replace(even, ranks=ranks)


def _facts(short: Short, options: AgreementOptions) -> dict[str, Any]:
    facts = short.facts(_seeds(short, options.runs))
    several = {name: options.rounds * facts[name] for name in ("short_runs", "short_run_tokens")}
    return {**facts, **several, "rounds": options.rounds}


def _seeds(short: Short, runs: int) -> list[int]:
    return [derive_seed(short.seed, "calibration", i) for i in range(runs)]


def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """⟨B1 A1, B2 A2⟩ = Σ (B1ᵀ B2) ⊙ (A1 A2ᵀ), in float64, without making either product."""
    (a1, b1), (a2, b2) = ((a.double(), b.double()) for a, b in (one, other))
    return float(((b1.t() @ b2) * (a1 @ a2.t())).sum())


class _Moments:
    """Σ u uᵀ and Σ h hᵀ with u = A x and h = Bᵀ g of all runs at once, (runs · r, runs · r) a module."""

    def __init__(self, runs: Sequence[Weights], device: torch.device) -> None:
        names = runs[0].keys()
        self.a = {name: torch.cat([run[name][0] for run in runs]).to(device) for name in names}
        self.b = {name: torch.cat([run[name][1] for run in runs], 1).to(device) for name in names}
        self.inputs = {name: torch.zeros(len(a), len(a), dtype=torch.float64) for name, a in self.a.items()}
        self.gradients = {name: torch.zeros_like(moment) for name, moment in self.inputs.items()}

        self.real = torch.empty(0, dtype=torch.bool)
        """Of the batch, which positions are no padding (n,)."""

    def on_input(self, name: str, x: Tensor) -> None:
        """See `capture.Listener`."""

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        """See `capture.Listener`."""
        a, b = self.a[name], self.b[name]
        u, h = x.to(a.dtype) @ a.t(), g.to(b.dtype) @ b
        if len(u) == len(self.real):  # else those that a router sent here
            u = u[self.real]
        self.inputs[name] += (u.t() @ u).double().cpu()
        self.gradients[name] += (h.t() @ h).double().cpu()

    def on_complete(self, name: str) -> None:
        """See `capture.Listener`."""


def _felt(short: Short, runs: Sequence[Weights], batches: Sequence[Sequence[Example]]) -> dict[str, float]:
    """L of every module, before scaling: tr(ΔW_iᵀ F ΔW_j C) = Σ (B_iᵀ F B_j) ⊙ (A_i C A_jᵀ)."""
    moments = _Moments(runs, short.base.device)
    with listening(short.base, moments.a, moments, backward=True) as capture:
        for examples in batches:
            batch = collate(list(examples)).to(short.base.device)
            moments.real = batch.attention_mask.bool().flatten()
            with capture.batch(batch.attention_mask.bool()), torch.enable_grad():
                logits = short.base.model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
                sequence_losses(logits, batch.labels).nll.sum().backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, inputs in moments.inputs.items():
        rank = len(inputs) // len(runs)
        both = (inputs * moments.gradients[name]).reshape(len(runs), rank, len(runs), rank).sum((1, 3))  # (runs, runs)
        pairs = [float(both[i, j]) for i, j in combinations(range(len(runs)), 2)]
        found[name] = sum(pairs) / len(pairs)
    return found


def _race_seed(short: Short) -> int:
    return derive_seed(short.seed, "calibration", "race")


def _race(short: Short, plans: Sequence[RankPlan], judges: Sequence[Example]) -> tuple[list[float], int]:
    """Loss of every plan on the judges, and the best of those that beat the first for certain; else the first.

    A plan whose run diverged cannot win.
    """
    with trained(short, [(plan, _race_seed(short)) for plan in plans]) as bank:
        whole = [slot.step == short.steps for slot in bank.slots]
        found = bank.evaluate(judges)
    losses, best = [result.loss for result in found], 0
    for index, result in enumerate(found):
        apart = result.nll - found[0].nll
        error = apart.std(ddof=1) * len(apart) ** 0.5 if len(apart) > 1 else float("inf")
        certain = apart.sum() < -CERTAIN * error or not whole[0]
        if index and whole[index] and certain and (losses[index] < losses[best] or not whole[best]):
            best = index
    return losses, best
