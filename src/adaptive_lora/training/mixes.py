"""How the adapters of a pack add their updates to a layer's output, and find their gradients on the way back.

    u = x A^T;   y += s u B;   backward: i = s g B^T;   dB += s u^T g;   dA += i^T x;   dx += i A

x (N, d_in), y and its gradient g (N, d_out), A (r, d_in), B transposed (r, d_out), u and i (n, r), each adapter on
its own n rows of x. Three ways to the same numbers: in one call of `lora.c`, one by one, and stacked for accelerators.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adaptive_lora.training.dropout import erase_
from adaptive_lora.training.kernel import LoraPart, LoraUpdate, lora_kernel
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


class Mix(Protocol):
    """One layer's adapters at work on one pack."""

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Adds every adapter's update to y; returns what the way back needs."""

    def back(self, x: Tensor, kept: list[Tensor], given: Tensor, through: Tensor | None) -> None:
        """Adds to the gradients of A and B, and to `through`, the input's; `given` is the output's."""


def mix_of(name: str, work: Work, x: Tensor, y: Tensor) -> Mix:
    """The way that suits the device and the type."""
    if work.stacks:
        return Stacked(name, work)
    slots = work.slots
    if (
        x.device.type == "cpu"
        and min(x.shape[1], y.shape[1]) >= LoraUpdate.NARROWEST
        and all(x.dtype == y.dtype == slot.parameters.dtype for slot in slots)
        and lora_kernel(x.dtype) is not None
    ):
        return InOneCall(name, work)
    return OneByOne(name, work)


class InOneCall:
    """`lora.c`: all adapters, each on its own stretch at its own rank, without coming back in between."""

    def __init__(self, name: str, work: Work) -> None:
        self._dropped: list[Tensor] = []  # held, since `lora.c` is told no more than where they lie
        self._rows, parts = 0, []
        for slot, (begin, end), tokens, real in zip(
            work.slots, work.pack.segments, work.pack.tokens, work.pack.real, strict=False
        ):
            if (part := slot.parts.get(name)) is None:
                continue
            dropping = work.training and slot.masks.p > 0
            which = _own_dropped(name, slot, tokens, real, part.a.shape[1]) if dropping else torch.empty(0)
            self._dropped.append(which)
            self._rows += (end - begin) * part.a.shape[0]
            factor = part.scaling / (1 - slot.masks.p if work.training else 1)
            parts.append(LoraPart(begin, end, *part.places, which.data_ptr(), which.numel(), factor))
        self._parts = (LoraPart * len(parts))(*parts)

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `Mix.add`."""
        u = x.new_empty(self._rows)
        self._call("lora_forward", x, y, u, None)
        return [u]

    def back(self, x: Tensor, kept: list[Tensor], given: Tensor, through: Tensor | None) -> None:
        """See `Mix.back`."""
        self._call("lora_backward", x, given.contiguous(), kept[0], through)

    def _call(self, function: str, x: Tensor, y: Tensor, u: Tensor, through: Tensor | None) -> None:
        update = LoraUpdate(
            x.shape[1], y.shape[1], len(self._parts), ctypes.addressof(self._parts),
            x.data_ptr(), y.data_ptr(), u.data_ptr(), None if through is None else through.data_ptr(),
        )  # fmt: skip
        if getattr(lora_kernel(x.dtype), function)(update):
            raise MemoryError("no memory for the adapters' working space")


class OneByOne:
    """Each adapter on its own stretch, at its own rank: no padding, for processors without launches to save."""

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `Mix.add`."""
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
        """See `Mix.back`."""
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


class Stacked:
    """All adapters in one call: the positions in blocks, each block multiplied with its adapter's A and B.

    Ranks are filled up with zeros to the module's largest. For accelerators, where a call costs more
    than its arithmetic.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work
        self.stack = work.stacks.get(name)

    def add(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `Mix.add`."""
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
        """See `Mix.back`."""
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
        if mask is not None:
            rows = begin + (torch.arange(tokens, device=x.device) if real is None else real)
            mask[rows] = slot.masks.dropped(name, slot.step, tokens, x.device).view(tokens, width)
        else:
            places.append(_own_dropped(name, slot, tokens, real, width) + begin * width)
    if mask is not None:
        return mask.view(-1)
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.long)


def _own_dropped(name: str, slot: Slot, tokens: int, real: Tensor | None, width: int) -> Tensor:
    """The places dropped in an adapter's own stretch, flattened, on a processor; ascending."""
    own = slot.masks.dropped(name, slot.step, tokens, torch.device("cpu"))
    return own if real is None else real[own // width] * width + own % width


def _blocks(x: Tensor) -> Tensor:
    """(N, d) as (N / BLOCK, BLOCK, d)."""
    return x.view(-1, BLOCK, x.shape[-1])
