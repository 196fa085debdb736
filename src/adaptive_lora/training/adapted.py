"""A frozen linear layer with the adapters of a bank: each adapter's positions meet its own A and B alone.

    y = x W^T + bias;   y_k += scaling_k (x_k A_k^T) B_k^T     for adapter k on its own positions x_k

The gradient of A and B is added to the adapter's vector where it arises; autograd sees the input alone.
x (N, d_in), y (N, d_out), A (r, d_in), B transposed (r, d_out), u = x A^T (n, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.errors import TrainingError
from adaptive_lora.training.attention import current
from adaptive_lora.training.dropout import dropped, erase_
from adaptive_lora.training.lean import lean_linear, product
from adaptive_lora.training.packing import Pack
from adaptive_lora.training.slots import Slot, Stack

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
        return _Adapted.apply(x, anchor, self.base(x) if self.lean is None else None, self, work)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, computed: Tensor | None, layer: AdaptedLinear, work: Work
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if layer.lean is not None:
            y = product(flat, layer.lean.matrix, layer.lean.offset)
        else:
            assert computed is not None  # `AdaptedLinear.forward` gives one of the two
            y = computed.reshape(flat.shape[0], -1).clone()
        mix = _Stacked(layer.name, work) if work.stacks else _OneByOne(layer.name, work)
        kept = mix.add(flat, y)
        if work.training:
            ctx.save_for_backward(flat, *kept)
            ctx.layer, ctx.mix, ctx.shape = layer, mix, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, *kept = ctx.saved_tensors
        (given,) = gradients
        given = given.reshape(flat.shape[0], -1)
        lean, through = ctx.layer.lean, None
        if ctx.needs_input_grad[0]:
            through = product(given, lean.matrix.t()) if lean is not None else torch.zeros_like(flat)
        ctx.mix.back(flat, kept, given, through)
        shape = (*ctx.shape[:-1], given.shape[-1])
        return (
            None if through is None else through.view(ctx.shape),
            None,
            given.view(shape) if lean is None else None,
            None,
            None,
        )


class _OneByOne:
    """Each adapter on its own stretch, at its own rank: no padding, for processors without launches to save."""

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Adds every adapter's update to y; returns what the way back needs."""
        kept = []
        for i, (slot, part, begin, end) in self._parts():
            own, which, scaling = self._inputs(i, slot, part.scaling, x[begin:end])
            u = own.to(part.a.dtype) @ part.a.t()
            if y.dtype == u.dtype:
                y[begin:end].addmm_(u, part.b, alpha=scaling)
            else:
                y[begin:end] = (y[begin:end].to(u.dtype)).addmm_(u, part.b, alpha=scaling).to(y.dtype)
            kept += [u] if which is None else [u, which]
        return kept

    def back(self, x: Tensor, kept: list[Tensor], given: Tensor, through: Tensor | None) -> None:
        """Adds to the gradients of A and B, and to `through`, the input's."""
        left = iter(kept)
        for i, (slot, part, begin, end) in self._parts():
            u = next(left)
            own, which, scaling = x[begin:end], None, part.scaling
            if slot.member.options.dropout and self.work.training:
                which = next(left)
                own = self._erased(i, own.clone(), which)
                scaling /= 1 - slot.member.options.dropout
            outer = given[begin:end].to(u.dtype)
            inner = (outer @ part.b.t()).mul_(scaling)  # dL/du (n, r)
            part.b_gradient.addmm_(u.t(), outer, alpha=scaling)
            part.a_gradient.addmm_(inner.t(), own.to(u.dtype))
            if through is None:
                continue
            if which is None and through.dtype == u.dtype:
                through[begin:end].addmm_(inner, part.a)
            else:
                update = inner @ part.a
                through[begin:end] += (update if which is None else self._erased(i, update, which)).to(through.dtype)

    def _parts(self) -> Any:
        for i, slot in enumerate(self.work.slots):
            if (part := slot.parts.get(self.name)) is not None:
                yield i, (slot, part, *self.work.pack.segments[i])

    def _inputs(self, i: int, slot: Slot, scaling: float, own: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """An adapter's inputs after dropout, which of them were dropped, and the factor of the update."""
        p = slot.member.options.dropout
        if not p or not self.work.training:
            return own, None, scaling
        shape = (self.work.pack.tokens[i], own.shape[-1])
        which = dropped(slot.member.seed, self.name, slot.step, shape, p, own.device)
        return self._erased(i, own.clone(), which), which, scaling / (1 - p)

    def _erased(self, i: int, own: Tensor, which: Tensor) -> Tensor:
        """`own`, changed in place, with 0 where its real tokens were dropped."""
        real = self.work.pack.real[i]
        if real is None:
            erase_(own[: self.work.pack.tokens[i]], which)
        else:
            own[real] = erase_(own[real], which)
        return own


class _Stacked:
    """All adapters in one call: the positions in blocks, each block multiplied with its adapter's A and B.

    Ranks are filled up with zeros to the module's largest. For accelerators, where a call costs more
    than its arithmetic.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work
        self.stack = work.stacks.get(name)
        self.one = _OneByOne(name, work)

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `_OneByOne.add`."""
        if self.stack is None:
            return []
        own, masks = self._dropped(x)
        owner, scaling = self._owners(x.device)
        u = torch.bmm(_blocks(own), self.stack.a_compute[owner].transpose(1, 2))  # (blocks, BLOCK, R)
        u *= scaling[:, None, None].to(u.dtype)
        _blocks(y).baddbmm_(u, self.stack.b_compute[owner])
        return [u, *masks]

    def back(self, x: Tensor, kept: list[Tensor], given: Tensor, through: Tensor | None) -> None:
        """See `_OneByOne.back`."""
        if self.stack is None:
            return
        u, *masks = kept
        owner, scaling = self._owners(x.device)
        a, b = self.stack.a_compute[owner], self.stack.b_compute[owner]
        outer = _blocks(given.contiguous())
        inner = torch.bmm(outer, b.transpose(1, 2)) * scaling[:, None, None].to(outer.dtype)
        own = self._erased(x.clone(), masks) if masks else x
        rows, lengths = self._rows(x.device)
        for home, blocks in (
            (self.stack.b_gradient, torch.bmm(u.transpose(1, 2), outer)),
            (self.stack.a_gradient, torch.bmm(inner.transpose(1, 2), _blocks(own))),
        ):
            summed = torch.segment_reduce(blocks.to(home.dtype), "sum", lengths=lengths, axis=0, unsafe=True)
            home.index_add_(0, rows, summed)  # every row once: one adapter, one stretch
        if through is None:
            return
        if masks:
            through += self._erased(torch.bmm(inner, a).view_as(x), masks)
        else:
            _blocks(through).baddbmm_(inner, a)

    def _owners(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Per block the adapter's row in the stack, and the factor of its update in this module."""
        counts = torch.tensor([(end - begin) // BLOCK for begin, end in self.work.pack.segments])
        rows = torch.tensor([slot.row for slot in self.work.slots]).repeat_interleave(counts).to(device)
        assert self.stack is not None
        share = [1 - s.member.options.dropout if self.work.training else 1.0 for s in self.work.slots]
        factors = torch.tensor(share, dtype=self.stack.scaling.dtype).repeat_interleave(counts).to(device)
        return rows, self.stack.scaling[rows] / factors

    def _rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([slot.row for slot in self.work.slots], device=device)
        lengths = [(end - begin) // BLOCK for begin, end in self.work.pack.segments]
        return rows, torch.tensor(lengths, device=device)

    def _dropped(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.work.training or not any(s.member.options.dropout for s in self.work.slots):
            return x, []
        masks = []
        for i, slot in enumerate(self.work.slots):
            shape, p = (self.work.pack.tokens[i], x.shape[-1]), slot.member.options.dropout
            masks.append(dropped(slot.member.seed, self.name, slot.step, shape, p, x.device))
        return self._erased(x.clone(), masks), masks

    def _erased(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        for i, which in enumerate(masks):
            begin, end = self.work.pack.segments[i]
            self.one._erased(i, x[begin:end], which)
        return x


def _blocks(x: Tensor) -> Tensor:
    """(N, d) as (N / BLOCK, BLOCK, d)."""
    return x.view(-1, BLOCK, x.shape[-1])
