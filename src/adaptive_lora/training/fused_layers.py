"""Fused replacements for frozen layers: fewer passes over memory, same values.

Frozen weights need no gradient, so the backward pass computes the input's only. Layers are recognised by class and
then compared with their replacement on random numbers: a layer that computes anything else is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptive_lora.training.gathering import whole_modules
from adaptive_lora.training.kernels import LoraArgs, LoraSegment, lora_kernel
from adaptive_lora.training.pointwise import FusedGELU, FusedRMSNorm, GatedMLP
from adaptive_lora.training.quantised import dense_weight, is_quantised
from adaptive_lora.training.rounded import round_weight, rounded_product, rounded_weight, rounds
from adaptive_lora.training.split_product import split_product, splits

# oneDNN and torch cache a prepared primitive, workspace included, for each shape of a product: by default a thousand
# of each. A bank's passes hardly ever have the same number of rows twice, so that memory would grow with every
# update, by 5 MB each for a model of a million parameters.
for _variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_variable, "32")


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias; x (N, d_in), weight (d_out, d_in), any strides.

    On the CPU in float32 by `split_product.py` where the processor has tiles, else through oneDNN, which torch itself
    uses for other types only: on processors that MKL is not tuned for it is about twice as fast, on others as fast. In
    float64 by `lora.c`: in MKL's products a row's last bit depends on its index. A bfloat16 weight of a float32 input
    is `rounded.py`'s.
    """
    if weight.dtype == torch.bfloat16 != x.dtype:
        return rounded_product(x, weight, bias)
    if splits(x, weight):
        y = split_product(x, weight)
        return y if bias is None else y.add_(bias)
    if x.device.type == "cpu" and x.dtype == torch.float32 and _one_dnn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if x.device.type == "cpu" and x.dtype == torch.float64 and (kernel := lora_kernel(x.dtype)) is not None:
        return _compiled_product(kernel, x, weight, bias)
    return functional.linear(x, weight, bias)


def _compiled_product(kernel: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    rows = LoraSegment(0, x.shape[0], weight.shape[0], weight.data_ptr())
    arguments = LoraArgs(x.shape[1], y.shape[1], 1, ctypes.addressof(rows), x.data_ptr(), y.data_ptr())
    if kernel.lora_product(arguments):
        raise MemoryError("out of memory: workspace of a product")
    return y if bias is None else y.add_(bias)


def _one_dnn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return frozen_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return frozen_linear(gradients[0], ctx.weight.t()), None, None


class FusedLinear(nn.Module):
    """A frozen `nn.Linear` or `Conv1D`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        # The view is made outside the function: models may modify the result in place.
        flat = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return flat.view(*x.shape[:-1], self.weight.shape[0])

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (d_out, d_in) for a product with an input of this dtype: its own, or the rounded one."""
        return self.weight


class DequantisedLinear:
    """A frozen layer in 4 or 8 bits: its weight exists only while a product takes it."""

    def __init__(self, module: nn.Linear) -> None:
        self.module, self.bias = module, None if module.bias is None else module.bias.detach()

    def dense(self, dtype: torch.dtype) -> Tensor:
        """As `FusedLinear.dense`."""
        return dense_weight(self.module, dtype)


def fused_linear(module: nn.Module) -> FusedLinear | DequantisedLinear | None:
    """The fused form of a linear layer, plain or quantised; None for any other kind."""
    if isinstance(module, nn.Linear) and is_quantised(module):
        return DequantisedLinear(module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return None
    if type(module) is not nn.Linear and not (type(module).__name__ == "Conv1D" and weight.ndim == 2):
        return None
    own = weight if type(module) is nn.Linear else weight.t()
    rounded = rounded_weight(module)
    return FusedLinear(own if rounded is None else rounded, module.bias)  # type: ignore[arg-type]


def use_rounded_products(decoder: nn.Module) -> None:
    """Gives every plain linear layer of a frozen float32 model's decoder, which has no output layer, products as in
    `rounded.py`."""
    for layer in decoder.modules():
        fused = None if is_quantised(layer) else fused_linear(layer)
        if isinstance(fused, FusedLinear):
            fused.weight = round_weight(layer, fused.weight)
            layer.forward = fused.forward


def _replacement(module: nn.Module) -> nn.Module | None:
    """A candidate to replace a layer; None for most."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    if name.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.dtype in (torch.float32, torch.float64):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        return FusedRMSNorm(weight, float(epsilon)) if epsilon is not None else None
    if name.endswith("MLP") and (gated := GatedMLP.of(module)) is not None:
        return gated
    if name in ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "FastGELUActivation"):
        return FusedGELU()
    fused = fused_linear(module)
    return fused if isinstance(fused, FusedLinear) else None  # a quantised layer's own product saves no more


def _width(module: nn.Module) -> int:
    first = getattr(module, "gate_proj", module)
    first = getattr(first, "base", first)
    weight: Any = getattr(first, "weight", None)
    if weight is None:
        return 16
    if type(first).__name__ == "Conv1D":
        return int(weight.shape[0])
    return int(getattr(first, "in_features", weight.shape[-1]))


@torch.no_grad()
def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers agree on a few random rows, up to rounding."""
    device = next((p.device for p in one.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in one.parameters() if p.is_floating_point()), torch.float32)
    rows = torch.randn(3, _width(one), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    a, b = one(rows[None]), other(rows[None])
    tolerance = 3e-2 if rounds(one) else {torch.float64: 1e-12, torch.float32: 1e-5}.get(a.dtype, 3e-2)
    return bool(a.shape == b.shape and ((a - b).abs().max() <= tolerance * a.abs().max()))


@contextlib.contextmanager
def fused_layers(model: nn.Module) -> Iterator[None]:
    """The model with fused layers where there are some; restored at the end."""
    replaced: dict[str, nn.Module] = {}
    try:
        for name, module in whole_modules(model):
            fused = _replacement(module)
            if fused is not None and name and _same(module, fused):
                replaced[name] = module
                model.set_submodule(name, fused)
        yield
    finally:
        for name, module in replaced.items():
            model.set_submodule(name, module)
