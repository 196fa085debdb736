"""AdamW on one adapter's vector, the arithmetic of `torch.optim.AdamW`, with a factor on the rate of each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.slots import Slot

_AT_ONCE = 1 << 26
"""Most parameters that are updated in one launch: a vector of as many is made on the way."""


def checked_updates(
    slots: Sequence[Slot], losses: Sequence[tuple[float, int]], norms: Sequence[float], together: bool | None = None
) -> list[StepRecord | Diverged]:
    """`checked_update` of several slots; `together` in the launches of one, by default on accelerators."""
    if together is None:
        together = slots[0].parameters.device.type != "cpu"
    if not together:
        return [checked_update(s, *loss, norm) for s, loss, norm in zip(slots, losses, norms, strict=True)]
    results: list[StepRecord | Diverged] = []
    sound: list[tuple[Slot, float]] = []
    for slot, (loss, tokens), norm in zip(slots, losses, norms, strict=True):
        if not math.isfinite(loss) or not math.isfinite(norm) or slot.factors is not None:
            results.append(checked_update(slot, loss, tokens, norm))
        else:
            results.append(StepRecord(slot.step, loss, norm, slot.member.options.rate_at(slot.step), tokens))
            sound.append((slot, norm))
    for group in _alike(sound):
        _adamw_updates(*zip(*group, strict=True))
    return results


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


def _alike(slots: Sequence[tuple[Slot, float]]) -> Iterator[list[tuple[Slot, float]]]:
    """Slots with the same betas, at most _AT_ONCE parameters of them at a time."""
    for betas in dict.fromkeys(slot.member.options.betas for slot, _ in slots):
        group: list[tuple[Slot, float]] = []
        for slot, norm in slots:
            if slot.member.options.betas != betas:
                continue
            if group and (len(group) + 1) * slot.parameters.numel() > _AT_ONCE:
                yield group
                group = []
            group.append((slot, norm))
        yield group


@torch.no_grad()
def _adamw_updates(slots: Sequence[Slot], norms: Sequence[float]) -> None:
    """`adamw_update` of slots with the same betas and no factors: its operations, each on all their vectors."""
    options = [slot.member.options for slot in slots]
    rates = [own.rate_at(slot.step) for own, slot in zip(options, slots, strict=True)]
    for slot in slots:
        slot.step += 1
    beta1, beta2 = options[0].betas
    parameters, gradients, first, second = (
        [getattr(slot, name) for slot in slots] for name in ("parameters", "gradient", "exp_avg", "exp_avg_sq")
    )
    limits = [math.inf if own.max_grad_norm is None else own.max_grad_norm for own in options]
    torch._foreach_mul_(gradients, [min(1.0, c / (norm + 1e-6)) for c, norm in zip(limits, norms, strict=True)])
    torch._foreach_mul_(parameters, [1 - rate * own.weight_decay for rate, own in zip(rates, options, strict=True)])
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    spread = torch._foreach_sqrt(second)
    torch._foreach_div_(spread, [math.sqrt(1 - beta2**slot.step) for slot in slots])
    torch._foreach_add_(spread, [own.epsilon for own in options])
    scales = [-rate / (1 - beta1**slot.step) for rate, slot in zip(rates, slots, strict=True)]
    torch._foreach_addcdiv_(parameters, first, spread, scales)
