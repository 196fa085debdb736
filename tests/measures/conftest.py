"""What the tests of short runs share: small ones, banks that record what they are given, and the state of a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.request import MakeBank, PlannedTraining, Request
from adaptive_lora.measures.short_run import ShortRun, Weights, first_error, train_short_runs
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.planning.strategies.base import CalibrationOptions
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.options import TrainingOptions
from tests.training.conftest import demo_examples
from tests.training.conftest import one_thread as one_thread

RANK = 4
"""The uniform rank of the runs; its scaling is 3 · 2 / 4."""


def options(**changes: Any) -> TrainingOptions:
    """Five a batch, which does not divide the examples."""
    return TrainingOptions(**{"learning_rate": 2e-2, "steps": 50, "batch_size": 5, **changes})


def short_of(base: FrozenBase, count: int = 24, bank: MakeBank = Bank, **changes: Any) -> ShortRun:
    """Short runs on all modules of a base; options of the training among the changes are its own."""
    training = {name: changes.pop(name) for name in list(changes) if name in TrainingOptions.__dataclass_fields__}
    given = {
        "base": base, "modules": base.outline.modules, "examples": demo_examples(base, count),
        "training": PlannedTraining(options(**{"steps": 6, **training}), bank),
        "budget": RANK * sum(m.params_per_rank for m in base.outline.modules),
        "scaling": Scaling("alpha-over-r", 3.0, 2.0), "seed": 5,
    }  # fmt: skip
    return ShortRun(**{**given, **changes})


def request_of(base: FrozenBase, asked: CalibrationOptions, bank: MakeBank = Bank, **changes: Any) -> Request:
    """A request whose short runs are those of `short_of`; options of the training among the changes are its own."""
    training = {name: changes.pop(name) for name in list(changes) if name in TrainingOptions.__dataclass_fields__}
    given = {
        "base": base, "modules": base.outline.modules, "examples": tuple(demo_examples(base, 24)), "options": asked,
        "seed": 5, "budget": RANK * sum(m.params_per_rank for m in base.outline.modules),
        "scaling": Scaling("alpha-over-r", 3.0, 2.0),
        "training": PlannedTraining(options(**{"steps": 6, **training}), bank),
    }  # fmt: skip
    return Request(**{**given, **changes})


def trained(short: ShortRun, seeds: Sequence[int], plan: RankPlan | None = None) -> list[Weights]:
    """The weights of runs with these seeds; raises where one diverged."""
    found = train_short_runs(short, [short.member(seed, plan) for seed in seeds])
    if error := first_error(found):
        raise error
    return [weights for weights in found if not isinstance(weights, Exception)]


def in_threes(examples: Sequence[Example], count: int = 9) -> list[list[Example]]:
    """Batches of three examples of different lengths."""
    return [list(examples[at : at + 3]) for at in range(0, count, 3)]


class Recorder:
    """Records what banks are given, from their making to their judging."""

    def __init__(self) -> None:
        self.members: list[list[Member]] = []
        self.judges: list[list[Example]] = []
        self.updates = 0
        self.tokens: list[int] = []

    def bank(self) -> MakeBank:
        """Makes banks that record; their tokens stand by bank."""
        record = self

        class Recording(Bank):
            def __init__(self, base: FrozenBase, members: Sequence[Member]) -> None:
                super().__init__(base, members)
                record.members.append(list(members))
                record.tokens.append(0)

            def step(self) -> Any:
                found = super().step()
                record.updates += len(found)
                record.tokens[-1] += sum(self.tokens.values())
                return found

            def evaluate(self, examples: Sequence[Example], *more: Any, **how: Any) -> list[Evaluation]:
                record.judges.append(list(examples))
                return super().evaluate(examples, *more, **how)

        return Recording


def failing_bank(base: FrozenBase, members: Sequence[Member]) -> Bank:
    """A bank that breaks at its third update."""

    class Failing(Bank):
        def step(self) -> Any:
            if self.slots[0].step == 2:
                raise OSError("cut")
            return super().step()

    return Failing(base, members)


def inner_state(base: FrozenBase) -> list[Any]:
    """Which modules and weights a base has; the same list as long as nothing was done to it."""
    return [
        *((name, type(module).__name__) for name, module in base.model.named_modules()),
        *((name, float(p.detach().double().square().sum())) for name, p in base.model.named_parameters()),
    ]


def assert_clean(base: FrozenBase, before: list[Any]) -> None:
    """The base is frozen, bare, and what it was."""
    assert inner_state(base) == before
    assert not hasattr(base.model, "peft_config") and not base.model.training
    for module in base.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


def merge(base: FrozenBase, updates: dict[str, torch.Tensor]) -> None:
    """Adds ΔW (d_out, d_in) to the weights."""
    for m in base.outline.modules:
        update = updates[m.name]
        base.model.get_submodule(m.name).weight.data += update.t() if m.fan_in_fan_out else update
