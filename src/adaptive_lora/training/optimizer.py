"""AdamW on one adapter's vector, the arithmetic of `torch.optim.AdamW`, with a factor on the rate of each parameter."""

from __future__ import annotations

import math

import torch

from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.slots import Slot


def checked_update(slot: Slot, loss: float, tokens: int, norm: float) -> StepRecord | Diverged:
    """`adamw_update` if loss and gradient are finite; otherwise the slot is left as it is."""
    if not math.isfinite(loss):
        return Diverged(slot.step, "loss")
    if not math.isfinite(norm):
        return Diverged(slot.step, "gradient")
    step = slot.step
    return StepRecord(step, loss, norm, adamw_update(slot, norm), tokens)


@torch.no_grad()
def adamw_update(slot: Slot, norm: float) -> float:
    """Clips the slot's gradient, whose 2-norm is `norm`, applies it and counts the step; returns the rate.

    g <- g min(1, c / (norm + 1e-6));  p <- p (1 - f η λ);  m, v <- moments;
    p <- p - f η / (1 - β1^t) m / (sqrt(v / (1 - β2^t)) + ε)   (arXiv 1711.05101; f the factor, η the rate)
    """
    options = slot.member.options
    # The schedule counts updates from 0, the bias corrections below from 1.
    rate = options.rate_at(slot.step)
    slot.step += 1
    # As `torch.nn.utils.clip_grad_norm_` does it, 1e-6 included, so that both engines agree.
    if options.max_grad_norm is not None:
        slot.gradient.mul_(min(1.0, options.max_grad_norm / (norm + 1e-6)))
    beta1, beta2 = options.betas
    # Before the step, as in torch: decay is decoupled and does not enter the moments.
    if options.weight_decay:
        decay = rate * options.weight_decay
        slot.parameters.mul_(1 - decay if slot.factors is None else 1 - decay * slot.factors)
    slot.exp_avg.lerp_(slot.gradient, 1 - beta1)
    slot.exp_avg_sq.mul_(beta2).addcmul_(slot.gradient, slot.gradient, value=1 - beta2)
    spread = slot.exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**slot.step)).add_(options.epsilon)
    direction = slot.exp_avg if slot.factors is None else slot.exp_avg * slot.factors
    slot.parameters.addcdiv_(direction, spread, value=-rate / (1 - beta1**slot.step))
    return rate
