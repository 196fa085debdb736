"""Causal attention over sequences packed end to end: no sequence attends to another, little or no padding.

Models of transformers look their attention up by name (`AttentionInterface`); `NAME` is ours. Where sequences
begin and end is in the pack of the current batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from adaptive_lora.training.current_batch import get_current_batch
from adaptive_lora.training.kernels import AttentionArgs, attention_kernel
from adaptive_lora.training.mask_pattern import is_pattern, packed_mask
from adaptive_lora.training.packing import Pack

NAME = "adaptive_lora_packed"
"""The attention implementation's name for transformers."""

_MAX_RATIO = 1.2
"""Largest ratio of the longest to the shortest sequence in one call of torch's attention."""


class NotCausalOnly(NotImplementedError):
    """The model asks attention for more than who sees whom (capped scores, sinks, biases)."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """`AttentionInterface` for packs; query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D).

    softmax(scaling q k^T) v over the tokens up to its own of each sequence, or those that the pattern given as
    `attention_mask` shows it (`packed_mask`).
    """
    batch = get_current_batch()
    assert batch is not None, "packed attention runs inside `current_batch`"
    pack = batch.pack
    if (
        dropout
        or (attention_mask is not None and not is_pattern(attention_mask))
        or any(rest.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
        or not getattr(module, "is_causal", True)
    ):
        raise NotCausalOnly(type(module).__name__)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = rest.get("sliding_window")
    if attention_mask is None and window is not None and window < max(pack.lengths):
        attention_mask = _window(max(pack.lengths), window, query.device)
    fits = query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[-1] == value.shape[-1]
    if fits and attention_mask is None and attention_kernel() is not None:
        batch.kernels.add("compiled attention")
        return _CompiledAttention.apply(query, key, value, scaling, pack.starts), None
    batch.kernels.add("torch attention")
    return _grouped(query, key, value, scaling, pack, attention_mask), None


def _window(length: int, window: int, device: torch.device) -> Tensor:
    """The pattern of a query that sees its own and the window - 1 tokens before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


class _CompiledAttention(torch.autograd.Function):
    """`attention.c`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, starts: Tensor) -> Tensor:
        q, k, v = (_by_token(x) for x in (query, key, value))
        out, scales = torch.empty(q.shape), torch.empty(q.shape[1], q.shape[0], 2)
        _call("attention_forward", (q, k, v, starts, scaling, out, scales))
        ctx.save_for_backward(q, k, v, starts, out, scales)
        ctx.scaling = scaling
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, out, scales = ctx.saved_tensors
        grad_out = gradients[0][0].contiguous()
        grads = tuple(torch.empty(x.shape) for x in (q, k, v))
        _call("attention_backward", (q, k, v, starts, ctx.scaling, out, scales), (grad_out, *grads))
        return (*(x.transpose(0, 1)[None] for x in grads), None, None)


def _call(function: str, tensors: tuple[Any, ...], gradients: tuple[Tensor, ...] = ()) -> None:
    q, k, v, starts, scaling, out, scales = tensors
    arguments = AttentionArgs(
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
        q_stride=q.stride(0), k_stride=k.stride(0), v_stride=v.stride(0),
        tokens=q.shape[0], heads=q.shape[1], groups=k.shape[1], width=q.shape[2], sequences=len(starts) - 1,
        starts=starts.data_ptr(), scaling=scaling, out=out.data_ptr(), scales=scales.data_ptr(),
    )  # fmt: skip
    names = ("grad_out", "grad_q", "grad_k", "grad_v")
    for name, gradient in zip(names, gradients, strict=False):
        setattr(arguments, name, gradient.data_ptr())
    if getattr(attention_kernel(), function)(arguments):
        raise MemoryError("out of memory: attention's workspace")


def _by_token(x: Tensor) -> Tensor:
    """(1, H, N, D) to (N, H, D) with the heads of a token contiguous; a copy only if they are not."""
    x = x[0].transpose(0, 1)
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, pack: Pack, pattern: Tensor | None = None
) -> Tensor:
    """Torch's attention on groups of sequences of similar length, each padded to the group's longest.

    Padding repeats a sequence's last token after its end, where the causal mask hides it. A pattern, (T, T), says
    which tokens a query sees instead; it is that of the longest text, what is longer fills segments up.
    """
    (shapes, index, inverse), shared = _groups(pack, query.device), query.shape[1] // key.shape[1]
    sizes = [sequences * length for sequences, length in shapes]
    gathered = [_Gather.apply(x, index, inverse).split(sizes) for x in (query, key, value)]
    outputs = []
    for shape, *rows in zip(shapes, *gathered, strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in rows)  # (B, H or G, T, D)
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mask = None if pattern is None else _pattern_of(pattern, shape[1])
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return _Scatter.apply(torch.cat(outputs), inverse)


class _Gather(torch.autograd.Function):
    """(1, H, N, D) to the rows of all groups, (M, H, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x[0].transpose(0, 1)[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Gathered as well, where autograd would sort and add: what pads a sequence has gradient 0.
        return gradients[0][ctx.inverse].transpose(0, 1)[None], None, None


class _Scatter(torch.autograd.Function):
    """The rows of all groups, (M, H, D), to (1, N, H, D)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse, ctx.count = inverse, len(rows)
        return rows[inverse][None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = gradients[0][0]
        return own.new_zeros(ctx.count, *own.shape[1:]).index_copy_(0, ctx.inverse, own), None


def _pattern_of(pattern: Tensor, length: int) -> Tensor:
    """The beginning of a pattern, or all of it and what is causal beyond it; (T, T)."""
    known = min(length, len(pattern))
    whole = torch.ones(length, length, dtype=torch.bool, device=pattern.device).tril()
    whole[:known, :known] = pattern[:known, :known]
    return whole


def _groups(pack: Pack, device: torch.device) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """The groups' shapes, (B, T); the position of each of their rows, all groups end to end, (M,); and for every
    position, (N,), its index among them."""
    cached: tuple[list[tuple[int, int]], Tensor, Tensor] | None = pack.__dict__.get("_groups")
    if cached is not None:
        return cached
    starts, lengths = pack.starts.numpy(), np.array(pack.lengths)
    groups: list[list[int]] = []
    for i in np.argsort(-lengths, kind="stable").tolist():
        if not groups or lengths[groups[-1][0]] > _MAX_RATIO * lengths[i] + 8:
            groups.append([])
        groups[-1].append(i)
    shapes = [(len(group), int(lengths[group[0]])) for group in groups]
    places, indices, at = np.empty(pack.size, np.int64), [], 0
    for group, (_, longest) in zip(groups, shapes, strict=True):
        steps, own = np.arange(longest), lengths[group][:, None]
        indices.append((starts[group][:, None] + np.minimum(steps, own - 1)).reshape(-1))
        real = np.flatnonzero(steps < own)
        places[indices[-1][real]] = at + real
        at += len(indices[-1])
    index, inverse = (torch.from_numpy(x).to(device) for x in (np.concatenate(indices), places))
    pack.__dict__["_groups"] = shapes, index, inverse  # shared by all layers
    return shapes, index, inverse


def register() -> None:
    """Registers `NAME` with transformers, its masks too."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)
