"""Forward and gradient hooks on frozen modules: inputs x and output gradients g, without a gradient on any weight.

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
    """Receives the activations and gradients of every batch."""

    def on_input(self, name: str, x: Tensor) -> None:
        """Rows (n, d_in) that went into a module; called once for all modules that share a tensor."""

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        """Rows (n, d_in) that went into one call of a module, and (n, d_out) the gradient of its output.

        Masked rows are included: their gradient is 0.
        """

    def on_complete(self, name: str) -> None:
        """There are no more gradients of this module in this batch."""


@dataclass
class Hooks:
    """State of the hooks: which rows of a batch count, and which modules share an input tensor.

    Batches are padded on the right, where no real token looks, so that gradients of padding are exactly 0 and
    need not be cut out; cutting copies every tensor.
    """

    listener: Listener
    backward: bool
    leaders: dict[str, str] = field(default_factory=dict)
    """Module -> the module for which `on_input` is called with their shared input (itself where it shares none)."""
    _mask: Tensor | None = None
    _rows: Tensor | None = None
    _seen: dict[int, tuple[weakref.ref[Tensor], str]] = field(default_factory=dict)
    _pending: Counter[str] = field(default_factory=Counter)
    """Calls of each module whose gradient has not arrived yet."""

    @contextlib.contextmanager
    def batch(self, mask: Tensor) -> Iterator[None]:
        """A batch whose positions (B, T) count where `mask` is true."""
        self._mask = mask
        self._rows = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
        yield
        for name in [name for name, left in self._pending.items() if left]:
            self.listener.on_complete(name)  # some call of it had no part in the loss
        self._pending.clear()
        self._seen.clear()

    def hook(self, name: str) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor | None]:
        """A forward hook for the module `name`."""

        def forward_hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            self._pass_input_on(name, inputs[0])
            if not self.backward:
                return None
            x = rows_of(inputs[0].detach())
            # The first modules of a frozen model have nothing before them that asks for a gradient.
            traced = output if output.requires_grad else output.detach().requires_grad_().clone()
            self._pending[name] += 1
            traced.register_hook(lambda g: self._gradient_hook(name, x, g))  # type: ignore[no-untyped-call]
            return traced

        return forward_hook

    def _pass_input_on(self, name: str, raw: Tensor) -> None:
        """Calls `on_input` with the rows that count, unless another module has had the same tensor."""
        found = self._seen.get(id(raw))
        shared = found is not None and found[0]() is raw  # the id of a freed tensor may be another's by now
        leader = found[1] if found and shared else name
        if self.leaders.setdefault(name, leader) != leader:
            raise TrainingError(f"{name} shares its input with {leader} in one batch only; it cannot be measured.")
        if not shared:
            self._seen[id(raw)] = (weakref.ref(raw), name)
            self.listener.on_input(name, self._counted(raw.detach()))

    def _gradient_hook(self, name: str, x: Tensor, g: Tensor) -> None:
        self.listener.on_gradient(name, x, rows_of(g))
        self._pending[name] -= 1
        if not self._pending[name]:
            self.listener.on_complete(name)

    def _counted(self, tensor: Tensor) -> Tensor:
        """(n, d) the rows that count, at least in float32.

        Rows that are not the batch's positions (those a router sent to an expert) count all.
        """
        rows = rows_of(tensor)
        assert self._mask is not None  # inside `batch`
        return rows.index_select(0, self._rows) if self._rows is not None and len(rows) == self._mask.numel() else rows


def rows_of(tensor: Tensor) -> Tensor:
    """(n, d) all rows, at least in float32."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.dtype.itemsize >= 4 else rows.float()


@contextlib.contextmanager
def hooked(base: FrozenBase, names: Iterable[str], listener: Listener, backward: bool) -> Iterator[Hooks]:
    """Hooks on the modules `names`, removed at the end whatever happens."""
    hooks = Hooks(listener, backward)
    handles = []
    try:
        for name in names:
            handles.append(base.model.get_submodule(name).register_forward_hook(hooks.hook(name)))
        yield hooks
    finally:
        for handle in handles:
            handle.remove()
