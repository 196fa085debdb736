"""Importance of frozen weights from their gradients on calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

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
    weight. Raises TrainingError where a score is not finite.
    """
    weights = {m.name: base.model.get_submodule(m.name).weight for m in modules}
    batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            _backward(base, batch, len(batches))
        scores = {
            measure: {name: float(_value(measure, weight)) for name, weight in weights.items()} for measure in measures
        }
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
    for measure, values in scores.items():
        if bad := [name for name, value in values.items() if value != value or value == float("inf")]:
            raise TrainingError(f"The score {measure} of {bad[0]} is not finite; use float32 for the base model.")
    return scores


def _backward(base: FrozenBase, examples: Sequence[Example], batches: int) -> None:
    batch = collate(examples).to(base.device)
    logits = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    losses = sequence_losses(logits, batch.labels)
    (losses.nll.sum() / losses.tokens.sum() / batches).backward()  # type: ignore[no-untyped-call]


def _value(measure: str, weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise TrainingError("A target weight took no part in the forward pass; leave it out of `targets`.")
    return MEASURES[measure](weight.detach().float(), weight.grad.float())
