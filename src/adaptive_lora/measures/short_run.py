"""Short training runs before ranks are planned: what they imitate, and many of them in one bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import Tick, no_tick
from adaptive_lora.measures.request import PlannedTraining, Request
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.memory import members_at_once
from adaptive_lora.training.options import DataOrder

T = TypeVar("T")

Weights = Mapping[str, tuple[Tensor, Tensor]]
"""A (R, d_in) and B (d_out, R) by module."""

INPUTS = ("seed", "examples", "training", "scaling")
"""What every short run depends on, besides its parameters."""


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """What the short runs of one measurement have in common."""

    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    examples: Sequence[Example]
    """Training examples."""
    training: PlannedTraining
    """With the steps and the learning rate of these runs."""
    budget: int
    """Trainable parameters of a run."""
    scaling: Scaling
    seed: int

    @property
    def steps(self) -> int:
        """Updates of a run."""
        return self.training.options.steps

    def plan(self) -> RankPlan:
        """A uniform plan on the budget, or as much of it as the modules can hold."""
        most = sum(m.params_per_rank * m.largest_rank for m in self.modules)
        ranks = spend(self.modules, {m.name: 1.0 for m in self.modules}, min(most, self.budget))
        return RankPlan("uniform", total_cost(self.modules, ranks), self.modules, ranks, self.scaling)

    def member(self, seed: int, plan: RankPlan | None = None) -> Member:
        """A run with its own seed, of some plan or the uniform one."""
        return Member(plan=plan or self.plan(), options=self.training.options, seed=seed, examples=self.examples)

    def facts(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What runs with these seeds cost."""
        return {
            "short_runs": len(seeds),
            "short_run_steps": self.steps,
            "short_run_parameters": self.plan().trainable_parameters,
            "short_run_tokens": sum(map(self.tokens, seeds)),
        }

    def tokens(self, seed: int) -> int:
        """How many tokens a run with this seed sees."""
        order = DataOrder(seed, len(self.examples), self.training.options.batch_size)
        return sum(len(self.examples[i].ids) for step in range(self.steps) for i in order.batch(step))


def short_run_of(request: Request, budget: int) -> ShortRun:
    """Short runs with so many parameters, as a request asks for them."""
    return ShortRun(
        base=request.base, modules=request.modules, examples=request.examples, training=request.short_training,
        budget=budget, scaling=request.scaling, seed=request.seed,
    )  # fmt: skip


def train_in_banks(
    short: ShortRun, members: Sequence[Member], read: Callable[[Bank, int, int], T], tick: Tick = no_tick
) -> list[T]:
    """Trains all members side by side, in as few banks as memory allows; `short` gives base and bank.

    `read(bank, i, k)` is called at the end for member k of all, which is member i of its bank.
    """
    size = members_at_once(short.base, [member.plan for member in members])
    banks = [members[at : at + size] for at in range(0, len(members), size)]
    updates = [max(member.options.steps for member in own) for own in banks]
    found: list[T] = []
    done = 0
    for own in banks:
        with short.training.bank(short.base, own) as bank:
            while bank.running:
                bank.step()
                done += 1
                tick(done, sum(updates))
            found += [read(bank, i, len(found) + i) for i in range(len(own))]
    return found


def train_short_runs(short: ShortRun, members: Sequence[Member], tick: Tick = no_tick) -> list[Weights | TrainingError]:
    """The weights of every member at the end; an error in the place of one that diverged."""

    def read(bank: Bank, i: int, _: int) -> Weights | TrainingError:
        slot = bank.slots[i]
        if slot.step < slot.member.options.steps:
            return TrainingError(
                f"A short run diverged at step {slot.step} of {slot.member.options.steps}, so no ranks can be planned "
                "from it. Try a lower learning rate, or a lower `short_run_learning_rate` for these runs alone."
            )
        return slot.weights()

    return train_in_banks(short, members, read, tick)


def first_error(found: Sequence[Weights | TrainingError]) -> TrainingError | None:
    """The first error among results of runs."""
    return next((each for each in found if isinstance(each, TrainingError)), None)
