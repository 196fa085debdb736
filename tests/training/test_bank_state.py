"""A bank's evaluations, checkpoints and adapters, and the base model afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.training import bank_model
from adaptive_lora.training.adapter import save_adapter
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import collate
from adaptive_lora.training.checkpoint import Progress, read_checkpoint, write_checkpoint
from adaptive_lora.training.evaluate import Evaluation, evaluate
from tests.training.conftest import (
    CLOSE,
    SAME,
    Trajectory,
    assert_close,
    by_bank,
    demo_examples,
    seven_members,
    snapshot,
    with_adapter,
)


def restored(base: FrozenBase, members: list[Member], states: list[dict[str, Tensor]], **how: Any) -> Bank:
    """A bank, not yet open, with its members restored from the states."""
    bank = Bank(base, members, **how)
    for slot, state in zip(bank.slots, states, strict=True):
        slot.restore(state)
    return bank


def answered(base: FrozenBase, member: Member, state: dict[str, Tensor]) -> list[Example]:
    """Examples of which every other one ends as the member itself would end it."""
    examples = demo_examples(base)[:24]
    with with_adapter(base, member, state) as model, torch.no_grad():
        for i in range(0, len(examples), 2):
            prompt = examples[i].ids[: examples[i].prompt_length]
            likeliest = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
            examples[i] = Example((*prompt, likeliest), len(prompt), False)
    return examples


def same_bits(one: Evaluation, other: Evaluation) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("nll", "tokens", "exact"))


@pytest.fixture(scope="module")
def evaluated(exact: FrozenBase, reference_runs: list[Trajectory]) -> tuple[list[Example], list[Evaluation]]:
    """Examples, and what the reference engine says of them with each member's adapter."""
    members, found = seven_members(exact), []
    examples = answered(exact, members[1], reference_runs[1].last)
    for member, reference in zip(members, reference_runs, strict=True):
        with with_adapter(exact, member, reference.last) as model:
            found.append(evaluate(model, examples, exact.device))
    return examples, found


@pytest.mark.parametrize(
    ("padded", "how"),
    [(False, {}), (True, {}), (False, {"stacked": True}), (True, {"workers": 2, "chunk_tokens": 90})],
    ids=str,
)
def test_evaluations_are_the_references_example_by_example(
    exact: FrozenBase,
    reference_runs: list[Trajectory],
    evaluated: tuple[list[Example], list[Evaluation]],
    monkeypatch: pytest.MonkeyPatch,
    padded: bool,
    how: dict[str, Any],
) -> None:
    if padded:
        monkeypatch.setattr(bank_model, "_packed_attention", refused)
    examples, wanted = evaluated
    with restored(exact, seven_members(exact), [reference.last for reference in reference_runs], **how) as bank:
        found = bank.evaluate(examples)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.allclose(ours.nll, theirs.nll, rtol=CLOSE, atol=0)
        assert np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.exact, theirs.exact)
    assert 0.5 <= found[1].exact.mean() < 1
    assert len({evaluation.loss for evaluation in found}) == 7


def refused(*_: object) -> None:
    raise ValueError("not here")


def test_an_evaluation_has_the_same_bits_whatever_the_other_members(base: FrozenBase) -> None:
    members = seven_members(base, steps=2)
    states, examples = [trained.last for trained in by_bank(base, members)], demo_examples(base)
    with restored(base, members, states) as bank:
        together = bank.evaluate(examples)
        some = bank.evaluate(examples, members=[5, 0])
        assert len(some) == 2 and same_bits(some[0], together[5]) and same_bits(some[1], together[0])
        assert bank.evaluate(examples, members=[]) == []
    for i in (0, 1, 6):
        with restored(base, [members[i]], [states[i]]) as bank:
            assert same_bits(bank.evaluate(examples)[0], together[i])
    with restored(base, members[::-1], states[::-1], workers=2) as bank:
        assert all(same_bits(a, b) for a, b in zip(bank.evaluate(examples), together[::-1], strict=True))


def test_evaluating_moves_neither_parameters_nor_randomness_nor_training(base: FrozenBase) -> None:
    members, examples = seven_members(base, steps=3)[:4], demo_examples(base)
    undisturbed = by_bank(base, members)
    with Bank(base, members) as bank:
        bank.step()
        before = [snapshot(slot.tensors()) for slot in bank.slots]
        torch_state, numpy_state = torch.get_rng_state(), copy.deepcopy(np.random.get_state()[1])  # noqa: NPY002
        first, second = bank.evaluate(examples), bank.evaluate(examples)
        assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        for slot, state in zip(bank.slots, before, strict=True):
            assert_close(slot.tensors(), state, tolerance=0)
        while bank.running:
            bank.step()
        for slot, reference in zip(bank.slots, undisturbed, strict=True):
            assert_close(slot.tensors(), reference.last, tolerance=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_evaluation_can_be_stopped_between_passes(gpt2: FrozenBase, workers: int) -> None:
    asked: list[int] = []

    def at_the_third() -> bool:
        asked.append(1)
        return len(asked) >= 3

    with Bank(gpt2, seven_members(gpt2)[:4], workers=workers) as bank:
        with pytest.raises(KeyboardInterrupt):
            bank.evaluate(demo_examples(gpt2), at_the_third)
        assert 3 <= len(asked) < 4 + workers
        assert len(bank.evaluate(demo_examples(gpt2), lambda: False)) == 4  # and goes on as if nothing had been


def test_a_member_goes_on_in_another_bank_as_if_it_had_stayed(
    exact: FrozenBase, reference_runs: list[Trajectory], tmp_path: Path
) -> None:
    members = seven_members(exact)
    with Bank(exact, members) as bank:
        for _ in range(4):
            bank.step()
        for i, slot in enumerate(bank.slots):
            write_checkpoint(tmp_path / str(i), f"run {i}", Progress(slot.step), slot.tensors())
        while bank.running:
            bank.step()
        stayed = [snapshot(slot.tensors()) for slot in bank.slots]

    def resumed(chosen: list[int], **how: Any) -> Mapping[int, dict[str, Tensor]]:
        with Bank(exact, [members[i] for i in chosen], **how) as other:
            for i, slot in zip(chosen, other.slots, strict=True):
                found = read_checkpoint(tmp_path / str(i), f"run {i}")
                assert found is not None
                slot.restore(found[1])
                slot.step = found[0].steps_done
            assert chosen.index(5) not in other.running  # it had finished
            while other.running:
                other.step()
            return {i: snapshot(slot.tensors()) for i, slot in zip(chosen, other.slots, strict=True)}

    for i, state in resumed(list(range(7))).items():
        assert_close(state, stayed[i], tolerance=0)
    for chosen, how in (([4, 5, 1], {}), ([6, 2, 0, 5, 3], {"stacked": True}), ([5, 3], {"workers": 2})):
        for i, state in resumed(chosen, **how).items():
            for name, tensor in state.items():
                if name.startswith("parameter/"):
                    assert (tensor - stayed[i][name]).abs().max() <= SAME * stayed[i][name].abs().max()
            assert_close(state, reference_runs[i].last)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_reset_member_starts_over(gpt2: FrozenBase, stacked: bool) -> None:
    members = seven_members(gpt2, steps=2)
    with Bank(gpt2, members, stacked=stacked) as bank:
        fresh = [snapshot(slot.tensors()) for slot in bank.slots]
        bank.step()
        for slot, state in zip(bank.slots, fresh, strict=True):
            slot.reset()
            assert slot.step == 0
            assert_close(slot.tensors(), state, tolerance=0)


def uniform(base: FrozenBase, rank: int, leave_out: int = 0) -> RankPlan:
    modules = base.outline.modules[leave_out:]
    return RankPlan("uniform", 0, modules, {m.name: rank for m in modules}, Scaling())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("other", [3, 1], ids=["rank 3", "rank 1"])
def test_a_checkpoint_of_other_ranks_is_refused(gpt2: FrozenBase, other: int, stacked: bool) -> None:
    """Rank 1 too, which could be spread over any rank."""
    member = seven_members(gpt2)[0]
    kept = Bank(gpt2, [replace(member, plan=uniform(gpt2, other))]).slots[0].tensors()
    (slot,) = Bank(gpt2, [replace(member, plan=uniform(gpt2, 2))], stacked=stacked).slots
    with pytest.raises((RuntimeError, KeyError)):
        slot.restore(kept)


def test_a_checkpoint_that_lacks_modules_is_refused(gpt2: FrozenBase) -> None:
    member = seven_members(gpt2)[0]
    kept = Bank(gpt2, [replace(member, plan=uniform(gpt2, 2, leave_out=1))]).slots[0].tensors()
    with pytest.raises(KeyError):
        Bank(gpt2, [replace(member, plan=uniform(gpt2, 2))]).slots[0].restore(kept)


@pytest.mark.parametrize("stacked", [False, True])
def test_peft_reads_a_members_adapter_and_says_what_the_bank_says(
    exact: FrozenBase, tmp_path: Path, stacked: bool
) -> None:
    members, examples = seven_members(exact, steps=2)[:3], demo_examples(exact)
    with Bank(exact, members, stacked=stacked) as bank:
        while bank.running:
            bank.step()
        found = bank.evaluate(examples)
        weights = [slot.weights() for slot in bank.slots]
    inputs = collate(examples[:5])
    for i in (1, 2):
        save_adapter(weights[i], members[i].plan, tmp_path / str(i), exact, dropout=0.2)
        fresh = replace(exact, model=copy.deepcopy(exact.model))
        with quiet_libraries():
            loaded = PeftModel.from_pretrained(fresh.model, tmp_path / str(i)).eval()
        again = evaluate(loaded, examples, exact.device)
        assert np.allclose(again.nll, found[i].nll, rtol=CLOSE, atol=0)
        with with_adapter(exact, members[i], snapshot(bank.slots[i].tensors())) as model, torch.no_grad():
            torch.testing.assert_close(
                loaded(inputs.input_ids).logits, model(inputs.input_ids).logits, rtol=0, atol=1e-12
            )


def fingerprint(base: FrozenBase) -> list[Any]:
    """Everything that a bank might leave changed."""
    model, ids = base.model, collate(demo_examples(base)[:3]).input_ids
    return [
        [(name, id(module), module.training) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [bool(getattr(module, "gradient_checkpointing", False)) for module in model.modules()],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        model.config._attn_implementation,
        copy.deepcopy(model.config.to_dict()),
        model(ids).logits.requires_grad,
        model(ids).logits.detach().numpy().tobytes(),
        torch.get_num_threads(),
    ]


@pytest.fixture(params=["well", "badly", "as it opens"])
def visit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Opens, uses and closes a bank, with or without an error."""

    def live(base: FrozenBase, **how: Any) -> None:
        if request.param == "as it opens":
            monkeypatch.setattr(Bank, "bytes_per_position", refused)
            with pytest.raises(ValueError, match="not here"), Bank(base, seven_members(base)[:2], **how):
                pass
            monkeypatch.undo()
        elif request.param == "badly":
            with pytest.raises(TrainingError), Bank(base, seven_members(base)[:2], **how) as bank:
                bank.step()
                raise TrainingError("in the middle")
        else:
            with Bank(base, seven_members(base)[:2], **how) as bank:
                bank.step()
                bank.evaluate(demo_examples(base))

    return live


@pytest.mark.parametrize("how", [{}, {"stacked": True, "workers": 2}, {"checkpointing": True}], ids=str)
def test_the_base_is_restored(base: FrozenBase, visit: Callable[..., None], how: dict[str, Any]) -> None:
    before = fingerprint(base)
    visit(base, **how)
    for ours, theirs in zip(fingerprint(base), before, strict=True):
        assert ours == theirs


def test_the_number_of_threads_is_restored(gpt2: FrozenBase) -> None:
    torch.set_num_threads(2)
    try:
        with Bank(gpt2, seven_members(gpt2, steps=1)) as bank:
            assert bank.workers == 2
            bank.step()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
