"""Hears what goes into modules and what gradient comes back to their outputs; no weight takes part.

With x (n, d_in) and g (n, d_out) at hand, dL/dW = gᵀx needs no gradient on the frozen weight, and what
is linear in the tokens can be summed without ever forming it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from adaptive_lora.errors import TrainingError
from adaptive_lora.training.base import FrozenBase


class Listener(Protocol):
    """What is told of every batch."""

    def on_input(self, name: str, x: Tensor) -> None:
        """Rows (n, d_in) that went into a module; of modules that share a tensor only the first is told."""

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        """Rows (n, d_in) that went into one call of a module, and (n, d_out) the gradient of its output.

        Rows that do not count are not left out: their gradient is 0.
        """

    def on_complete(self, name: str) -> None:
        """The last gradient of a module in this batch was told."""


@dataclass
class Capture:
    """The hooks' memory: which rows of a batch count, and which modules shared a tensor.

    Batches are padded on the right, where no real token looks, so that gradients of padding are exactly 0 and
    need not be cut out; cutting copies every tensor.
    """

    listener: Listener
    backward: bool
    leaders: dict[str, str] = field(default_factory=dict)
    """Module -> the one that is told of the input they share (itself, where it shares none)."""
    _mask: Tensor | None = None
    _rows: Tensor | None = None
    _seen: dict[int, tuple[weakref.ref[Tensor], str]] = field(default_factory=dict)
    _open: Counter[str] = field(default_factory=Counter)

    @contextlib.contextmanager
    def batch(self, mask: Tensor) -> Iterator[None]:
        """A batch whose positions (B, T) count where `mask` is true."""
        self._mask = mask
        self._rows = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
        yield
        for name in [name for name, left in self._open.items() if left]:
            self.listener.on_complete(name)  # some call of it had no part in the loss
        self._open.clear()
        self._seen.clear()

    def hook(self, name: str) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor | None]:
        """A forward hook for the module `name`."""

        def heard(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            self._tell_input(name, inputs[0])
            if not self.backward:
                return None
            x = fine(inputs[0].detach())
            # The first modules of a frozen model have nothing before them that asks for a gradient.
            told = output if output.requires_grad else output.detach().requires_grad_().clone()
            self._open[name] += 1
            told.register_hook(lambda g: self._gradient_of(name, x, g))  # type: ignore[no-untyped-call]
            return told

        return heard

    def _tell_input(self, name: str, raw: Tensor) -> None:
        """Tells the listener the rows that count, unless another module has had the same tensor."""
        found = self._seen.get(id(raw))
        shared = found is not None and found[0]() is raw  # the number of a dead tensor may be another's by now
        leader = found[1] if found and shared else name
        if self.leaders.setdefault(name, leader) != leader:
            raise TrainingError(f"{name} shares its input with {leader} in one batch only; it cannot be measured.")
        if not shared:
            self._seen[id(raw)] = (weakref.ref(raw), name)
            self.listener.on_input(name, self._counted(raw.detach()))

    def _gradient_of(self, name: str, x: Tensor, g: Tensor) -> None:
        self.listener.on_gradient(name, x, fine(g))
        self._open[name] -= 1
        if not self._open[name]:
            self.listener.on_complete(name)

    def _counted(self, tensor: Tensor) -> Tensor:
        """(n, d) the rows that count, at least in float32.

        Rows that are not the batch's positions (those a router sent to an expert) count all.
        """
        rows = fine(tensor)
        assert self._mask is not None  # inside `batch`
        return rows.index_select(0, self._rows) if self._rows is not None and len(rows) == self._mask.numel() else rows


def fine(tensor: Tensor) -> Tensor:
    """(n, d) all rows, at least in float32."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.dtype.itemsize >= 4 else rows.float()


@contextlib.contextmanager
def listening(base: FrozenBase, names: Iterable[str], listener: Listener, backward: bool) -> Iterator[Capture]:
    """Hooks on the modules `names`, taken off at the end whatever happens."""
    capture = Capture(listener, backward)
    hooks = []
    try:
        for name in names:
            hooks.append(base.model.get_submodule(name).register_forward_hook(capture.hook(name)))
        yield capture
    finally:
        for hook in hooks:
            hook.remove()
