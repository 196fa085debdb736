"""Causal attention over sequences packed end to end: no sequence attends to another, little or no padding.

Models of transformers look their attention up by name (`AttentionInterface`); `NAME` is ours. Where sequences
begin and end is in the pack of the current batch.
"""

from __future__ import annotations

from typing import Any

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
    _, heads, positions, _ = query.shape
    (groups, inverse), shared = _groups(pack, query.device), heads // key.shape[1]
    outputs = []
    for index in groups:
        q, k, v = (x[0].transpose(0, 1)[index].transpose(1, 2) for x in (query, key, value))  # (B, H or G, T, D)
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mask = None if pattern is None else _pattern_of(pattern, index.shape[1])
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(-1, heads, value.shape[-1]))
    return torch.cat(outputs)[inverse].view(1, positions, heads, value.shape[-1])


def _pattern_of(pattern: Tensor, length: int) -> Tensor:
    """The beginning of a pattern, or all of it and what is causal beyond it; (T, T)."""
    known = min(length, len(pattern))
    whole = torch.ones(length, length, dtype=torch.bool, device=pattern.device).tril()
    whole[:known, :known] = pattern[:known, :known]
    return whole


def _groups(pack: Pack, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Per group the positions of its padded rows, (B, T); and for every position, (N,), its index in the groups'
    concatenated rows."""
    cached: tuple[list[Tensor], Tensor] | None = pack.__dict__.get("_groups")
    if cached is not None:
        return cached
    starts, lengths = pack.starts.tolist(), pack.lengths
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not rows or lengths[rows[-1][0]] > _MAX_RATIO * lengths[i] + 8:
            rows.append([])
        rows[-1].append(i)
    inverse, at = torch.empty(starts[-1], dtype=torch.long), 0
    indices = []
    for group in rows:
        longest = lengths[group[0]]
        steps = torch.arange(longest)
        indices.append(torch.stack([starts[i] + steps.clamp(max=lengths[i] - 1) for i in group]).to(device))
        for i in group:
            inverse[starts[i] : starts[i + 1]] = at + torch.arange(lengths[i])
            at += longest
    pack.__dict__["_groups"] = indices, inverse.to(device)  # shared by all layers
    return pack.__dict__["_groups"]


def register() -> None:
    """Registers `NAME` with transformers, its masks too."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)
