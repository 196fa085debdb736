"""Frozen products in bfloat16 for a model in float32: several times faster on processors that multiply bfloat16.

    y = float32(round(x) round(W)^T) + bias,   grad_x = float32(round(grad_y) round(W))

round() is to bfloat16, and so is the product before it is float32 again; sums within it are in float32. Everything else
stays in float32: norms, attention, the output layer, losses, the adapters, their products and their optimizer. Both
engines and all measures compute a model's frozen linear layers so once
`fused_layers.use_rounded_products` was called.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROUNDED = "_rounded_weight"


def round_weight(module: nn.Module, weight: Tensor) -> Tensor:
    """Keeps a weight (d_out, d_in) rounded beside a layer's own, half as large; returns it."""
    module.__dict__[_ROUNDED] = rounded = weight.detach().to(torch.bfloat16)
    return rounded


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
