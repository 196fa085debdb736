"""Importance of frozen weights from their gradients on calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import collate, sequence_losses

MEASURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weight-gradient": lambda weight, gradient: (weight * gradient).abs().mean(),
    "gradient-norm": lambda weight, gradient: gradient.square().mean().sqrt(),
}
"""Measure -> formula of a weight W and its mean gradient G; both are means over the entries."""


def gradient_scores(
    base: FrozenBase,
    modules: Sequence[ModuleShape],
    examples: Sequence[Example],
    batch_size: int,
    measures: Iterable[str],
) -> dict[str, dict[str, float]]:
    """Measure -> module -> value, with G = the mean over batches of dL/dW, L as in training.

    The base is in evaluation mode and unchanged afterwards. Memory: one gradient for every target
    weight, summed in float32 at least. A weight that took no part (an expert no token was sent to)
    scores 0. Raises TrainingError where a score is not finite, or all are 0.
    """
    weights = {m.name: base.model.get_submodule(m.name).weight for m in modules}
    sums: dict[str, Tensor] = {}
    batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    hooks = []
    try:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(_adding_to(sums, name)))
        for batch in batches:
            _backward(base, batch, len(batches))
        scores = {
            measure: {name: _value(measure, weight, sums.get(name)) for name, weight in weights.items()}
            for measure in measures
        }
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
    for measure, values in scores.items():
        if bad := [name for name, value in values.items() if value != value or value == float("inf")]:
            raise TrainingError(f"The score {measure} of {bad[0]} is not finite; use float32 for the base model.")
        if not any(values.values()):
            raise TrainingError(f"The score {measure} is 0 everywhere; use float32 for the base model.")
    return scores


def _backward(base: FrozenBase, examples: Sequence[Example], batches: int) -> None:
    batch = collate(examples).to(base.device)
    logits = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    losses = sequence_losses(logits, batch.labels)
    (losses.nll.sum() / losses.tokens.sum() / batches).backward()  # type: ignore[no-untyped-call]


def _adding_to(sums: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    """A hook that moves a weight's gradient into `sums`: a half-precision gradient must not be summed as such."""

    def add(weight: Tensor) -> None:
        if weight.grad is not None:
            gradient = weight.grad if weight.dtype == torch.float64 else weight.grad.float()
            sums[name] = sums[name] + gradient if name in sums else gradient
            weight.grad = None

    return add


def _value(measure: str, weight: Tensor, gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(MEASURES[measure](weight.detach().to(gradient.dtype), gradient))
