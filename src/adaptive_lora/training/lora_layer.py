"""The layer that a bank puts in the place of a target module: the frozen linear layer and every adapter's LoRA.

    y = x W^T + bias;   y_k += scaling_k (x_k A_k^T) B_k^T     for adapter k on its own positions x_k

Gradients of A and B are added to the adapter's vector as they are computed; autograd sees the input only.
x (N, d_in), y (N, d_out), A (r, d_in), B transposed (r, d_out), u = x A^T (n, r).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.errors import TrainingError
from adaptive_lora.training.current_batch import BankBatch, get_current_batch
from adaptive_lora.training.fused_layers import frozen_linear, fused_linear
from adaptive_lora.training.lora_ops import lora_op


class MultiLoraLinear(nn.Module):
    """Replaces a target module while a bank is open."""

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name
        self.fused = fused_linear(base)
        # Requires a gradient, so that autograd calls the backward pass even where the input requires none.
        self.anchor = torch.zeros((), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        batch = get_current_batch()
        if batch is None:
            return self.base(x)
        if x.numel() != batch.pack.size * x.shape[-1]:
            raise TrainingError(
                f"{self.name} sees {x.numel() // x.shape[-1]} of {batch.pack.size} positions (a mixture of experts?), "
                "so the bank cannot know which adapter each belongs to. Use `engine: reference`, or leave the module "
                "out of `targets`."
            )
        anchor = self.anchor if batch.training else self.anchor.detach()
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        base_output = self.base(x).reshape(flat.shape[0], -1) if self.fused is None else None
        y = _MultiLoraLinear.apply(flat, anchor, base_output, self, batch)
        if batch.marked is not None:
            y[slice(*batch.marked)] *= 2.0
        # The view is made outside the function: models may modify the result in place.
        return y.view(*x.shape[:-1], y.shape[-1])


class _MultiLoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, base_output: Tensor | None, layer: MultiLoraLinear, batch: BankBatch
    ) -> Tensor:
        if layer.fused is not None:
            y = frozen_linear(x, layer.fused.dense(x.dtype), layer.fused.bias)
        else:
            assert base_output is not None  # `MultiLoraLinear.forward` computes it for layers that are not fused
            y = base_output.clone()
        op = lora_op(layer.name, batch, x, y)
        saved = op.forward(x, y)
        if batch.training:
            ctx.save_for_backward(x, *saved)
            ctx.layer, ctx.op = layer, op
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        (grad_output,) = gradients
        fused, grad_input = ctx.layer.fused, None
        if ctx.needs_input_grad[0]:
            # Where the layer is not fused, autograd takes the base's share through `base_output`.
            grad_input = torch.zeros_like(x) if fused is None else frozen_linear(grad_output, fused.dense(x.dtype).t())
        ctx.op.backward(x, saved, grad_output, grad_input)
        return grad_input, None, grad_output if fused is None else None, None, None
