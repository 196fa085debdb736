"""Frozen products in bfloat16 for a model in float32: several times faster on processors that multiply bfloat16.

    y = float32(round(x) round(W)^T) + bias,   grad_x = float32(round(grad_y) round(W))

round() is to bfloat16, and so is the product before it is float32 again; sums within it are in float32. Everything else
stays in float32: norms, attention, the output layer, losses, the adapters, their products and their optimizer. Both
engines and all measures compute a model's frozen linear layers so once `use_rounded_products` was called.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDED = "_rounded_weight"


def use_rounded_products(decoder: nn.Module) -> None:
    """Gives every plain linear layer of a frozen float32 model's decoder, which has no output layer, the product above.

    The rounded weights are kept beside the model's own, half as large.
    """
    with torch.no_grad():
        layer: Any
        for layer in decoder.modules():
            if type(layer) is nn.Linear or (type(layer).__name__ == "Conv1D" and layer.weight.ndim == 2):
                own = layer.weight if type(layer) is nn.Linear else layer.weight.t()
                layer.__dict__[_ROUNDED] = own.detach().to(torch.bfloat16)
                layer.forward = functools.partial(_forward, layer)


def rounded_weight(module: nn.Module) -> Tensor | None:
    """The weight (d_out, d_in) in bfloat16 of a layer that multiplies so; None for any other."""
    return module.__dict__.get(_ROUNDED)


def rounds(module: nn.Module) -> bool:
    """Whether any layer in it multiplies so."""
    return any(rounded_weight(layer) is not None for layer in module.modules())


def rounded_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, d_in) in float32 by a bfloat16 weight (d_out, d_in), any strides; (N, d_out) in float32.

    >>> rounded_product(torch.tensor([[1.0]]), torch.tensor([[1 + 2**-6]], dtype=torch.bfloat16))
    tensor([[1.0156]])
    """
    y = torch.nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)
    return y if bias is None else y.add_(bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return rounded_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return rounded_product(gradients[0], ctx.weight.t()), None, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.detach()
    flat: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), layer.__dict__[_ROUNDED], bias)
    return flat.view(*x.shape[:-1], flat.shape[-1])
