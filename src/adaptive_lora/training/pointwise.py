"""What a frozen decoder block computes between its products, in one pass over memory each: norms, gates, rotations.

By `pointwise.c` on the CPU in float32 where there is a compiler, otherwise by torch's operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptive_lora.training.current_batch import get_current_batch
from adaptive_lora.training.kernels import PointwiseArgs, pointwise_kernel

ROTATION = "apply_rotary_pos_emb"
"""The function of a transformers module that rotates queries and keys."""


def _compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """The library, if it takes these tensors."""
    suits = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return pointwise_kernel() if suits else None


def _call(library: ctypes.CDLL, function: str, sizes: tuple[int, ...], epsilon: float = 0.0, **tensors: Tensor) -> None:
    arguments = PointwiseArgs(*sizes, epsilon=epsilon, **{name: x.data_ptr() for name, x in tensors.items()})
    getattr(library, f"pointwise_{function}")(arguments)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.weight, ctx.library = weight, _compiled(x, weight)
        if ctx.library is None:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # (..., 1)
            ctx.save_for_backward(x, inverse)
            return (x * inverse).mul_(weight)
        x = x.contiguous()
        inverse, out = x.new_empty(x.shape[:-1]), torch.empty_like(x)
        sizes = (inverse.numel(), x.shape[-1])
        _call(ctx.library, "norm_forward", sizes, epsilon, x=x, weight=weight, other=inverse, out=out)
        ctx.save_for_backward(x, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse = ctx.saved_tensors
        if ctx.library is None:
            weighted = gradients[0] * ctx.weight
            along = (weighted * x).sum(-1, keepdim=True).mul_(inverse**3).div_(-x.shape[-1])
            return weighted.mul_(inverse).addcmul_(x, along), None, None
        grad, out = gradients[0].contiguous(), torch.empty_like(x)
        sizes = (inverse.numel(), x.shape[-1])
        _call(ctx.library, "norm_backward", sizes, x=x, weight=ctx.weight, grad=grad, other=inverse, out=out)
        return out, None, None


class FusedRMSNorm(nn.Module):
    """A frozen RMS norm: w x / sqrt(mean(x^2) + epsilon)."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight.detach(), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.epsilon)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        library = pointwise_kernel()
        assert library is not None  # `gated` asks first
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        _call(library, "gate_forward", (1, gate.numel()), x=gate, weight=up, out=out)
        ctx.save_for_backward(gate, up)
        ctx.library = library
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad, of_gate, of_up = gradients[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        sizes = (1, gate.numel())
        _call(ctx.library, "gate_backward", sizes, x=gate, weight=up, grad=grad, other=of_up, out=of_gate)
        return of_gate, of_up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up, number by number; both of one shape."""
    return functional.silu(gate) * up if _compiled(gate, up) is None else _Gate.apply(gate, up)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) up(x)): the feed-forward part of Llama's block and its many relatives."""

    _PARTS = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name in self._PARTS:
            self.add_module(name, module.get_submodule(name))

    @classmethod
    def of(cls, module: nn.Module) -> GatedMLP | None:
        """The replacement of a module with these three layers and SiLU, and nothing else; None for any other."""
        children = dict(module.named_children())
        activation = children.pop("act_fn", None)
        if sorted(children) != sorted(cls._PARTS) or type(activation).__name__ not in ("SiLU", "SiLUActivation"):
            return None
        return None if list(module.parameters(recurse=False)) else cls(module)

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self._PARTS)
        hidden: Tensor = down(gated(gate(x), up(x)))
        return hidden


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        library = pointwise_kernel()
        assert library is not None  # `FusedGELU` asks first
        x = x.contiguous()
        out = torch.empty_like(x)
        _call(library, "gelu_forward", (1, x.numel()), x=x, out=out)
        ctx.save_for_backward(x)
        ctx.library = library
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), grad = ctx.saved_tensors, gradients[0].contiguous()
        out = torch.empty_like(x)
        _call(ctx.library, "gelu_backward", (1, x.numel()), x=x, grad=grad, out=out)
        return out


class FusedGELU(nn.Module):
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, the GELU of GPT-2."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh") if _compiled(x) is None else _GELU.apply(x)


class _Rotation(torch.autograd.Function):
    """x (N, H, D) by token, cosines and sines (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated("rotate_forward", x, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _rotated("rotate_backward", gradients[0], *ctx.saved_tensors), None, None


def _rotated(function: str, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    library = pointwise_kernel()
    assert library is not None  # `_fits` asked
    if x.stride(2) != 1 or x.stride(1) != x.shape[2]:
        x = x.contiguous()
    out = x.new_empty(x.shape)
    sizes = (x.shape[0], x.shape[2], x.shape[1], x.stride(0))
    _call(library, function, sizes, x=x, weight=cosines, other=sines, out=out)
    return out


def _fits(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor) -> bool:
    """One row of tokens, each head rotated as a whole."""
    expected = (1, q.shape[2], q.shape[3]) if q.ndim == 4 else ()
    return (
        q.ndim == k.ndim == 4
        and cosines.shape == sines.shape == expected
        and (k.shape[0], *k.shape[2:]) == expected
        and _compiled(q, k, cosines, sines) is not None
        and not q.shape[3] % 2
    )


def _in_one_pass(rotate: Callable[..., Any]) -> Callable[..., Any]:
    """A transformers function that rotates queries and keys, (1, H, N, D), by `pointwise.c` inside a bank's passes."""

    def fused(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Any:
        if rest or named or get_current_batch() is None or not _fits(q, k, cos, sin):
            return rotate(q, k, cos, sin, *rest, **named)
        factors = cos[0].contiguous(), sin[0].contiguous()
        return tuple(_Rotation.apply(x[0].transpose(0, 1), *factors).transpose(0, 1)[None] for x in (q, k))

    fused.__wrapped__ = rotate  # type: ignore[attr-defined]
    return fused


@contextlib.contextmanager
def fused_rotations(model: nn.Module) -> Iterator[None]:
    """Queries and keys of the model's architecture rotated in one pass, where transformers' function for it does what
    ours does (others rotate pairs of neighbours, or a part of each head); its own outside a bank's passes, and at the
    end."""
    with contextlib.ExitStack() as stack:
        for name in sorted({type(module).__module__ for module in model.modules()}):
            home, rotate = sys.modules.get(name), getattr(sys.modules.get(name), ROTATION, None)
            if rotate is not None and not hasattr(rotate, "__wrapped__") and _rotates_halves(rotate):
                setattr(home, ROTATION, _in_one_pass(rotate))
                stack.callback(setattr, home, ROTATION, rotate)
        yield


@torch.no_grad()
def _rotates_halves(rotate: Callable[..., Any]) -> bool:
    """Whether the function is (x1 c1 - x2 s1, x2 c2 + x1 s2) of the halves of each head, on random numbers."""
    generator = torch.Generator().manual_seed(0)
    q, k, cosines, sines = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 3, 6), (1, 2, 3, 6), (1, 3, 6), (1, 3, 6))
    )
    try:
        found = rotate(q, k, cosines, sines)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    if not _fits(q, k, cosines, sines) or len(found) != 2:
        return False
    for x, y in zip((q, k), found, strict=True):
        half = torch.cat([-x[..., 3:], x[..., :3]], -1)
        if y.shape != x.shape or not torch.allclose(y, x * cosines[:, None] + half * sines[:, None], atol=1e-5):
            return False
    return True
