"""Memory: how much there is, what a bank takes of it, and what it does where there is too little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.training import bank as engine
from adaptive_lora.training import bank_model, memory
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import current_batch
from adaptive_lora.training.memory import free_bytes, is_out_of_memory, members_at_once, positions_at_once, state_bytes
from adaptive_lora.training.packing import Pack
from tests.conftest import mixed_plan
from tests.training.conftest import SAME, assert_close, by_bank, demo_examples, seven_members


def refuse(*_: object) -> None:
    raise ValueError("not here")


def refuse_for(error: type[BaseException]) -> Any:
    raise error


CPU = torch.device("cpu")
OUT = [
    MemoryError("out of memory: attention's workspace"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Tight:
    """Stands for `Bank.gradients` where memory suffices for `capacity` members at once."""

    def __init__(self, bank: Bank, capacity: int, error: BaseException) -> None:
        self._plain, self._capacity, self._error, self.asked = bank.gradients, capacity, error, [0]

    def __call__(self, members: Sequence[int], batches: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
        found = self._plain(members, batches)  # memory runs out late: some gradients have been added by then
        self.asked.append(len(members))
        if len(members) > self._capacity:
            raise self._error
        return found


HOWS: list[tuple[BaseException, dict[str, Any]]] = [(OUT[0], {}), (OUT[1], {"workers": 2}), (OUT[3], {"stacked": True})]


@pytest.mark.parametrize(("error", "how"), HOWS, ids=["one worker", "two workers", "stacked"])
def test_out_of_memory_the_passes_become_smaller_and_the_training_stays(
    exact_gpt2: FrozenBase, error: BaseException, how: dict[str, Any]
) -> None:
    members = seven_members(exact_gpt2, steps=3)
    wanted = by_bank(exact_gpt2, members, **how)
    with Bank(exact_gpt2, members, chunk_tokens=4096, **how) as bank:
        bank.gradients = tight = Tight(bank, 1, error)  # type: ignore[method-assign, assignment]
        bank.step()
        assert max(tight.asked) > 1 and bank.chunk_tokens < 4096
        one = max(bank.tokens.values())
        assert one // 2 <= bank.chunk_tokens <= 2 * one  # half of the smallest pass that failed: two members
        while bank.running:
            bank.step()
        for slot, reference in zip(bank.slots, wanted, strict=True):
            assert_close(slot.tensors(), reference.last, tolerance=100 * SAME)
            for name, tensor in reference.last.items():
                if name.startswith("parameter/"):
                    assert (slot.tensors()[name] - tensor).abs().max() <= SAME * tensor.abs().max()


def test_a_smaller_chunk_size_is_remembered(exact_gpt2: FrozenBase) -> None:
    """Passes that were too large are not tried again at every step."""
    with Bank(exact_gpt2, seven_members(exact_gpt2), chunk_tokens=4096) as bank:
        bank.gradients = tight = Tight(bank, 2, MemoryError())  # type: ignore[method-assign, assignment]
        for _ in range(4):
            bank.step()
        tight.asked.clear()
        for _ in range(2):
            bank.step()
        assert max(tight.asked) <= 2


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_a_single_member_that_does_not_fit_is_an_error(exact_gpt2: FrozenBase, error: BaseException) -> None:
    with Bank(exact_gpt2, seven_members(exact_gpt2)) as bank:
        bank.gradients = Tight(bank, 0, error)  # type: ignore[method-assign, assignment]
        with pytest.raises(type(error)):
            bank.step()
        assert [slot.step for slot in bank.slots] == [0] * 7


@pytest.mark.parametrize("capacity", [1, 5, 40])
def test_out_of_memory_while_evaluating_batches_are_halved(exact_gpt2: FrozenBase, capacity: int) -> None:
    """Memory suffices for `capacity` members times examples."""
    examples = demo_examples(exact_gpt2, 12)
    with Bank(exact_gpt2, seven_members(exact_gpt2), stacked=True) as bank:
        bank.step()
        wanted, plain = bank.evaluate(examples), bank._evaluate

        def tight(members: Sequence[int], rows: list[Example]) -> Any:
            if len(members) * len(rows) > capacity:
                raise MemoryError
            return plain(members, rows)

        bank._evaluate = tight  # type: ignore[method-assign]
        for found, other in zip(bank.evaluate(examples), wanted, strict=True):
            assert found.nll == pytest.approx(other.nll, rel=SAME) and found.loss == pytest.approx(other.loss, rel=SAME)
            assert (found.tokens == other.tokens).all() and (found.exact == other.exact).all()
        bank._evaluate = lambda *_: refuse_for(MemoryError)  # type: ignore[method-assign]
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
    members, tensors, need = seven_members(exact, steps=2), [], []
    for checkpointing in (False, True):
        with Bank(exact, members, checkpointing=checkpointing) as bank:
            need.append(bank.bytes_per_position())
        tensors.append([trajectory.last for trajectory in by_bank(exact, members, checkpointing=checkpointing)])
    assert 0 < need[1] < 0.4 * need[0]
    for plain, again in zip(*tensors, strict=True):
        assert_close(again, plain, tolerance=SAME)


FORMS = ["packed", "stacked", "padded"]


def in_form(form: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a bank of that form."""
    if form == "padded":
        monkeypatch.setattr(bank_model, "_packed_attention", refuse)
    return {"stacked": form == "stacked"}


@pytest.mark.parametrize("form", FORMS)
def test_the_estimate_is_what_a_pass_saves(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """By position computed, filling and padding included: measured on 26 tokens, compared with 40 examples."""
    members = seven_members(gpt2, dropout=False)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with Bank(gpt2, members, **in_form(form, monkeypatch)) as bank:
        estimate = bank.bytes_per_position()
        batch = bank._batch([0], [demo_examples(gpt2)], training=True)
        with current_batch(batch), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            bank.model.hidden(batch.pack)
        for weight in gpt2.model.parameters():
            saved.pop(weight.untyped_storage().data_ptr(), None)
        assert estimate == pytest.approx(sum(saved.values()) / batch.pack.size, rel=0.2)


@pytest.mark.parametrize("form", FORMS)
def test_a_pass_has_no_more_positions_than_it_may(
    exact_gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    sizes, plain = list[tuple[int, int]](), engine.pack

    def noted(batches: Sequence[Sequence[Example]], *rest: Any) -> Pack:
        packed = plain(batches, *rest)
        sizes.append((len(batches), packed.size))
        return packed

    monkeypatch.setattr(engine, "pack", noted)
    how = in_form(form, monkeypatch)
    with Bank(exact_gpt2, seven_members(exact_gpt2), chunk_tokens=400, workers=1, **how) as bank:
        for _ in range(3):
            bank.step()
    assert any(members > 1 for members, _ in sizes)
    assert all(size <= 400 or members == 1 for members, size in sizes)


def test_measuring_what_a_position_takes_leaves_no_trace(
    exact_gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows, where what is measured has padding."""
    monkeypatch.setattr(bank_model, "_packed_attention", refuse)
    members = seven_members(exact_gpt2, steps=2)
    wanted = by_bank(exact_gpt2, members, (1,), steps=1, chunk_tokens=1000)  # which does not measure
    with Bank(exact_gpt2, members) as bank:
        assert bank.padding_share == 0.0
        bank.bytes_per_position()
        bank.step()
        for slot, reference in zip(bank.slots, wanted, strict=True):
            assert_close(slot.tensors(), reference.states[1], tolerance=100 * SAME)
        share = bank.padding_share
        bank.bytes_per_position()
        assert bank.padding_share == share > 0


def test_a_bank_takes_no_more_at_once_than_fits(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    members = seven_members(gpt2)
    with Bank(gpt2, members) as bank:
        each = bank.bytes_per_position()
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
    assert positions_at_once(CPU, 1000, 2) == 200
    assert positions_at_once(CPU, 10**9, 1) == 1
    gpt2.model.double()
    assert state_bytes(gpt2, plans[0]) == 32 * plans[0].trainable_parameters


def test_state_is_what_slots_hold(base: FrozenBase) -> None:
    members = seven_members(base)
    for slot, member in zip(Bank(base, members).slots, members, strict=True):
        vectors = (slot.parameters, slot.gradient, slot.exp_avg, slot.exp_avg_sq)
        assert sum(v.numel() * v.element_size() for v in vectors) == state_bytes(base, member.plan)


def test_out_of_memory_while_a_bank_is_opened_is_no_word_about_the_model(
    exact_gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be refused for good, with a remedy that does not help; a bank that is halved fits."""

    def none_left(*_: object) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(bank_model, "_compared", none_left)
    with (
        pytest.raises(RuntimeError, match=r"^could not create a primitive$"),
        Bank(exact_gpt2, seven_members(exact_gpt2)),
    ):
        pass
