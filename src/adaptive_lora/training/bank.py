"""The bank: many adapters trained at once over one frozen base, each as if it were alone.

An update is the reference engine's (`reference.py`), for every member: its own batch, its own loss
Σ nll / Σ tokens, its own clipping, AdamW, learning rate and dropout. What is shared is the pass through the base.
Members are computed in chunks that keep activations in the CPU's caches or fit the accelerator's memory; on the
CPU each core takes a chunk of its own.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.training.bank_model import BankModel, OpenModel, probe_examples
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.current_batch import BankBatch, current_batch
from adaptive_lora.training.evaluate import Evaluation, LossArrays, batches_by_length, empty_evaluation, in_halves
from adaptive_lora.training.head import TokenLosses
from adaptive_lora.training.lora_layer import MultiLoraLinear
from adaptive_lora.training.memory import give_back, is_out_of_memory, positions_at_once, saved_bytes
from adaptive_lora.training.optimizer import checked_updates
from adaptive_lora.training.packing import BLOCK, Pack, chunks_of, pack, positions_of, size_class, sum_by
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.slots import Member, make_adapters

__all__ = ["Bank", "Member"]

_CPU_CHUNK, _ACCELERATOR_CHUNK = 4096, 32768
"""Positions in one pass through the base; on the CPU about what keeps a chunk's activations in the caches."""


class Bank:
    """K adapters in training. Use as a context: inside, the base model carries the bank's layers.

        with Bank(base, members) as bank:
            while bank.running:
                bank.step()
            evaluations = bank.evaluate(validation)

    `chunk_tokens` bounds the positions of one pass (a single member's batch is never split), `workers`
    the number of passes at a time, `checkpointing` recomputes activations in the backward pass, `stacked`
    multiplies all adapters of a pass in one call (the default on accelerators). `texts` will be evaluated: they and the
    members' examples are what its pass is compared on with the model's own (`OpenModel`). `adapted` modules get the
    bank's layer even where no member adapts them.
    """

    def __init__(
        self,
        base: FrozenBase,
        members: Sequence[Member],
        chunk_tokens: int | None = None,
        workers: int | None = None,
        checkpointing: bool = False,
        stacked: bool | None = None,
        texts: Sequence[Example] = (),
        adapted: Collection[str] = (),
    ) -> None:
        if not members:
            raise TrainingError("A bank needs at least one adapter.")
        self.base, self.device, on_cpu = base, base.device, base.device.type == "cpu"
        self.chunk_tokens = chunk_tokens or (_CPU_CHUNK if on_cpu else _ACCELERATOR_CHUNK)
        self._fit_chunks, self._threads = chunk_tokens is None, torch.get_num_threads()
        self.workers = (workers or self._threads) if on_cpu else 1
        stacked = not on_cpu if stacked is None else stacked
        self._dtype = dtype = next(base.model.parameters()).dtype
        modules = {shape.name: shape for shape in base.outline.modules if shape.name in adapted}
        modules |= {shape.name: shape for member in members for shape in member.plan.modules}
        ordered = {m.name: modules[m.name] for m in base.outline.modules if m.name in modules}
        # Adapters of half-precision models are kept in float32: their updates are too small for 8 or 11 bits.
        masters = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        widths = {shape.name: shape.d_in for shape in base.outline.modules}
        self._adapters = make_adapters(members, ordered, widths, base.device, masters, stacked)
        self.slots = self._adapters.slots
        self.tokens: dict[int, int] = {}
        """By member, the tokens of its last update."""
        self._positions, self._stopped = dict[int, int](), set[int]()
        self._counts, self._lock = Counter[str](), threading.Lock()
        layers = {name: functools.partial(MultiLoraLinear, name=name) for name in ordered}
        self._layers = OpenModel(base, layers, checkpointing, [*texts, *(e for m in members for e in m.examples)])
        self._open = contextlib.ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._layers.close)
            self._layers.compare()
            if self.workers > 1:
                # One thread per pass: no waiting at the end of every small product, and the same numbers
                # whatever the number of cores.
                self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))
                stack.callback(torch.set_num_threads, self._threads)
                stack.callback(self._pool.shutdown)
            if self._fit_chunks:
                fitting = positions_at_once(self.device, self.bytes_per_position(), self.workers)
                self.chunk_tokens = min(self.chunk_tokens, fitting)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        self._pool = None

    @property
    def model(self) -> BankModel:
        """How the base model is run; only inside the `with` block."""
        assert self._layers.current is not None, "a bank is used inside its `with` block"
        return self._layers.current

    @property
    def kernels(self) -> str:
        """What computes an open bank, such as `compiled attention, compiled lora, tiled products`."""
        if self._block == 1:
            return ", ".join(sorted(self.model.kernels))
        # The model was tried without adapters, and so without batched products.
        return ", ".join([*sorted(name for name in self.model.kernels if not name.endswith("lora")), "batched lora"])

    @property
    def running(self) -> list[int]:
        """The members that have updates left and were not stopped."""
        return [i for i, s in enumerate(self.slots) if i not in self._stopped and s.step < s.member.options.steps]

    @property
    def padding_share(self) -> float:
        """Share of all positions computed in training that held no token."""
        found = self._counts
        return 1 - found["tokens"] / found["positions"] if found["positions"] else 0.0

    def bytes_per_position(self) -> int:
        """Activations saved for the backward pass, per computed position (padding and filling included); measured.

        Logits are not among them: `Head.losses` bounds them by itself.
        """
        self._adapters.refresh(self._dtype)
        batch = self._batch([0], [probe_examples(self.base)], training=True)
        flags = max(slot.masks.bytes_per_token(self.device) for slot in self.slots)
        with current_batch(batch), torch.enable_grad():
            return flags + saved_bytes(self.base.model, lambda: self.model.hidden(batch.pack)) // batch.pack.size

    def stop(self, member: int) -> None:
        """Ends the training of a member; its parameters remain as they are."""
        self._stopped.add(member)

    def step(self) -> list[StepRecord | Diverged | None]:
        """One update of every running member; None for the others.

        A member whose loss or gradient is not finite is stopped before anything is applied, and its result is a
        Diverged. If memory runs out, passes are halved and the update is repeated.
        """
        results: list[StepRecord | Diverged | None] = [None] * len(self.slots)
        batches = {i: self.slots[i].member.batch(self.slots[i].step) for i in self.running}
        self.tokens, chunks = positions_of(batches), self._chunks(batches)
        for chunk, outcomes in zip(chunks, self._map(lambda c: self._update(c, batches), chunks, True), strict=True):
            for i, outcome in zip(chunk, outcomes, strict=True):
                results[i] = outcome
                if isinstance(outcome, Diverged):
                    self.stop(i)
        return results

    def evaluate(
        self,
        examples: Sequence[Example],
        should_stop: Callable[[], bool] = lambda: False,
        members: Sequence[int] | None = None,
    ) -> list[Evaluation]:
        """Evaluates members, by default all, stopped ones too, on the same examples; uses no randomness.

        `should_stop` is called between passes; True raises KeyboardInterrupt.
        """
        self._layers.compare(examples)
        self._adapters.refresh(self._dtype)
        batches = list(batches_by_length(examples, min(self.chunk_tokens, 4096)))
        chosen = list(range(len(self.slots)) if members is None else members)
        several = 1 if self.device.type == "cpu" else max(1, self.chunk_tokens // 4096)
        groups = [chosen[at : at + several] for at in range(0, len(chosen), several)]
        found = {i: empty_evaluation(len(examples)) for i in chosen}

        def evaluate_some(group: list[int], rows: list[int]) -> LossArrays:
            if should_stop():
                raise KeyboardInterrupt
            return self._evaluate(group, [examples[i] for i in rows])

        def fill(unit: tuple[list[int], list[int]]) -> None:
            for group, rows, arrays in in_halves(evaluate_some, *unit):
                for i, nll, tokens, exact in zip(group, *arrays, strict=True):
                    found[i].nll[rows], found[i].tokens[rows], found[i].exact[rows] = nll, tokens, exact

        self._map(fill, [(group, rows) for group in groups for rows in batches], False)
        return [found[i] for i in chosen]

    def gradients(self, members: Sequence[int], batches: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
        """Adds the gradient of each member's mean loss on its batch to its vector; returns losses and token counts."""
        batch = self._batch(members, batches, training=True)
        packed = batch.pack
        tokens = sum_by(torch.tensor(packed.counts), torch.tensor(packed.owners), len(members))
        with current_batch(batch), torch.enable_grad():
            hidden = self.model.hidden(packed)[packed.keep]
            exact = torch.float64 if self._dtype == torch.float64 else torch.float32
            # Each member's own token count is in the weights, so that one backward pass serves all losses.
            shares = [1 / n if n else math.nan for n in tokens.tolist()]
            owners = torch.tensor(packed.owners, device=self.device)[packed.sequence]
            weights = torch.tensor(shares, dtype=exact, device=self.device)[owners]
            losses = self._losses(hidden.detach(), packed, weights)
            hidden.backward(losses.gradient)
        sums = sum_by(losses.nll, owners, len(members)).tolist()
        with self._lock:
            self._counts.update(positions=packed.size, tokens=sum(packed.tokens))
        return [(s / n if n else math.nan, int(n)) for s, n in zip(sums, tokens.tolist(), strict=True)]

    def take_gradients(self, batches: Mapping[int, Sequence[Example]]) -> None:
        """The gradient of each member's mean loss on its batch, alone in its vector; nothing is updated."""
        self._map(lambda members: self._anew(members, batches), self._chunks(batches), True)

    def _chunks(self, batches: Mapping[int, Sequence[Example]]) -> list[list[int]]:
        # Before any pass: all passes of a step read the copies, and none may see another's update.
        self._adapters.refresh(self._dtype)
        self._positions = positions_of(batches, self.model.padded, self._block)
        return chunks_of(self._positions, self.chunk_tokens, self.workers)

    def _update(self, members: Sequence[int], batches: Mapping[int, Sequence[Example]]) -> list[StepRecord | Diverged]:
        losses, slots = self._anew(members, batches), [self.slots[i] for i in members]
        # The norm comes before clipping, and nothing is applied to a member before both are known to be finite.
        norms = torch.stack(torch._foreach_norm([slot.gradient for slot in slots])).tolist()
        return checked_updates(slots, losses, norms)

    def _anew(self, members: Sequence[int], batches: Mapping[int, Sequence[Example]]) -> list[tuple[float, int]]:
        """`gradients` from 0; of halves of the members where memory runs out."""
        # Here and not after an update: a pass that ran out of memory has added some of the gradients already.
        torch._foreach_zero_([self.slots[i].gradient for i in members])
        try:
            return self.gradients(members, [batches[i] for i in members])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(members) == 1:
                raise
        # Outside the handler: the error holds the frames, and they hold the memory.
        self._back_off(sum(self._positions[i] for i in members))
        half = len(members) // 2
        return self._anew(members[:half], batches) + self._anew(members[half:], batches)

    def _back_off(self, tried: int) -> None:
        """Halves the passes after one of `tried` positions ran out of memory."""
        with self._lock:
            self.chunk_tokens = max(1, min(self.chunk_tokens, tried // 2))
        give_back()

    @torch.no_grad()
    def logits(self, member: int, examples: Sequence[Example]) -> Tensor:
        """A member's logits of every completion token of the examples, (C, V), one example after another."""
        self._layers.compare(examples)
        self._adapters.refresh(self._dtype)
        with current_batch(batch := self._batch([member], [examples], training=False)):
            return self.model.head.logits(self.model.hidden(batch.pack)[batch.pack.keep])

    @torch.no_grad()
    def _evaluate(self, members: Sequence[int], examples: list[Example]) -> LossArrays:
        with current_batch(batch := self._batch(members, [examples] * len(members), training=False)):
            packed = batch.pack
            losses = self._losses(self.model.hidden(packed)[packed.keep], packed, None)
        sequences = len(packed.counts)
        nll = sum_by(losses.nll.double(), packed.sequence, sequences)
        wrong = sum_by((~losses.correct).double(), packed.sequence, sequences)
        by_sequence = (nll.numpy(), np.array(packed.counts), (wrong == 0).numpy())
        texts = [i for i in range(sequences) if i not in packed.fillers]
        summed, counts, exact = (x[texts].reshape(len(members), -1) for x in by_sequence)
        return summed, counts, exact

    @property
    def _block(self) -> int:
        return BLOCK if self._adapters.stacks and not self.model.padded else 1

    def _batch(self, members: Sequence[int], batches: Sequence[Sequence[Example]], training: bool) -> BankBatch:
        padded, block, size = self.model.padded, self._block, None
        if block > 1:
            needed = sum(positions_of(dict(enumerate(batches)), padded, block).values())
            size = size_class(needed, self.chunk_tokens)
        packed = pack(batches, self.device, padded, block, size)
        # Padded rows are not multiples of a block: their adapters are multiplied one by one.
        stacks = {} if padded else self._adapters.stacks
        return BankBatch(packed, [self.slots[i] for i in members], training, stacks, self.model.kernels)

    def _losses(self, hidden: Tensor, packed: Pack, weights: Tensor | None) -> TokenLosses:
        return self.model.head.losses(hidden, packed.targets, weights)

    def _map(self, do: Callable[[Any], Any], units: Sequence[Any], training: bool) -> list[Any]:
        """`do` of every unit, one pass each, in parallel if there are several workers; results in the units' order."""
        if self._pool is None or len(units) == 1:
            return [do(unit) for unit in units]
        return list(self._pool.map(do, units))
