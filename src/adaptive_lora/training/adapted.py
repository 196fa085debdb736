"""A frozen linear layer with the adapters of a bank: each adapter's positions meet its own A and B alone.

    y = x W^T + bias;   y_k += scaling_k (x_k A_k^T) B_k^T     for adapter k on its own positions x_k

The gradient of A and B is added to the adapter's vector where it arises; autograd sees the input alone.
x (N, d_in), y (N, d_out), A (r, d_in), B transposed (r, d_out), u = x A^T (n, r).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.errors import TrainingError
from adaptive_lora.training.attention import current
from adaptive_lora.training.dropout import erase_
from adaptive_lora.training.lean import lean_linear, product
from adaptive_lora.training.packing import Pack
from adaptive_lora.training.slots import Part, Slot, Stack

BLOCK = 64
"""Positions that are multiplied with one adapter in one call, where all adapters share the call."""


@dataclass(frozen=True)
class Work:
    """What a thread has the model compute: a pack, and the slots its adapters are in."""

    pack: Pack
    slots: Sequence[Slot]
    """In the pack's order."""
    training: bool
    stacks: Mapping[str, Stack]
    """Where every adapter's stretch is a multiple of BLOCK and all are multiplied in one call; else empty."""


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
        mix = _Stacked(layer.name, work) if work.stacks else _OneByOne(layer.name, work)
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


class _OneByOne:
    """Each adapter on its own stretch, at its own rank: no padding, for processors without launches to save."""

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Adds every adapter's update to y; returns what the way back needs."""
        which = _dropped(self.name, self.work, x)
        kept = [] if which is None else [which]
        with _without(x, which) as own:
            for part, begin, end, scaling in self._parts():
                u = own[begin:end].to(part.a.dtype) @ part.a.t()
                kept.append(u)
                if y.dtype == u.dtype:
                    y[begin:end].addmm_(u, part.b, alpha=scaling)
                else:
                    y[begin:end] = (y[begin:end].to(u.dtype)).addmm_(u, part.b, alpha=scaling).to(y.dtype)
        return kept

    def back(self, x: Tensor, kept: list[Tensor], given: Tensor, through: Tensor | None) -> None:
        """Adds to the gradients of A and B, and to `through`, the input's."""
        which = kept.pop(0) if _drops(self.work) else None
        # What is dropped gets the base's gradient alone.
        alone = None if which is None or through is None else through.view(-1)[which]
        with _without(x, which) as own:
            for u, (part, begin, end, scaling) in zip(kept, self._parts(), strict=True):
                outer = given[begin:end].to(u.dtype)
                inner = torch.addmm(u, outer, part.b.t(), beta=0, alpha=scaling)  # dL/du (n, r)
                part.b_gradient.addmm_(u.t(), outer, alpha=scaling)
                part.a_gradient.addmm_(inner.t(), own[begin:end].to(u.dtype))
                if through is None:
                    continue
                if through.dtype == u.dtype:
                    through[begin:end].addmm_(inner, part.a)
                else:
                    through[begin:end] += (inner @ part.a).to(through.dtype)
        if alone is not None and through is not None and which is not None:
            through.view(-1)[which] = alone

    def _parts(self) -> Iterator[tuple[Part, int, int, float]]:
        # A pack that only tries the base has no slots.
        for slot, (begin, end) in zip(self.work.slots, self.work.pack.segments, strict=False):
            if (part := slot.parts.get(self.name)) is not None:
                kept = 1 - slot.masks.p if self.work.training else 1.0
                yield part, begin, end, part.scaling / kept


class _Stacked:
    """All adapters in one call: the positions in blocks, each block multiplied with its adapter's A and B.

    Ranks are filled up with zeros to the module's largest. For accelerators, where a call costs more
    than its arithmetic.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work
        self.stack = work.stacks.get(name)

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `_OneByOne.add`."""
        if self.stack is None:
            return []
        which = _dropped(self.name, self.work, x)
        own = x if which is None else erase_(x.clone(), which)
        owner, scaling = self._owners(x.device)
        u = torch.bmm(_blocks(own), self.stack.a_compute[owner].transpose(1, 2))  # (blocks, BLOCK, R)
        u *= scaling[:, None, None].to(u.dtype)
        _blocks(y).baddbmm_(u, self.stack.b_compute[owner])
        return [u] if which is None else [u, which]

    def back(self, x: Tensor, kept: list[Tensor], given: Tensor, through: Tensor | None) -> None:
        """See `_OneByOne.back`."""
        if self.stack is None:
            return
        u, which = kept[0], kept[1] if len(kept) > 1 else None
        owner, scaling = self._owners(x.device)
        a, b = self.stack.a_compute[owner], self.stack.b_compute[owner]
        outer = _blocks(given.contiguous())
        inner = torch.bmm(outer, b.transpose(1, 2)) * scaling[:, None, None].to(outer.dtype)
        own = x if which is None else erase_(x.clone(), which)
        rows, lengths = self._rows(x.device)
        for home, blocks in (
            (self.stack.b_gradient, torch.bmm(u.transpose(1, 2), outer)),
            (self.stack.a_gradient, torch.bmm(inner.transpose(1, 2), _blocks(own))),
        ):
            summed = torch.segment_reduce(blocks.to(home.dtype), "sum", lengths=lengths, axis=0, unsafe=True)
            home.index_add_(0, rows, summed)  # every row once: one adapter, one stretch
        if through is None:
            return
        if which is None:
            _blocks(through).baddbmm_(inner, a)
        else:
            through += erase_(torch.bmm(inner, a).view_as(x), which)

    def _owners(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Per block the adapter's row in the stack, and the factor of its update in this module."""
        assert self.stack is not None
        counts = torch.tensor([(end - begin) // BLOCK for begin, end in self.work.pack.segments])
        rows = torch.tensor([slot.row for slot in self.work.slots]).repeat_interleave(counts).to(device)
        share = [1 - slot.masks.p if self.work.training else 1.0 for slot in self.work.slots]
        factors = torch.tensor(share, dtype=self.stack.scaling.dtype).repeat_interleave(counts).to(device)
        return rows, self.stack.scaling[rows] / factors

    def _rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([slot.row for slot in self.work.slots], device=device)
        lengths = [(end - begin) // BLOCK for begin, end in self.work.pack.segments]
        return rows, torch.tensor(lengths, device=device)


@contextlib.contextmanager
def _without(x: Tensor, which: Tensor | None) -> Iterator[Tensor]:
    """x with 0 where it is dropped. On a processor x itself, for as long as it is needed: a few entries are
    exchanged and put back instead of the whole being copied."""
    if which is None or not len(which):
        yield x
    elif which.dtype == torch.bool:
        yield erase_(x.clone(), which)
    else:
        flat = x.data.view(-1)  # past autograd's count of changes: in the end there is none
        before = flat[which]
        flat[which] = 0
        try:
            yield x
        finally:
            flat[which] = before


def _drops(work: Work) -> bool:
    return work.training and any(slot.masks.p for slot in work.slots)


def _dropped(name: str, work: Work, x: Tensor) -> Tensor | None:
    """Which entries of a module's input are dropped, for all adapters; nothing where nothing ever is."""
    if not _drops(work):
        return None
    width = x.shape[1]
    mask = torch.zeros(x.shape, dtype=torch.bool, device=x.device) if x.device.type != "cpu" else None
    places = []
    for slot, tokens, (begin, _), real in zip(
        work.slots, work.pack.tokens, work.pack.segments, work.pack.real, strict=True
    ):
        if not slot.masks.p or name not in slot.parts:
            continue
        own = slot.masks.dropped(name, slot.step, tokens, x.device)
        if mask is not None:
            rows = begin + (torch.arange(tokens, device=x.device) if real is None else real)
            mask[rows] = own.view(tokens, width)
        else:
            rest = own if real is None else real[own // width] * width + own % width
            places.append(rest + begin * width)
    if mask is not None:
        return mask.view(-1)
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.long)


def _blocks(x: Tensor) -> Tensor:
    """(N, d) as (N / BLOCK, BLOCK, d)."""
    return x.view(-1, BLOCK, x.shape[-1])
