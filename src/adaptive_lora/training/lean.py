"""Cheaper equals of a frozen model's layers, put in its place for a while: fewer passes over memory, same values.

Only layers whose weights are frozen can be had so cheaply; their gradient goes to the input alone. What
is exchanged is recognised by class and then tried on random numbers: a layer that computes anything else
keeps its place.
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

from adaptive_lora.training.kernel import LoraPart, LoraUpdate, lora_kernel

# oneDNN, and torch beside it, keep what they prepared for each shape of a product, with its working space: by
# default a thousand of each. A bank's passes hardly ever have the same number of rows twice, so that memory would
# grow with every update, by 5 MB each for a model of a million parameters.
for _variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_variable, "32")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias; x (N, d_in), weight (d_out, d_in), any strides.

    On the CPU in float32 through oneDNN, which torch itself takes for other types only: on processors
    that MKL does not know it is about twice as fast, on others as fast. In float64 by `lora.c`: in MKL's
    products a row's last bit depends on where the row stands.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and _one_dnn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if x.device.type == "cpu" and x.dtype == torch.float64 and (kernel := lora_kernel(x.dtype)) is not None:
        return _placeless(kernel, x, weight, bias)
    return functional.linear(x, weight, bias)


def _placeless(kernel: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    whole = LoraPart(0, x.shape[0], weight.shape[0], weight.data_ptr())
    update = LoraUpdate(x.shape[1], y.shape[1], 1, ctypes.addressof(whole), x.data_ptr(), y.data_ptr())
    if kernel.lora_product(update):
        raise MemoryError("no memory for a product's working space")
    return y if bias is None else y.add_(bias)


def _one_dnn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return product(gradients[0], ctx.weight.t()), None, None


class LeanLinear(nn.Module):
    """A frozen `nn.Linear` or `Conv1D`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix, self.offset = weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        # Views are made out here, where autograd sees them: models may add to what they get in place.
        flat = _Product.apply(x.reshape(-1, x.shape[-1]), self.matrix, self.offset)
        return flat.view(*x.shape[:-1], self.matrix.shape[0])


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, inverse)
        ctx.weight = weight
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse = ctx.saved_tensors
        weighted = gradients[0] * ctx.weight
        along = (weighted * x).sum(-1, keepdim=True).mul_(inverse**3).div_(-x.shape[-1])
        return weighted.mul_(inverse).addcmul_(x, along), None, None


class LeanNorm(nn.Module):
    """A frozen root-mean-square norm: w x / sqrt(mean(x^2) + epsilon)."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.matrix, self.epsilon = weight.detach(), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return _Norm.apply(x, self.matrix, self.epsilon)


def lean_linear(module: nn.Module) -> LeanLinear | None:
    """The lean form of a plain linear layer; nothing for any other kind, quantised ones among them."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return None
    if type(module) is nn.Linear:
        return LeanLinear(weight, module.bias)
    if type(module).__name__ == "Conv1D" and weight.ndim == 2:
        return LeanLinear(weight.t(), module.bias)  # type: ignore[arg-type]
    return None


def _lean(module: nn.Module) -> nn.Module | None:
    """What may take a layer's place; nothing for most."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    if name.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.dtype in (torch.float32, torch.float64):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        return LeanNorm(weight, float(epsilon)) if epsilon is not None else None
    if name == "NewGELUActivation":
        return nn.GELU(approximate="tanh")
    return lean_linear(module)


def _width(module: nn.Module) -> int:
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        return 16
    return int(weight.shape[-1] if type(module).__name__ != "Conv1D" else weight.shape[0])


@torch.no_grad()
def _agree(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers give the same on a few random rows, up to rounding."""
    weight = next(iter(one.parameters()), torch.zeros(()))
    rows = torch.randn(3, _width(one), generator=torch.Generator().manual_seed(0))
    rows = rows.to(weight.device, weight.dtype)
    a, b = one(rows[None]), other(rows[None])
    room = {torch.float64: 1e-12, torch.float32: 1e-5}.get(a.dtype, 3e-2)
    return bool(a.shape == b.shape and ((a - b).abs().max() <= room * a.abs().max()))


@contextlib.contextmanager
def lean_layers(model: nn.Module) -> Iterator[None]:
    """The model with lean layers in place of their equals; as it was again at the end."""
    exchanged: dict[str, nn.Module] = {}
    try:
        for name, module in list(model.named_modules(remove_duplicate=False)):
            lean = _lean(module)
            if lean is not None and name and _agree(module, lean):
                exchanged[name] = module
                model.set_submodule(name, lean)
        yield
    finally:
        for name, module in exchanged.items():
            model.set_submodule(name, module)
