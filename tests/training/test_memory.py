"""Memory: how much there is, what a bank takes of it, and what it does where there is too little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.training import attachment, memory
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.memory import free_bytes, is_out_of_memory, members_at_once, state_bytes, tokens_at_once
from tests.conftest import mixed_plan
from tests.training.conftest import SAME, assert_close, by_bank, demo_examples, seven_members


def refuse(*_: object) -> None:
    raise ValueError("not here")


def refuse_for(error: type[BaseException]) -> Any:
    raise error


CPU = torch.device("cpu")
OUT = [
    MemoryError("no memory for attention's working space"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Tight:
    """Stands for `Bank.gradients` on a machine with room for so many members at once."""

    def __init__(self, bank: Bank, room: int, error: BaseException) -> None:
        self._plain, self._room, self._error, self.asked = bank.gradients, room, error, [0]

    def __call__(self, members: Sequence[int], batches: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
        found = self._plain(members, batches)  # memory runs out late: some gradients have been added by then
        self.asked.append(len(members))
        if len(members) > self._room:
            raise self._error
        return found


HOWS: list[tuple[BaseException, dict[str, Any]]] = [(OUT[0], {}), (OUT[1], {"workers": 2}), (OUT[2], {"stacked": True})]


@pytest.mark.parametrize(("error", "how"), HOWS, ids=["one worker", "two workers", "stacked"])
def test_out_of_memory_the_passes_become_smaller_and_the_training_stays(
    exact: FrozenBase, error: BaseException, how: dict[str, Any]
) -> None:
    members = seven_members(exact, steps=4)
    wanted = by_bank(exact, members, **how)
    with Bank(exact, members, chunk_tokens=4096, **how) as bank:
        bank.gradients = tight = Tight(bank, 1, error)  # type: ignore[method-assign, assignment]
        bank.step()
        assert max(tight.asked) > 1 and bank.chunk_tokens < 4096
        one = max(bank.tokens.values())
        assert one // 2 <= bank.chunk_tokens <= 2 * one  # half of the smallest pass that failed: two members
        while bank.running:
            bank.step()
        for slot, alone in zip(bank.slots, wanted, strict=True):
            assert_close(slot.tensors(), alone.last, room=100 * SAME)
            for name, tensor in alone.last.items():
                if name.startswith("parameter/"):
                    assert (slot.tensors()[name] - tensor).abs().max() <= SAME * tensor.abs().max()


def test_what_is_learnt_of_the_room_is_kept(exact_gpt2: FrozenBase) -> None:
    """Passes that were too large are not tried again at every step."""
    with Bank(exact_gpt2, seven_members(exact_gpt2), chunk_tokens=4096) as bank:
        bank.gradients = tight = Tight(bank, 2, MemoryError())  # type: ignore[method-assign, assignment]
        for _ in range(6):
            bank.step()
        tight.asked.clear()
        for _ in range(3):
            bank.step()
        assert max(tight.asked) <= 2


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_a_member_that_does_not_fit_alone_is_an_error(exact_gpt2: FrozenBase, error: BaseException) -> None:
    with Bank(exact_gpt2, seven_members(exact_gpt2)) as bank:
        bank.gradients = Tight(bank, 0, error)  # type: ignore[method-assign, assignment]
        with pytest.raises(type(error)):
            bank.step()
        assert [slot.step for slot in bank.slots] == [0] * 7


@pytest.mark.parametrize("room", [1, 5, 40])
def test_out_of_memory_while_evaluating_less_is_taken_at_once(exact_gpt2: FrozenBase, room: int) -> None:
    """Room for so many members times examples."""
    examples = demo_examples(exact_gpt2, 12)
    with Bank(exact_gpt2, seven_members(exact_gpt2), stacked=True) as bank:
        bank.step()
        wanted, plain = bank.evaluate(examples), bank._measure

        def tight(members: Sequence[int], rows: list[Example]) -> Any:
            if len(members) * len(rows) > room:
                raise MemoryError
            return plain(members, rows)

        bank._measure = tight  # type: ignore[method-assign]
        for found, other in zip(bank.evaluate(examples), wanted, strict=True):
            assert found.nll == pytest.approx(other.nll, rel=SAME) and found.loss == pytest.approx(other.loss, rel=SAME)
            assert (found.tokens == other.tokens).all() and (found.exact == other.exact).all()
        bank._measure = lambda *_: refuse_for(MemoryError)  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            bank.evaluate(examples)


def test_other_errors_are_not_taken_for_it(exact_gpt2: FrozenBase) -> None:
    with Bank(exact_gpt2, seven_members(exact_gpt2)) as bank:
        bank.gradients = tight = Tight(bank, 1, RuntimeError("shapes do not fit"))  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match="shapes"):
            bank.step()
        assert len(tight.asked) == 2 and bank.chunk_tokens >= 4096


def test_what_is_out_of_memory() -> None:
    assert all(is_out_of_memory(error) for error in OUT)
    assert not any(is_out_of_memory(error) for error in (RuntimeError("expected"), ValueError("memory"), KeyError()))


def test_recomputing_gives_the_same_training_for_less_memory(exact: FrozenBase) -> None:
    members, tensors, need = seven_members(exact, steps=4), [], []
    for checkpointing in (False, True):
        with Bank(exact, members, checkpointing=checkpointing) as bank:
            need.append(bank.bytes_per_token())
        tensors.append([trajectory.last for trajectory in by_bank(exact, members, checkpointing=checkpointing)])
    assert 0 < need[1] < 0.4 * need[0]
    for plain, again in zip(*tensors, strict=True):
        assert_close(again, plain, room=SAME)


def test_measuring_what_a_token_takes_leaves_no_trace(exact_gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows, where what is measured has padding."""
    monkeypatch.setattr(attachment, "_packed_attention", refuse)
    members = seven_members(exact_gpt2, steps=2)
    wanted = by_bank(exact_gpt2, members, (1,), steps=1, chunk_tokens=1000)  # which does not measure
    with Bank(exact_gpt2, members) as bank:
        assert bank.padding_share == 0.0
        bank.bytes_per_token()
        bank.step()
        for slot, alone in zip(bank.slots, wanted, strict=True):
            assert_close(slot.tensors(), alone.states[1], room=100 * SAME)


def test_a_bank_takes_no_more_at_once_than_fits(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    members = seven_members(gpt2)
    with Bank(gpt2, members) as bank:
        each = bank.bytes_per_token()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000 * each)
    with Bank(gpt2, members, workers=2) as bank:
        assert bank.chunk_tokens == 200  # two fifths for activations, of two passes
    with Bank(gpt2, members, chunk_tokens=3000) as bank:
        assert bank.chunk_tokens == 3000  # what is asked for is not measured


def test_free_memory_is_some_and_not_more_than_there_is() -> None:
    assert 10**7 < free_bytes(CPU) < 10**14


def test_how_many_adapters_and_positions_fit(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [mixed_plan(gpt2.outline.modules, shift=shift) for shift in range(5)]
    for plan in plans:
        assert state_bytes(gpt2, plan) == 16 * plan.trainable_parameters
    assert members_at_once(gpt2, plans) == 5  # as many as there are
    largest = max(state_bytes(gpt2, plan) for plan in plans)
    for free, fit in ((0, 1), (largest, 1), (5.01 * largest, 2), (10.01 * largest, 4), (100 * largest, 5)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: int(free))
        assert members_at_once(gpt2, plans) == fit
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    assert tokens_at_once(CPU, 1000, 2) == 200
    assert tokens_at_once(CPU, 10**9, 1) == 1
    gpt2.model.double()
    assert state_bytes(gpt2, plans[0]) == 32 * plans[0].trainable_parameters


def test_state_is_what_slots_hold(base: FrozenBase) -> None:
    members = seven_members(base)
    for slot, member in zip(Bank(base, members).slots, members, strict=True):
        vectors = (slot.parameters, slot.gradient, slot.mean, slot.square)
        assert sum(v.numel() * v.element_size() for v in vectors) == state_bytes(base, member.plan)
