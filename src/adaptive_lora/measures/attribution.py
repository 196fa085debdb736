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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.short_run import ShortRun, Weights
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers
from adaptive_lora.training.batches import IGNORED, Loss, collate, label_loss
from adaptive_lora.training.head import head_of

POINTS = 4
"""Places on the line at which gradients are taken: exact where the loss is a polynomial of degree 8 in α."""


def attributed(
    short: ShortRun, plan: RankPlan, weights: Weights, batches: Sequence[Sequence[Example]]
) -> dict[str, list[float]]:
    """Module -> v_i of its directions, the largest direction first, nats a token; see the module's text.

    `batches` are records that `weights` were not trained on; a value may be below 0 there.
    """
    with attached(short.base, plan, 0) as adapted:
        layers, model = lora_layers(adapted), short.base.model  # which has the layers in it
        turned = _turned(layers, plan, weights, _moments(model, layers, weights, batches, short.base.device))
        sums = {name: torch.zeros(plan.ranks[name], dtype=torch.float64) for name in weights}
        tokens = sum(example.completion_tokens for examples in batches for example in examples)
        for place, weight in zip(*_rule(), strict=True):
            for name, (a, _) in turned.items():
                layers[name].lora_A[ADAPTER].weight.data.copy_(place * a)
            for examples in batches:
                share = weight * sum(example.completion_tokens for example in examples) / tokens
                _add_gradients(model, layers, examples, short.training.loss, share, sums, turned)
    return {name: values.tolist() for name, values in sums.items()}


def _rule() -> tuple[list[float], list[float]]:
    places, weights = np.polynomial.legendre.leggauss(POINTS)
    return [float(p + 1) / 2 for p in places], [float(w) / 2 for w in weights]


def gradients_of(
    model: Any, examples: Sequence[Example], loss: Loss, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Of the mean loss a token; that of labels by logits of completion tokens alone, few beside prompts and padding."""
    batch, head = collate(examples).to(parameters[0].device), head_of(model)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if head is None or loss is not label_loss:
        return torch.autograd.grad(loss(model(**given).logits, batch, examples), parameters)
    learnt = batch.labels[:, 1:] != IGNORED
    rows, targets = head.decoder(**given)[0][:, :-1][learnt], batch.labels[:, 1:][learnt]
    weights = torch.full(targets.shape, 1 / len(targets), device=rows.device)
    return torch.autograd.grad(rows, parameters, head.losses(rows.detach(), targets, weights).gradient)


def _add_gradients(
    model: Any,
    layers: Mapping[str, Any],
    examples: Sequence[Example],
    loss: Loss,
    share: float,
    sums: Mapping[str, Tensor],
    turned: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Adds - share ⟨a_i, ∂L/∂a_i⟩ of every direction, on one batch with its mean loss a token."""
    found = gradients_of(model, examples, loss, [layers[name].lora_A[ADAPTER].weight for name in turned])
    for (name, (a, _)), gradient in zip(turned.items(), found, strict=True):
        sums[name].sub_(share * (a.double() * gradient.double()).sum(1).cpu())


@torch.no_grad()
def _moments(
    model: Any,
    layers: Mapping[str, Any],
    weights: Weights,
    batches: Sequence[Sequence[Example]],
    device: torch.device,
) -> dict[str, Tensor]:
    """M = Σ u uᵀ, u = A x, of every module of the adapted model."""
    for name, (a, b) in weights.items():
        layers[name].lora_A[ADAPTER].weight.copy_(a)
        layers[name].lora_B[ADAPTER].weight.copy_(b)
    totals: dict[str, Tensor] = {}

    def hook(name: str, u: Tensor) -> None:
        rows = u.double().flatten(0, -2)
        totals[name] = totals.get(name, 0) + rows.T @ rows

    handles = [
        layers[name].lora_A[ADAPTER].register_forward_hook(lambda _, __, u, name=name: hook(name, u))
        for name in weights
    ]
    head = head_of(model)
    inner = model if head is None else head.decoder
    try:
        for examples in batches:
            for example in examples:  # one by one: padding must not count
                batch = collate([example]).to(device)
                inner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return totals


@torch.no_grad()
def _turned(
    layers: Mapping[str, Any], plan: RankPlan, weights: Weights, moments: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The same update with B = U, the left singular vectors of ΔW C^½, and A = Uᵀ ΔW; written into the layers."""
    turned = {}
    for name, (a, b) in weights.items():
        values, vectors = torch.linalg.eigh(moments[name])
        half = vectors * values.clamp_min(0).sqrt()  # M = half halfᵀ
        u = torch.linalg.svd(b.double() @ half.to(b.device), full_matrices=False)[0]  # (d_out, R)
        own = (u.T @ b.double()) @ a.double(), u
        turned[name] = own[0].to(a.dtype), own[1].to(b.dtype)
        layers[name].lora_B[ADAPTER].weight.copy_(turned[name][1])
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
