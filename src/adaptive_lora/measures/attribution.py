"""What each direction of a trained update is worth: the fall of the loss, shared out among all directions.

An over-ranked run is turned into the directions that its outputs have, ΔW = Σ u_i (u_iᵀ ΔW), u_i the left singular
vectors of ΔW C^½ (C = E[x xᵀ] of the module's inputs), largest first. With every direction held at the share α of
itself, L(α) falls from the frozen model's loss to the trained one's, and direction i takes part in that by

    v_i = - ∫₀¹ ⟨u_iᵀ ΔW, ∂L/∂(u_iᵀ ΔW)⟩ dα,      Σ v_i over all modules = L(0) - L(1)

on records that the run was not trained on: integrated gradients (Sundararajan, Taly, Yan 2017, arXiv 1703.01365) along
the straight line from the frozen model, by Gauss and Legendre's rule. What a run has learnt by chance is worth nothing
there, whatever its size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.short_run import ShortRun, Weights
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.current_batch import get_current_batch
from adaptive_lora.training.memory import members_at_once

POINTS = 4
"""Places on the line at which gradients are taken: exact where the loss is a polynomial of degree 8 in α."""

Values = Mapping[str, list[float]]
"""Module -> v_i of its directions, the largest direction first, nats a token."""


@dataclass(frozen=True)
class Trained:
    """A run whose directions are to be valued."""

    plan: RankPlan
    weights: Weights
    batches: Sequence[Sequence[Example]]
    """Records that it was not trained on; a value may be below 0 there."""


def attributed(short: ShortRun, runs: Sequence[Trained], beat: Callable[[], None] = lambda: None) -> list[Values]:
    """What the directions of each run are worth; see the module's text. `short` gives base and bank.

    `beat` is called after every pass, and may raise to stop.
    """
    size = members_at_once(short.base, [run.plan for run in runs]) if runs else 1
    options, found = replace(short.training.options, dropout=0.0), list[Values]()
    for some in (runs[at : at + size] for at in range(0, len(runs), size)):
        members = [
            Member(
                plan=run.plan, options=options, seed=short.seed, examples=[e for batch in run.batches for e in batch]
            )
            for run in some
        ]
        with short.training.bank(short.base, members) as bank:
            found += _attributed(bank, some, beat)
    return found


def _attributed(bank: Bank, runs: Sequence[Trained], beat: Callable[[], None]) -> list[Values]:
    turned = []
    for i, run in enumerate(runs):
        _write(bank, i, {name: a for name, (a, _) in run.weights.items()}, {n: b for n, (_, b) in run.weights.items()})
        turned.append(_turned(run.weights, _moments(bank, i, run)))
        beat()
        _write(bank, i, {}, {name: b for name, (_, b) in turned[-1].items()})
    sums = [{name: torch.zeros(run.plan.ranks[name], dtype=torch.float64) for name in run.weights} for run in runs]
    tokens = [sum(_completion(batch) for batch in run.batches) for run in runs]
    for place, weight in zip(*_rule(), strict=True):
        for i, own in enumerate(turned):
            _write(bank, i, {name: place * a for name, (a, _) in own.items()}, {})
        for at in range(max(len(run.batches) for run in runs)):
            batches = {i: run.batches[at] for i, run in enumerate(runs) if at < len(run.batches)}
            bank.take_gradients(batches)
            for i, batch in batches.items():
                _add(bank, i, weight * _completion(batch) / tokens[i], sums[i], turned[i])
            beat()
    return [{name: values.tolist() for name, values in own.items()} for own in sums]


def _completion(batch: Sequence[Example]) -> int:
    return sum(example.completion_tokens for example in batch)


def _rule() -> tuple[list[float], list[float]]:
    places, weights = np.polynomial.legendre.leggauss(POINTS)
    return [float(p + 1) / 2 for p in places], [float(w) / 2 for w in weights]


@torch.no_grad()
def _write(bank: Bank, member: int, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Puts A (r, d_in) and B (d_out, r) of some modules into a member."""
    pairs = bank.slots[member].pairs
    for name, own in a.items():
        pairs[name].a.copy_(own)
    for name, own in b.items():
        pairs[name].b.copy_(own.t())


def _add(bank: Bank, member: int, share: float, sums: Mapping[str, Tensor], turned: Weights) -> None:
    """Adds - share ⟨a_i, ∂L/∂a_i⟩ of every direction, on one batch with its mean loss a token."""
    for name, (a, _) in turned.items():
        gradient = bank.slots[member].pairs[name].a_gradient.cpu()
        sums[name].sub_(share * (a.double() * gradient.double()).sum(1))


@torch.no_grad()
def _moments(bank: Bank, member: int, run: Trained) -> dict[str, Tensor]:
    """M = Σ u uᵀ, u = A x, of every module of the adapted model, over the tokens of the records."""
    totals: dict[str, Tensor] = {}

    def watch(name: str, _: Any, inputs: tuple[Tensor, ...]) -> None:
        batch = get_current_batch()
        assert batch is not None  # `logits` sets it
        pack, (begin, end) = batch.pack, batch.pack.segments[0]
        x = inputs[0].flatten(0, -2)[begin:end]
        x = x[: pack.tokens[0]] if pack.real[0] is None else x[pack.real[0]]  # neither padding nor filling
        rows = (x @ run.weights[name][0].to(x).t()).double().cpu()
        totals[name] = totals.get(name, 0) + rows.T @ rows

    layers = {name: bank.base.model.get_submodule(name) for name in run.weights}
    handles = [layer.register_forward_pre_hook(functools.partial(watch, name)) for name, layer in layers.items()]
    try:
        for batch in run.batches:
            bank.logits(member, batch)
    finally:
        for handle in handles:
            handle.remove()
    return totals


def _turned(weights: Weights, moments: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The same update with B = U, the left singular vectors of ΔW C^½, and A = Uᵀ ΔW."""
    turned = {}
    for name, (a, b) in weights.items():
        values, vectors = torch.linalg.eigh(moments[name])
        half = vectors * values.clamp_min(0).sqrt()  # M = half halfᵀ
        u = torch.linalg.svd(b.double() @ half, full_matrices=False)[0]  # (d_out, R)
        turned[name] = ((u.T @ b.double()) @ a.double()).to(a.dtype), u.to(b.dtype)
    return turned


def descending(values: Sequence[float]) -> list[float]:
    """The nearest descending sequence in least squares (pool adjacent violators), nothing below 0.

    >>> descending([3.0, 1.0, 2.0, -1.0])
    [3.0, 1.5, 1.5, 0.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] * count < total * pools[-1][1]:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    return [max(0.0, total / count) for total, count in pools for _ in range(count)]
