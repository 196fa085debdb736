"""A bank over a sharded base: each rank trains adapters of its own on data of its own, and all pass in lock-step.

A block's weights are there while every rank gathers it, so that no rank may pass alone. Before an update or an
evaluation all agree on the number of passes, the largest that one of them needs; who needs fewer fills up with idle
passes, of a few positions and without effect, and so does who has finished. Nothing else is sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.bank_model import probe_examples, shortest_and_longest
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import BankBatch, current_batch
from adaptive_lora.training.evaluate import Evaluation, LossArrays
from adaptive_lora.training.gathering import begin_pass
from adaptive_lora.training.memory import is_out_of_memory
from adaptive_lora.training.packing import pack
from adaptive_lora.training.ranks import Ranks
from adaptive_lora.training.slots import Member


class ShardedBank(Bank):
    """This rank's part of a bank over `base`, which `shard_base` has sharded.

        with joined() as ranks:
            base = load_in_turn(lambda: load_base(name, folder), ranks)
            own = share(members, ranks.world)[ranks.rank]
            with ShardedBank(base, [members[i] for i in own], ranks) as bank:
                while bank.anywhere_running():
                    bank.step()
                evaluations = bank.evaluate(validation)

    All ranks open it with the same `how` (`Bank`'s arguments), and call `step` and `evaluate` equally often, whatever
    is left to do on their own. A rank without members takes part all the same. What a member becomes does not depend
    on the rank it is on. A pass that runs out of memory is not halved, as the others wait in it: TrainingError.
    """

    def __init__(
        self,
        base: FrozenBase,
        members: Sequence[Member],
        ranks: Ranks,
        texts: Sequence[Example] = (),
        **how: Any,
    ) -> None:
        self.ranks, self.idle_passes = ranks, 0
        self.own = len(members)
        """How many members are this rank's; if none, one of another's stands in and is not trained."""
        if 0 in (counts := ranks.gather(len(members))) and any(counts):
            every = ranks.gather(list(members[:1]))
            members = members or [idle(next(some[0] for some in every if some))]
        ends = self._ends([*texts, *(example for member in members for example in member.examples)])
        # The backward part gathers every block above the lowest layer of the bank: it must be the same on all ranks.
        adapted = set().union(*ranks.gather({shape.name for member in members for shape in member.plan.modules}))
        super().__init__(base, members, texts=ends, adapted=adapted, workers=1, **how)

    def anywhere_running(self) -> bool:
        """Whether any rank has updates left; all ranks ask together."""
        return self.ranks.most(len(self.running)) > 0

    def evaluate(
        self,
        examples: Sequence[Example],
        should_stop: Callable[[], bool] = lambda: False,
        members: Sequence[int] | None = None,
    ) -> list[Evaluation]:
        """`Bank.evaluate` of members of this rank, by default all."""
        self._layers.compare(self._ends(examples))
        return super().evaluate(examples, should_stop, range(self.own) if members is None else members)

    def gradients(self, members: Sequence[int], batches: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
        """As `Bank.gradients`: one pass."""
        with self._one_pass():
            return super().gradients(members, batches)

    def _evaluate(self, members: Sequence[int], examples: list[Example]) -> LossArrays:
        with self._one_pass():
            return super()._evaluate(members, examples)

    def _map(self, do: Callable[[Any], Any], units: Sequence[Any], training: bool) -> list[Any]:
        # Agreed on before the first pass: a rank that asked in the middle would wait for one that gathers.
        idle_passes = self.ranks.most(len(units)) - len(units)
        found = super()._map(do, units, training)
        for _ in range(idle_passes):
            self._pass_idly(training)
        return found

    def _pass_idly(self, training: bool) -> None:
        """Takes part in a pass of the others: the same blocks gathered, no adapter computed or changed."""
        begin_pass(self.base.model)
        packed = pack([probe_examples(self.base)[:1]], self.device, self.model.padded)
        with current_batch(BankBatch(packed, training=training)), torch.set_grad_enabled(training):
            hidden = self.model.hidden(packed)
            if training:
                hidden.backward(torch.zeros_like(hidden))
        self.idle_passes += 1

    def _ends(self, examples: Sequence[Example]) -> list[Example]:
        """The shortest and the longest text of all ranks: what is compared must be the same everywhere."""
        return shortest_and_longest([text for own in self.ranks.gather(shortest_and_longest(examples)) for text in own])

    @contextlib.contextmanager
    def _one_pass(self) -> Iterator[None]:
        begin_pass(self.base.model)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"Rank {self.ranks.rank} ran out of memory in a pass of at most {self.chunk_tokens} positions, and "
                "cannot halve it, since the other ranks are in it. Give fewer `chunk_tokens`, or use activation "
                "checkpointing."
            ) from error


def idle(member: Member) -> Member:
    """The member with no updates to do."""
    return replace(member, options=replace(member.options, steps=0))


def share(members: Sequence[Member], world: int) -> list[list[int]]:
    """Which members each rank trains, as indices in their order: alike many positions each, twins on one rank.

    Twins are equal in all that determines a run; on one rank, in one bank, they must come out bit-equal.
    """
    groups: list[list[int]] = []
    for i, member in enumerate(members):
        for group in groups:
            if _are_twins(members[group[0]], member):
                group.append(i)
                break
        else:
            groups.append([i])
    ranks: list[list[int]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for group in sorted(groups, key=lambda group: -sum(_positions(members[i]) for i in group)):
        least = loads.index(min(loads))
        ranks[least] += group
        loads[least] += sum(_positions(members[i]) for i in group)
    return [sorted(own) for own in ranks]


def _are_twins(one: Member, other: Member) -> bool:
    return one is other or (one.seed == other.seed and one.options == other.options and one.plan == other.plan
                            and list(one.examples) == list(other.examples))  # fmt: skip


def _positions(member: Member) -> float:
    """Of all its updates, about."""
    each = sum(len(example.ids) for example in member.examples) / max(1, len(member.examples))
    return each * member.options.batch_size * member.options.steps
