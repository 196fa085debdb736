"""Forward and backward pass of all adapters of a pack in one layer.

    u = x A^T;   y += s u B;   backward: i = s g B^T;   dB += s u^T g;   dA += i^T x;   dx += i A

x (N, d_in), y and its gradient g (N, d_out), A (r, d_in), B transposed (r, d_out), u and i (n, r), each adapter on
its own n rows of x. Three implementations: `lora.c` on the CPU, torch adapter by adapter, and torch's batched
products for accelerators (`stacked_lora`).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from adaptive_lora.training.current_batch import BankBatch
from adaptive_lora.training.dropout import zero_
from adaptive_lora.training.kernels import LoraArgs, LoraSegment, lora_kernel
from adaptive_lora.training.slots import LoraPair, Slot
from adaptive_lora.training.stacked_lora import BatchedBmm


class LoraOp(Protocol):
    """The adapters of one layer on one pack."""

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Adds every adapter's update to y; returns the tensors to save for the backward pass."""

    def backward(self, x: Tensor, saved: list[Tensor], grad_output: Tensor, grad_input: Tensor | None) -> None:
        """Adds to the gradients of A and B and, where it is wanted, to `grad_input`."""


def lora_op(name: str, batch: BankBatch, x: Tensor, y: Tensor) -> LoraOp:
    """The implementation that suits device and dtype."""
    if batch.stacks:
        batch.kernels.add("batched lora")
        return BatchedBmm(name, batch)
    if (
        x.device.type == "cpu"
        and min(x.shape[1], y.shape[1]) >= LoraArgs.MIN_WIDTH
        and all(x.dtype == y.dtype == slot.parameters.dtype for slot in batch.slots)
        and lora_kernel(x.dtype) is not None
    ):
        batch.kernels.add("compiled lora")
        return FusedCpu(name, batch)
    batch.kernels.add("torch lora")
    return PerAdapter(name, batch)


class FusedCpu:
    """`lora.c`: all adapters in one call, each on its own segment at its own rank."""

    def __init__(self, name: str, batch: BankBatch) -> None:
        self._dropped: list[object] = []  # keeps alive what `lora.c` has the addresses of
        self._u_size, segments = 0, []
        for slot, (begin, end), tokens, real in zip(
            batch.slots, batch.pack.segments, batch.pack.tokens, batch.pack.real, strict=False
        ):
            if (pair := slot.pairs.get(name)) is None:
                continue
            dropping = batch.training and slot.masks.p > 0
            place = self._place(name, slot, tokens, real) if dropping else (0, 0)
            self._u_size += (end - begin) * pair.a.shape[0]
            scaling = pair.scaling / (1 - slot.masks.p if batch.training else 1)
            segments.append(LoraSegment(begin, end, *pair.addresses, *place, scaling))
        self._segments = (LoraSegment * len(segments))(*segments)

    def _place(self, name: str, slot: Slot, tokens: int, real: Tensor | None) -> tuple[int, int]:
        """Address and number of the dropped entries of an adapter's own segment."""
        if real is None:
            positions = slot.masks.positions(slot.step, tokens)
            self._dropped.append(positions)
            return positions.place(name)
        spread = _own_dropped(name, slot, tokens, real, slot.pairs[name].a.shape[1])
        self._dropped.append(spread)
        return spread.data_ptr(), spread.numel()

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `LoraOp.forward`."""
        u = x.new_empty(self._u_size)
        self._call("lora_forward", x, y, u, None)
        return [u]

    def backward(self, x: Tensor, saved: list[Tensor], grad_output: Tensor, grad_input: Tensor | None) -> None:
        """See `LoraOp.backward`."""
        self._call("lora_backward", x, grad_output.contiguous(), saved[0], grad_input)

    def _call(self, function: str, x: Tensor, y: Tensor, u: Tensor, grad_x: Tensor | None) -> None:
        arguments = LoraArgs(
            x.shape[1], y.shape[1], len(self._segments), ctypes.addressof(self._segments),
            x.data_ptr(), y.data_ptr(), u.data_ptr(), None if grad_x is None else grad_x.data_ptr(),
        )  # fmt: skip
        if getattr(lora_kernel(x.dtype), function)(arguments):
            raise MemoryError("out of memory: LoRA workspace")


class PerAdapter:
    """Torch's products, one adapter at a time on its own segment at its own rank; for CPUs without a compiler."""

    def __init__(self, name: str, batch: BankBatch) -> None:
        self.name, self.batch = name, batch

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `LoraOp.forward`."""
        dropped = _dropped(self.name, self.batch, x)
        saved = [] if dropped is None else [dropped]
        with _zeroed(x, dropped) as masked:
            for pair, begin, end, scaling in self._pairs():
                u = masked[begin:end].to(pair.a.dtype) @ pair.a.t()
                saved.append(u)
                if y.dtype == u.dtype:
                    y[begin:end].addmm_(u, pair.b, alpha=scaling)
                else:
                    y[begin:end] = (y[begin:end].to(u.dtype)).addmm_(u, pair.b, alpha=scaling).to(y.dtype)
        return saved

    def backward(self, x: Tensor, saved: list[Tensor], grad_output: Tensor, grad_input: Tensor | None) -> None:
        """See `LoraOp.backward`."""
        dropped = saved.pop(0) if _has_dropout(self.batch) else None
        # Dropped inputs get the gradient through the base weights only: it is restored after the adapters' is added.
        base_grad = None if dropped is None or grad_input is None else grad_input.view(-1)[dropped]
        with _zeroed(x, dropped) as masked:
            for u, (pair, begin, end, scaling) in zip(saved, self._pairs(), strict=True):
                own_grad = grad_output[begin:end].to(u.dtype)
                inner = torch.addmm(u, own_grad, pair.b.t(), beta=0, alpha=scaling)  # dL/du (n, r)
                pair.b_gradient.addmm_(u.t(), own_grad, alpha=scaling)
                pair.a_gradient.addmm_(inner.t(), masked[begin:end].to(u.dtype))
                if grad_input is None:
                    continue
                if grad_input.dtype == u.dtype:
                    grad_input[begin:end].addmm_(inner, pair.a)
                else:
                    grad_input[begin:end] += (inner @ pair.a).to(grad_input.dtype)
        if base_grad is not None and grad_input is not None and dropped is not None:
            grad_input.view(-1)[dropped] = base_grad

    def _pairs(self) -> Iterator[tuple[LoraPair, int, int, float]]:
        # A pack that only tries the base model has no slots.
        for slot, (begin, end) in zip(self.batch.slots, self.batch.pack.segments, strict=False):
            if (pair := slot.pairs.get(self.name)) is not None:
                keep_share = 1 - slot.masks.p if self.batch.training else 1.0
                yield pair, begin, end, pair.scaling / keep_share


@contextlib.contextmanager
def _zeroed(x: Tensor, dropped: Tensor | None) -> Iterator[Tensor]:
    """x with 0 at the dropped entries. On the CPU x itself, for the duration of the block: a few entries are
    overwritten and restored instead of copying everything."""
    if dropped is None or not len(dropped):
        yield x
    elif dropped.dtype == torch.bool:
        yield zero_(x.clone(), dropped)
    else:
        flat = x.data.view(-1)  # `data`: not a change in autograd's eyes, since it is undone
        before = flat[dropped]
        flat[dropped] = 0
        try:
            yield x
        finally:
            flat[dropped] = before


def _has_dropout(batch: BankBatch) -> bool:
    return batch.training and any(slot.masks.p for slot in batch.slots)


def _dropped(name: str, batch: BankBatch, x: Tensor) -> Tensor | None:
    """Dropped entries of a module's input, for all adapters; None in a batch without dropout."""
    if not _has_dropout(batch):
        return None
    if batch.slots[0].masks.as_flags(x.device):
        return None if batch.dropped is None else batch.dropped[name].reshape(-1)
    width, indices = x.shape[1], []
    for slot, tokens, (begin, _), real in zip(
        batch.slots, batch.pack.tokens, batch.pack.segments, batch.pack.real, strict=True
    ):
        if slot.masks.p and name in slot.pairs:
            indices.append(_own_dropped(name, slot, tokens, real, width) + begin * width)
    return torch.cat(indices) if indices else torch.zeros(0, dtype=torch.long)


def _own_dropped(name: str, slot: Slot, tokens: int, real: Tensor | None, width: int) -> Tensor:
    """Indices of the dropped entries of an adapter's own segment, flattened, ascending; on the CPU."""
    # Masks cover tokens only, so that they do not depend on padding: here they are spread over the padded rows.
    dropped = slot.masks.dropped(name, slot.step, tokens, torch.device("cpu"))
    return dropped if real is None else real[dropped // width] * width + dropped % width
