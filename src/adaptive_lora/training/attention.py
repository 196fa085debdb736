"""Causal attention over sequences that lie end to end: no sequence sees another, no padding where it can be helped.

Models of transformers look their attention up by name (`AttentionInterface`); `NAME` is ours. Which
sequences there are stands in the pack that is `at_work` while the model runs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from adaptive_lora.training.kernel import Arguments, attention_kernel
from adaptive_lora.training.packing import Pack

NAME = "adaptive_lora_packed"
"""The attention implementation's name for transformers."""

_WASTE = 1.2
"""Sequences attend in one call of torch's attention if the longest is at most so many times the shortest."""


class _AtWork:
    """What each thread is working on; where a thread was told nothing, what another one is (an accelerator's
    backward pass recomputes layers in a thread of its own)."""

    def __init__(self) -> None:
        self._own, self._all, self._lock = threading.local(), list[Any](), threading.Lock()

    def get(self) -> Any:
        own = getattr(self._own, "work", None)
        others = self._all[-1:]
        return own if own is not None or not others else others[0]

    @contextlib.contextmanager
    def told(self, work: Any) -> Iterator[None]:
        before = getattr(self._own, "work", None)
        self._own.work = work
        with self._lock:
            self._all.append(work)
        try:
            yield
        finally:
            self._own.work = before
            with self._lock:
                # By identity: equality of works would compare tensors.
                del self._all[next(i for i, other in enumerate(self._all) if other is work)]


_AT_WORK = _AtWork()


def at_work(work: Any) -> contextlib.AbstractContextManager[None]:
    """Tells attention and adapted layers, called by this thread, what the model is fed."""
    return _AT_WORK.told(work)


def current() -> Any:
    """What `at_work` was told; nothing outside."""
    return _AT_WORK.get()


class NotCausalOnly(NotImplementedError):
    """The model asks attention for more than causality and a window (capped scores, sinks, biases)."""


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

    softmax(scaling q k^T) v over the tokens up to its own of each sequence.
    """
    pack: Pack = current().pack
    if (
        dropout
        or attention_mask is not None
        or any(rest.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
        or not getattr(module, "is_causal", True)
    ):
        raise NotCausalOnly(type(module).__name__)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = rest.get("sliding_window")
    window = window if window is not None and window < max(pack.lengths) else None
    plain = query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[-1] == value.shape[-1]
    if plain and window is None and attention_kernel() is not None:
        return _Kernel.apply(query, key, value, scaling, pack.starts), None
    return _grouped(query, key, value, scaling, pack, window), None


class _Kernel(torch.autograd.Function):
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
        given = gradients[0][0].contiguous()
        made = tuple(torch.empty(x.shape) for x in (q, k, v))
        _call("attention_backward", (q, k, v, starts, ctx.scaling, out, scales), (given, *made))
        return (*(x.transpose(0, 1)[None] for x in made), None, None)


def _call(function: str, tensors: tuple[Any, ...], gradients: tuple[Tensor, ...] = ()) -> None:
    q, k, v, starts, scaling, out, scales = tensors
    arguments = Arguments(
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
        q_stride=q.stride(0), k_stride=k.stride(0), v_stride=v.stride(0),
        tokens=q.shape[0], heads=q.shape[1], groups=k.shape[1], width=q.shape[2], sequences=len(starts) - 1,
        starts=starts.data_ptr(), scaling=scaling, out=out.data_ptr(), scales=scales.data_ptr(),
    )  # fmt: skip
    names = ("out_gradient", "q_gradient", "k_gradient", "v_gradient")
    for name, gradient in zip(names, gradients, strict=False):
        setattr(arguments, name, gradient.data_ptr())
    if getattr(attention_kernel(), function)(arguments):
        raise MemoryError("no memory for attention's working space")


def _by_token(x: Tensor) -> Tensor:
    """(1, H, N, D) to (N, H, D) with the heads of a token next to each other; a copy only if they are not."""
    x = x[0].transpose(0, 1)
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, pack: Pack, window: int | None = None
) -> Tensor:
    """Torch's attention on groups of sequences of similar length, each padded to its longest.

    A sequence's padding repeats its own last token behind it, where causality hides it. With a window, a
    query sees its own and the window - 1 tokens before it.
    """
    _, heads, positions, _ = query.shape
    groups, shared = _groups(pack, query.device), heads // key.shape[1]
    outputs = []
    for index, _ in groups:
        q, k, v = (x[0].transpose(0, 1)[index].transpose(1, 2) for x in (query, key, value))  # (B, H or G, T, D)
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        seen = None
        if window is not None:
            ones = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool, device=query.device)
            seen = ones.tril().triu(1 - window)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(-1, heads, value.shape[-1]))
    places = torch.cat([place for _, place in groups])  # (N,): where each position's output stands in the groups'
    return torch.cat(outputs)[places].view(1, positions, heads, value.shape[-1])


def _groups(pack: Pack, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Per group the positions of its padded rows, (B, T); the second parts, joined, lead back to the N positions."""
    known: list[tuple[Tensor, Tensor]] | None = pack.__dict__.get("_groups")
    if known is not None:
        return known
    starts, lengths = pack.starts.tolist(), pack.lengths
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not rows or lengths[rows[-1][0]] > _WASTE * lengths[i] + 8:
            rows.append([])
        rows[-1].append(i)
    place, at = torch.empty(starts[-1], dtype=torch.long), 0
    indices = []
    for group in rows:
        longest = lengths[group[0]]
        steps = torch.arange(longest)
        indices.append(torch.stack([starts[i] + steps.clamp(max=lengths[i] - 1) for i in group]).to(device))
        for i in group:
            place[starts[i] : starts[i + 1]] = at + torch.arange(lengths[i])
            at += longest
    parts = place.to(device).split([len(place), *[0] * (len(indices) - 1)])
    found = list(zip(indices, parts, strict=True))
    pack.__dict__["_groups"] = found  # the same for every layer
    return found


def register() -> None:
    """Makes `NAME` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
