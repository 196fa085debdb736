"""Where short runs agree, and which plan that makes: what `marginal-gain` plans by.

Several adapters at the budget's uniform rank, each with its own draw of A and its own order of the data, are trained
side by side in one bank. Over pairs of runs i ≠ j, for the update ΔW_i = s B_i A_i of one module,

    E = mean ⟨ΔW_i, ΔW_j⟩                  what they share: an estimate of ‖E[ΔW]‖² in which chance has mean 0
    a = E / mean ‖ΔW_i‖²                   the share of a run's update that the others confirm
    L = mean ⟨F^½ ΔW_i C^½, F^½ ΔW_j C^½⟩  what they share, as the loss feels it (C = E[x xᵀ], F = E[g gᵀ] on the
                                           frozen model: Kronecker-factored curvature, arXiv 1503.05671)

Under Adam every entry moves about as far whether it learns or not, so that the size of one run's update says little;
and one gradient of the frozen model does not see which of many modules will take an update on. Which of a, a², √(E L)
and a √(E L) makes the better plan, and whether any beats uniform, is measured: their plans are raced from one
beginning and judged on records that none of them has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.budget import spend
from adaptive_lora.scores.capture import listening
from adaptive_lora.scores.short_run import Short, Weights, train_short, trained
from adaptive_lora.streams import derive_seed, numpy_stream
from adaptive_lora.training.batches import collate, sequence_losses

HELD_BACK = (0.15, 64)
"""Share of the training records that judges the race, and at most how many."""
CERTAIN = 2.0
"""Standard errors, over held-back records, by which a plan must beat uniform."""
UNIFORM = "uniform"


@dataclass(frozen=True)
class Agreement:
    """What runs share in one module; nothing below 0."""

    shared: float
    """E"""
    confirmed: float
    """a"""
    felt: float
    """L, up to a factor common to all modules."""

    def candidates(self) -> dict[str, float]:
        """What a module wants of rank by each way of reading it."""
        both = (self.shared * self.felt) ** 0.5
        return {
            UNIFORM: 1.0,
            "confirmed": self.confirmed,
            "confirmed squared": self.confirmed**2,
            "shared and felt": both,
            "all": self.confirmed * both,
        }


def marginal_gains(
    short: Short, runs: int, race_steps: int, batches: Sequence[Sequence[Example]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Module -> what it wants of rank, and what was found on the way; without a race by `shared and felt`."""
    judges, rest = _held_back(short) if race_steps else ([], list(short.examples))
    short = replace(short, examples=rest)
    found = {name: a.candidates() for name, a in agreements(short, runs, batches).items()}
    wishes = {key: {name: own[key] for name, own in found.items()} for key in next(iter(found.values()))}
    facts = short.facts(_seeds(short, runs))
    if not race_steps:
        return wishes["shared and felt"], facts
    race = replace(short, steps=race_steps)
    losses, winner = _race(race, wishes, judges)
    tokens = len(wishes) * race.tokens(_race_seed(race))
    return wishes[winner], {**facts, "race_losses": losses, "race_winner": winner, "race_steps": race_steps,
                            "race_runs": len(wishes), "race_tokens": tokens}  # fmt: skip


def agreements(short: Short, runs: int, batches: Sequence[Sequence[Example]]) -> dict[str, Agreement]:
    """Module -> what so many runs share."""
    found, plan = train_short(short, _seeds(short, runs)), short.plan()
    felt = _felt(short, found, batches)
    gains = {}
    for m in short.modules:
        own, square = [run[m.name] for run in found], plan.scaling_of(m.name) ** 2
        pairs = [inner(own[i], own[j]) for i, j in combinations(range(runs), 2)]
        shared, size = max(0.0, sum(pairs) / len(pairs)), sum(inner(w, w) for w in own) / runs
        confirmed = shared / size if size else 0.0
        gains[m.name] = Agreement(square * shared, confirmed, square * max(0.0, felt[m.name]))
    return gains


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

    def on_input(self, name: str, x: Tensor) -> None:
        """See `capture.Listener`."""

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        """See `capture.Listener`."""
        a, b = self.a[name], self.b[name]
        u, h = x.to(a.dtype) @ a.t(), g.to(b.dtype) @ b
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


def _held_back(short: Short) -> tuple[list[Example], list[Example]]:
    share, most = HELD_BACK
    count = max(1, min(most, round(share * len(short.examples))))
    order = numpy_stream(short.seed, "calibration", "held-back").permutation(len(short.examples))
    chosen = set(order[:count].tolist())
    examples = list(enumerate(short.examples))
    return [e for i, e in examples if i in chosen], [e for i, e in examples if i not in chosen] or list(short.examples)


def _race_seed(short: Short) -> int:
    return derive_seed(short.seed, "calibration", "race")


def _race(
    short: Short, wishes: Mapping[str, Mapping[str, float]], judges: list[Example]
) -> tuple[dict[str, float], str]:
    """Held-back loss of every way of reading, and the best of those that beat uniform for certain; else uniform."""
    even = short.plan()
    plans = [replace(even, ranks=spend(short.modules, own, even.trainable_parameters)) for own in wishes.values()]
    with trained(short, [(plan, _race_seed(short)) for plan in plans]) as bank:
        found = dict(zip(wishes, bank.evaluate(judges), strict=True))
    losses = {name: result.loss for name, result in found.items()}
    best = UNIFORM
    for name, result in found.items():
        apart = result.nll - found[UNIFORM].nll
        error = apart.std(ddof=1) * len(apart) ** 0.5 if len(apart) > 1 else float("inf")
        if apart.sum() < -CERTAIN * error and losses[name] < losses[best]:
            best = name
    return losses, best
