"""The batch that a model is computing: how attention and LoRA layers, called by the model, learn of sequences and
adapters."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from adaptive_lora.training.packing import Pack
from adaptive_lora.training.pass_layout import BlockLayout, block_layout, dropped_inputs
from adaptive_lora.training.slots import LoraStack, Slot


@dataclass(frozen=True)
class BankBatch:
    """One pass of a bank: the packed batches, and the slots of the adapters they belong to."""

    pack: Pack
    slots: Sequence[Slot] = ()
    """In the pack's order."""
    training: bool = False
    stacks: Mapping[str, LoraStack] = field(default_factory=dict)
    """By module; if not empty, segments are multiples of BLOCK and all adapters are multiplied at once."""
    kernels: set[str] = field(default_factory=set)
    """What computed attention and LoRA, noted by the layers."""
    marked: tuple[int, int] | None = None
    """Positions whose results the layers double, to see that they are those of the texts that were put there."""

    @cached_property
    def layout(self) -> BlockLayout:
        """Which adapter each block belongs to, for all layers; only with `stacks`."""
        return block_layout(self.pack, self.slots, self.stacks, self.training)

    @cached_property
    def dropped(self) -> Mapping[str, Tensor] | None:
        """By module which of its inputs are dropped, (N, d_in) bool; None where none are."""
        return dropped_inputs(self.pack, self.slots) if self.training else None


class _Current:
    """Thread-local current batch; falls back to the last active one for autograd's threads (on accelerators the
    backward pass recomputes layers in a thread of its own)."""

    def __init__(self) -> None:
        self._local, self._active, self._lock = threading.local(), list[BankBatch](), threading.Lock()

    def get(self) -> BankBatch | None:
        own: BankBatch | None = getattr(self._local, "batch", None)
        latest = self._active[-1:]
        return own if own is not None or not latest else latest[0]

    @contextlib.contextmanager
    def set(self, batch: BankBatch) -> Iterator[None]:
        before = getattr(self._local, "batch", None)
        self._local.batch = batch
        with self._lock:
            self._active.append(batch)
        try:
            yield
        finally:
            self._local.batch = before
            for slot in batch.slots:
                slot.masks.forget()
            with self._lock:
                # By identity: comparing batches would compare tensors.
                del self._active[next(i for i, other in enumerate(self._active) if other is batch)]


_CURRENT = _Current()


def current_batch(batch: BankBatch) -> contextlib.AbstractContextManager[None]:
    """Makes `batch` the one that layers called by this thread compute; its dropout masks are forgotten at the end."""
    return _CURRENT.set(batch)


def get_current_batch() -> BankBatch | None:
    """The batch of `current_batch`; None outside of it."""
    return _CURRENT.get()
