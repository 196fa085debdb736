"""A frozen linear layer with the adapters of a bank: each adapter's positions meet its own A and B alone.

    y = x W^T + bias;   y_k += scaling_k (x_k A_k^T) B_k^T     for adapter k on its own positions x_k

The gradient of A and B is added to the adapter's vector where it arises; autograd sees the input alone.
x (N, d_in), y (N, d_out), A (r, d_in), B transposed (r, d_out), u = x A^T (n, r).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.errors import TrainingError
from adaptive_lora.training.attention import current
from adaptive_lora.training.lean import lean_linear, product
from adaptive_lora.training.mixes import Work, mix_of


class AdaptedLinear(nn.Module):
    """Takes the place of a target module while a bank is attached."""

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name
        self.lean = lean_linear(base)
        # Something that wants a gradient, so that autograd comes by even where the input does not.
        self.anchor = torch.zeros((), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        work: Work | None = current()
        if work is None:
            return self.base(x)
        if x.numel() != work.pack.size * x.shape[-1]:
            raise TrainingError(
                f"{self.name} sees {x.numel() // x.shape[-1]} of {work.pack.size} positions (a mixture of experts?), "
                "so adapters cannot be told apart in it. Use `engine: reference`, or leave the module out of `targets`."
            )
        anchor = self.anchor if work.training else self.anchor.detach()
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        computed = self.base(x).reshape(flat.shape[0], -1) if self.lean is None else None
        y = _Adapted.apply(flat, anchor, computed, self, work)
        # Views are made out here, where autograd sees them: models may add to what they get in place.
        return y.view(*x.shape[:-1], y.shape[-1])


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, computed: Tensor | None, layer: AdaptedLinear, work: Work
    ) -> Tensor:
        if layer.lean is not None:
            y = product(x, layer.lean.matrix, layer.lean.offset)
        else:
            assert computed is not None  # `AdaptedLinear.forward` gives one of the two
            y = computed.clone()
        mix = mix_of(layer.name, work, x, y)
        kept = mix.add(x, y)
        if work.training:
            ctx.save_for_backward(x, *kept)
            ctx.layer, ctx.mix = layer, mix
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        (given,) = gradients
        lean, through = ctx.layer.lean, None
        if ctx.needs_input_grad[0]:
            through = product(given, lean.matrix.t()) if lean is not None else torch.zeros_like(x)
        ctx.mix.back(x, kept, given, through)
        return through, None, given if lean is None else None, None, None
