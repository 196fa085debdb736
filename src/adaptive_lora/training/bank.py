"""The bank: many adapters trained at once over one frozen base, each as if it were alone.

An update is the reference engine's (`reference.py`), for every member: its own batch, its own loss
Σ nll / Σ tokens, its own clipping, AdamW, rate and dropout. What is shared is the pass through the base.
Members are taken through it in chunks of so many tokens that activations stay in the caches of a
processor, or in the memory of an accelerator; on processors each core takes a chunk of its own.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.training.adapted import AdaptedLinear
from adaptive_lora.training.attachment import Form, attachment, probe_examples
from adaptive_lora.training.attention import at_work
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.evaluate import Evaluation, Measured, batches_of, blank, measured
from adaptive_lora.training.head import TokenLosses
from adaptive_lora.training.memory import is_out_of_memory, tokens_at_once
from adaptive_lora.training.mixes import BLOCK, Work
from adaptive_lora.training.optimizer import apply_slot
from adaptive_lora.training.packing import Pack, chunks_of, pack
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.slots import Member, make_slots

__all__ = ["Bank", "Member"]

CHUNK_TOKENS = {"cpu": 4096}
"""Positions in one pass through the base; on processors about what keeps a chunk's activations near the cores."""
_CHUNK_TOKENS = 32768


@dataclass
class _Counts:
    """Positions computed and tokens among them, over all updates."""

    positions: int = 0
    tokens: int = 0


class Bank:
    """K adapters in training. Use as a context: inside, the base model carries the bank's layers.

        with Bank(base, members) as bank:
            while bank.running:
                bank.step()
            evaluations = bank.evaluate(validation)

    `chunk_tokens` bounds the positions of one pass (a single member's batch is never split), `workers`
    the passes at a time, `checkpointing` recomputes activations on the way back, `stacked` multiplies all
    adapters of a pass in one call (the habit on accelerators).
    """

    def __init__(
        self,
        base: FrozenBase,
        members: Sequence[Member],
        chunk_tokens: int | None = None,
        workers: int | None = None,
        checkpointing: bool = False,
        stacked: bool | None = None,
    ) -> None:
        if not members:
            raise TrainingError("A bank needs at least one adapter.")
        self.base, self.device = base, base.device
        on_cpu = base.device.type == "cpu"
        self.chunk_tokens = chunk_tokens or CHUNK_TOKENS.get(base.device.type, _CHUNK_TOKENS)
        self._measures = chunk_tokens is None
        self._threads = torch.get_num_threads()
        self.workers = (workers or self._threads) if on_cpu else 1
        self._checkpointing = checkpointing
        stacked = not on_cpu if stacked is None else stacked
        dtype = next(base.model.parameters()).dtype
        modules = {shape.name: shape for member in members for shape in member.plan.modules}
        ordered = {shape.name: modules[shape.name] for shape in base.outline.modules if shape.name in modules}
        self._dtype = dtype
        masters = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        widths = {shape.name: shape.d_in for shape in base.outline.modules}
        self._all = make_slots(members, ordered, widths, base.device, masters, stacked)
        self.slots = self._all.slots
        self._layers = ordered
        self.tokens: dict[int, int] = {}
        """By member, the tokens of its last update."""
        self._stopped: set[int] = set()
        self._counts, self._lock = _Counts(), threading.Lock()
        self._open = contextlib.ExitStack()
        self._form: Form | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Bank:
        with contextlib.ExitStack() as stack:
            make = {name: _layer_of(name) for name in self._layers}
            self._form = stack.enter_context(attachment(self.base, make, self._checkpointing))
            if self.workers > 1:
                # One thread a pass: no waiting at the end of every small product, and the same numbers
                # whatever the number of cores.
                self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))
                stack.callback(torch.set_num_threads, self._threads)
                stack.callback(self._pool.shutdown)
            if self._measures:
                fits = tokens_at_once(self.device, self.bytes_per_token(), self.workers)
                self.chunk_tokens = min(self.chunk_tokens, fits)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        self._form = self._pool = None

    @property
    def running(self) -> list[int]:
        """The members that have updates left and were not stopped."""
        return [i for i, s in enumerate(self.slots) if i not in self._stopped and s.step < s.member.options.steps]

    @property
    def padding_share(self) -> float:
        """Share of all positions computed in training that held no token."""
        return 1 - self._counts.tokens / self._counts.positions if self._counts.positions else 0.0

    def bytes_per_token(self) -> int:
        """Activations kept for the way back, by position: measured on a few tokens."""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        examples = probe_examples(self.base)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._all.refresh(self._dtype)
            self.gradients([0], [examples])
        self.slots[0].gradient.zero_()
        self._counts = _Counts()
        weights = {p.untyped_storage().data_ptr() for p in self.base.model.parameters()}
        total = sum(size for place, size in kept.items() if place not in weights)
        return total // sum(len(example.ids) for example in examples)

    def stop(self, member: int) -> None:
        """Takes a member out of training; its parameters stay as they are."""
        self._stopped.add(member)

    def step(self) -> list[StepRecord | Diverged | None]:
        """One update of every running member; nothing for the others.

        A member whose loss or gradient is not finite is stopped before anything is applied, and Diverged
        stands in its place. Out of memory, the passes become smaller and the update is made again.
        """
        results: list[StepRecord | Diverged | None] = [None] * len(self.slots)
        running = self.running
        batches = {i: self.slots[i].member.batch(self.slots[i].step) for i in running}
        self._all.refresh(self._dtype)
        self.tokens = {i: sum(len(example.ids) for example in batch) for i, batch in batches.items()}
        chunks = chunks_of(self.tokens, self.chunk_tokens, self.workers)
        for chunk, outcomes in zip(chunks, self._each(lambda c: self._update(c, batches), chunks), strict=True):
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
        """Some members, by default all, stopped ones too, on the same examples; consumes no randomness.

        `should_stop` is asked between passes; a yes is raised as KeyboardInterrupt.
        """
        self._all.refresh(self._dtype)
        batches = list(batches_of(examples, min(self.chunk_tokens, 4096)))
        several = 1 if self.device.type == "cpu" else max(1, self.chunk_tokens // 4096)
        chosen = list(range(len(self.slots)) if members is None else members)
        groups = [chosen[at : at + several] for at in range(0, len(chosen), several)]
        found = {i: blank(len(examples)) for i in chosen}

        def measure(group: list[int], at: list[int]) -> Measured:
            if should_stop():
                raise KeyboardInterrupt
            return self._measure(group, [examples[i] for i in at])

        def fill(unit: tuple[list[int], list[int]]) -> None:
            for group, at, rows in measured(measure, *unit):
                for i, nll, tokens, exact in zip(group, *rows, strict=True):
                    found[i].nll[at], found[i].tokens[at], found[i].exact[at] = nll, tokens, exact

        self._each(fill, [(group, at) for group in groups for at in batches])
        return [found[i] for i in chosen]

    def gradients(self, members: Sequence[int], batches: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
        """Adds the gradient of each member's mean loss on its batch to its vector; gives loss and token count."""
        work = self._work(members, batches, training=True)
        tokens = _sum_by(torch.tensor(work.pack.counts), torch.tensor(work.pack.owners), len(members))
        with at_work(work), torch.enable_grad():
            hidden = self._hidden(work.pack)
            exact = torch.float64 if self._dtype == torch.float64 else torch.float32
            shares = [1 / n if n else math.nan for n in tokens.tolist()]
            owners = torch.tensor(work.pack.owners, device=self.device)[work.pack.sequence]
            weights = torch.tensor(shares, dtype=exact, device=self.device)[owners]
            losses = self._losses(hidden.detach(), work.pack, weights)
            hidden.backward(losses.gradient)
        sums = _sum_by(losses.nll, owners, len(members)).tolist()
        with self._lock:
            self._counts.positions += work.pack.size
            self._counts.tokens += sum(work.pack.tokens)
        return [(s / n if n else math.nan, int(n)) for s, n in zip(sums, tokens.tolist(), strict=True)]

    def _update(self, members: Sequence[int], batches: dict[int, list[Example]]) -> list[StepRecord | Diverged]:
        slots = [self.slots[i] for i in members]
        for slot in slots:
            slot.gradient.zero_()
        try:
            losses = self.gradients(members, [batches[i] for i in members])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(members) == 1:
                raise
        else:
            norms = torch.stack([torch.linalg.vector_norm(slot.gradient) for slot in slots]).tolist()
            return [apply_slot(s, *loss, norm) for s, loss, norm in zip(slots, losses, norms, strict=True)]
        # Outside the handler: the error holds the frames, and they the memory.
        self._back_off(sum(self.tokens[i] for i in members))
        half = len(members) // 2
        return self._update(members[:half], batches) + self._update(members[half:], batches)

    def _back_off(self, tried: int) -> None:
        """Passes become half as large as one of `tried` tokens, which did not fit."""
        with self._lock:
            self.chunk_tokens = max(1, min(self.chunk_tokens, tried // 2))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def logits(self, member: int, examples: Sequence[Example]) -> Tensor:
        """What a member says of every completion token of the examples, (C, V), one example after another."""
        work = self._work([member], [examples], training=False)
        assert self._form is not None
        with at_work(work):
            return self._form.head.logits(self._hidden(work.pack))

    @torch.no_grad()
    def _measure(self, members: Sequence[int], examples: list[Example]) -> Measured:
        """Summed loss, tokens and whether all were right, (members, examples)."""
        work = self._work(members, [examples] * len(members), training=False)
        with at_work(work):
            losses = self._losses(self._hidden(work.pack), work.pack, None)
        rows = len(work.pack.counts)
        nll = _sum_by(losses.nll.double(), work.pack.sequence, rows)
        wrong = _sum_by((~losses.right).double(), work.pack.sequence, rows)
        counts = np.array(work.pack.counts)
        parts = [x.reshape(len(members), -1)[:, : len(examples)] for x in (nll.cpu().numpy(), counts)]
        exact = (wrong == 0).cpu().numpy().reshape(len(members), -1)[:, : len(examples)]
        return parts[0], parts[1], exact

    def _work(self, members: Sequence[int], batches: Sequence[Sequence[Example]], training: bool) -> Work:
        assert self._form is not None, "a bank works inside its `with` alone"
        block = BLOCK if self._all.stacks and not self._form.padded else 1
        packed = pack(batches, self.device, self._form.padded, block)
        stacks = self._all.stacks if not self._form.padded else {}
        return Work(packed, [self.slots[i] for i in members], training, stacks)

    def _hidden(self, packed: Pack) -> Tensor:
        """Hidden states of the positions that count, (C, d)."""
        assert self._form is not None
        return self._form.hidden(packed)[packed.keep]

    def _losses(self, hidden: Tensor, packed: Pack, weights: Tensor | None) -> TokenLosses:
        assert self._form is not None
        return self._form.head.losses(hidden, packed.targets, weights)

    def _each(self, do: Callable[[Any], Any], units: Iterable[Any]) -> list[Any]:
        """`do` of every unit, by the workers where there are several."""
        units = list(units)
        if self._pool is None or len(units) == 1:
            return [do(unit) for unit in units]
        return list(self._pool.map(do, units))


def _layer_of(name: str) -> Callable[[torch.nn.Module], torch.nn.Module]:
    return lambda base: AdaptedLinear(base, name)


def _sum_by(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums of the values of each group, (groups,), in order."""
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add_(0, group.to(values.device), values)
