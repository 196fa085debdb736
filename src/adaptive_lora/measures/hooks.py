"""Forward and gradient hooks on frozen modules: inputs x and output gradients g, without a gradient on any weight.

With x (n, d_in) and g (n, d_out) at hand, dL/dW = gᵀx needs no gradient on the frozen weight, and what
is linear in the tokens can be summed without ever forming it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import IGNORED, Batch, Loss, collate, label_loss
from adaptive_lora.training.head import Head, head_of

ACTIVATIONS = 1 << 29
"""Bytes of activations that a backward pass may hold, about: twice what goes into and out of all linear layers."""


class Hooks:
    """Runs batches through a frozen model and hands on what modules see; subclasses override what they need of `on_*`.

    Without a `loss` there are forward passes alone. Batches are padded on the right, where no real token looks, so that
    gradients of padding are exactly 0 and need not be cut out; cutting copies every tensor.
    """

    def __init__(self, base: FrozenBase, names: Iterable[str], loss: Loss | None = None) -> None:
        self.base, self.names, self.loss = base, list(names), loss
        self.leaders: dict[str, str] = {}
        """Module -> the module for which `on_input` is called with their shared input (itself where it shares none)."""
        self._positions = 0
        self._rows: Tensor | None = None
        self._seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._pending: Counter[str] = Counter()
        """Calls of each module whose gradient has not arrived yet."""
        self._open: set[str] = set()
        """Modules with more gradients to come in this batch, as far as is known."""
        self._last = True
        """Whether the part that is computed is the batch's last."""

    def on_input(self, name: str, x: Tensor) -> None:
        """Rows (n, d_in) that went into a module; called once for all modules that share a tensor."""

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        """All rows (n, d_in) that went into one call of a module, and (n, d_out) the gradient of its output."""

    def on_complete(self, name: str) -> None:
        """There are no more gradients of this module in this batch."""

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks on their modules, removed at the end whatever happens."""
        with contextlib.ExitStack() as handles:
            for name in self.names:
                module = self.base.model.get_submodule(name)
                handles.callback(module.register_forward_hook(partial(self._forward_hook, name)).remove)
            yield

    def run(
        self,
        examples: Sequence[Example],
        completion: bool = False,
        after: Callable[[Sequence[Example]], None] = lambda part: None,
    ) -> None:
        """One batch, forward and (with a loss) backward; `completion`: only inputs of completion tokens count.

        Where its activations would be many it is computed in `parts`, whose gradients add up to those of its one loss;
        `after` is called with each.
        """
        learnt = sum(example.completion_tokens for example in examples)
        parts = self.parts(examples)
        for part in parts:
            self._last = part is parts[-1]
            batch = collate(part).to(self.base.device)
            mask = batch.labels != IGNORED if completion else batch.attention_mask.bool()
            self._positions = mask.numel()
            self._rows = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
            with torch.set_grad_enabled(self.loss is not None):
                self._pass(batch, part, learnt)
            self._pending.clear()
            self._seen.clear()
            after(part)
        for name in self._open.copy():
            self._complete(name)  # some call of it had no part in the loss, or none was in the last part

    def parts(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """The whole batch, or as few parts of neighbours as keep within `ACTIVATIONS`."""
        if self._head is None or self.loss is not label_loss:
            return [examples]
        each = 8 * sum(m.d_in + m.d_out for m in self.base.outline.modules)
        most = max(1, ACTIVATIONS // (each * max(len(example.ids) for example in examples)))
        count = -(-len(examples) // most)
        edges = [len(examples) * k // count for k in range(count + 1)]
        return [examples[begin:end] for begin, end in itertools.pairwise(edges)]

    def _pass(self, batch: Batch, examples: Sequence[Example], learnt: int) -> None:
        """Through the output layer only as far as it is needed: on what is learnt, a bounded number at a time.

        `learnt`: completion tokens of the whole batch, over which its loss is a mean.
        """
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if self._head is None or self.loss not in (None, label_loss):
            logits = self.base.model(**given).logits
            if self.loss is not None:
                self.loss(logits, batch, examples).backward()  # type: ignore[no-untyped-call]
            return
        hidden = self._head.decoder(**given)[0][:, :-1]
        if self.loss is not None:
            counted = batch.labels[:, 1:] != IGNORED  # (B, T - 1)
            rows, targets = hidden[counted], batch.labels[:, 1:][counted]
            weights = torch.full(targets.shape, 1 / learnt, device=rows.device)
            rows.backward(self._head.losses(rows.detach(), targets, weights).gradient)

    @functools.cached_property
    def _head(self) -> Head | None:
        """The output layer; None where a module beyond the decoder is watched, or there is no telling them apart."""
        head = head_of(self.base.model)
        if head is None:
            return None
        inside = {id(module) for module in head.decoder.modules()}
        return head if all(id(self.base.model.get_submodule(name)) in inside for name in self.names) else None

    def counted(self, tensor: Tensor) -> Tensor:
        """(n, d) the rows of the batch that count, at least in float32.

        Rows that are not the batch's positions (those a router sent to an expert) count all.
        """
        rows = _rows_of(tensor)
        return rows if self._rows is None or len(rows) != self._positions else rows.index_select(0, self._rows)

    def _forward_hook(self, name: str, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self._pass_input_on(name, inputs[0])
        if self.loss is None:
            return None
        # The first modules of a frozen model have nothing before them that asks for a gradient.
        traced = output if output.requires_grad else output.detach().requires_grad_().clone()
        self._pending[name] += 1
        self._open.add(name)
        hook = partial(self._gradient_hook, name, _rows_of(inputs[0].detach()))
        traced.register_hook(hook)  # type: ignore[no-untyped-call]
        return traced

    def _pass_input_on(self, name: str, raw: Tensor) -> None:
        """Calls `on_input` with the rows that count, unless another module has had the same tensor."""
        found = self._seen.get(id(raw))
        shared = found is not None and found[0]() is raw  # the id of a freed tensor may be another's by now
        leader = found[1] if found and shared else name
        if self.leaders.setdefault(name, leader) != leader:
            raise TrainingError(f"{name} shares its input with {leader} in one batch only; it cannot be measured.")
        if not shared:
            self._seen[id(raw)] = (weakref.ref(raw), name)
            self.on_input(name, self.counted(raw.detach()))

    def _gradient_hook(self, name: str, x: Tensor, g: Tensor) -> None:
        self.on_gradient(name, x, _rows_of(g))
        self._pending[name] -= 1
        if self._last and not self._pending[name]:
            self._complete(name)

    def _complete(self, name: str) -> None:
        self._open.discard(name)
        self.on_complete(name)


def _rows_of(tensor: Tensor) -> Tensor:
    """(n, d) all rows, at least in float32."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.dtype.itemsize >= 4 else rows.float()
