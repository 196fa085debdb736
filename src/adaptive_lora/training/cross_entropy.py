"""Negative log-likelihood of tokens over a vocabulary: in few passes, and right to the precision of the logits."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from adaptive_lora.training.kernels import CostArgs, pointwise_kernel

_BLOCK = 512
"""Exponentials that are added up in single precision."""


def token_costs(logits: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """nll (C,), whether the target is the likeliest, and with weights the gradient of Σ weight · nll, all by hand.

    By `pointwise.c` on the CPU in float32 where there is a compiler: a row stays in the cache for all of its passes.

    d nll / d logits = softmax(logits) - onehot(target). It is written where the exponentials are: torch's own takes
    twice as many passes over the logits, of which there are more than of anything else. And on a CPU it loses what the
    many unlikely tokens add up to beside a likely one (torch 2.13: a loss of 0.04 over 49,152 tokens is a thousandth
    too small); here blocks are added up in double precision.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and (library := pointwise_kernel()) is not None:
        return _compiled_costs(library, logits.contiguous(), targets.contiguous(), weights)
    exact = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    top, likeliest = exact.max(-1)
    scores = exact - top[:, None]
    target = scores.gather(-1, targets[:, None]).squeeze(-1)
    total = _row_sums(scores.exp_())
    nll, right = (total.log() - target).to(scores.dtype), likeliest == targets
    total = total.to(scores.dtype)
    if weights is None:
        return nll, right, None
    share = weights.to(scores.dtype)
    slope = scores.mul_((share / total)[:, None]).scatter_add_(-1, targets[:, None], -share[:, None])
    return nll, right, slope.to(logits.dtype)


def _compiled_costs(
    library: ctypes.CDLL, logits: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows, width = logits.shape
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < width:
        raise IndexError(f"a target of {int(targets.min())} to {int(targets.max())} is outside of {width} logits")
    nll, likeliest = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.int64)
    slope = None if weights is None else torch.empty_like(logits)
    share = None if weights is None else weights.to(logits.dtype).contiguous()
    arguments = CostArgs(
        rows, width, logits.data_ptr(), targets.data_ptr(), None if share is None else share.data_ptr(),
        nll.data_ptr(), likeliest.data_ptr(), None if slope is None else slope.data_ptr(),
    )  # fmt: skip
    library.pointwise_costs(arguments)
    return nll.to(logits.dtype), likeliest == targets, slope


def _row_sums(x: Tensor) -> Tensor:
    """(C, V) to (C,) in double precision, as fast as in single."""
    whole = x.shape[-1] // _BLOCK * _BLOCK
    blocks = x[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    return blocks.double().sum(-1) + x[:, whole:].double().sum(-1)


def distribution_costs(logits: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Likewise against distributions over tokens, (C, V)."""
    exact = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    with torch.set_grad_enabled(weights is not None):
        exact = exact.requires_grad_(weights is not None)
        nll = functional.cross_entropy(exact, targets, reduction="none")
    right = logits.argmax(-1) == targets.argmax(-1)
    if weights is None:
        return nll, right, None
    slope = torch.autograd.grad(nll @ weights.to(nll.dtype), exact)[0]
    return nll.detach(), right, slope.to(logits.dtype)
