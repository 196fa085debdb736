"""A member does not depend on the other members of its bank; and a dependence would be detected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.training import bank as engine
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.head import Head, TokenLosses
from adaptive_lora.training.optimizer import adamw_update
from adaptive_lora.training.packing import Pack, pack
from adaptive_lora.training.reference import Diverged
from tests.training.conftest import (
    SAME,
    Trajectory,
    assert_close,
    assert_parity,
    by_bank,
    by_reference,
    like,
    seven_members,
    snapshot,
)


def flat(state: dict[str, Tensor]) -> Tensor:
    """All parameters of one adapter."""
    return torch.cat([tensor.flatten() for name, tensor in state.items() if name.startswith("parameter/")])


def assert_unmoved(found: Trajectory, wanted: Trajectory, tolerance: float = SAME) -> None:
    """The same parameters at all steps compared, to `tolerance` of the adapter's largest."""
    assert found.states.keys() == wanted.states.keys()
    for step, state in wanted.states.items():
        ours, theirs = flat(found.states[step]), flat(state)
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), f"after {step} updates"


NEIGHBOURS: dict[str, tuple[Sequence[int], dict[str, Any]]] = {
    "no neighbour": ([1], {}),
    "one neighbour": ([1, 2], {}),
    "another neighbour before it": ([4, 1], {}),
    "the other way round": ([6, 5, 4, 3, 2, 1, 0], {}),
    "small chunks": (range(7), {"chunk_tokens": 100}),
    "two workers": (range(7), {"workers": 2}),
    "small chunks, two workers": ([3, 1, 4, 0, 6], {"workers": 2, "chunk_tokens": 150}),
    "stacked": (range(7), {"stacked": True}),
    "stacked, other neighbours, two workers": ([6, 1, 2], {"stacked": True, "workers": 2}),
    "recomputed": (range(7), {"checkpointing": True}),
}


@pytest.fixture(scope="package")
def together(exact: FrozenBase) -> list[Trajectory]:
    """The seven, as a bank is built."""
    return by_bank(exact, seven_members(exact, steps=6), (1, 6))


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_neighbours_order_chunks_and_workers_do_not_change_a_member(
    exact: FrozenBase, together: list[Trajectory], neighbours: str
) -> None:
    """Dropout included: member 1 has it, and with it most."""
    chosen, how = NEIGHBOURS[neighbours]
    members = seven_members(exact, steps=6)
    for i, found in zip(chosen, by_bank(exact, [members[i] for i in chosen], (1, 6), **how), strict=True):
        assert_unmoved(found, together[i])


def test_the_comparison_sees_another_seed_and_a_rate_off_by_a_billionth(exact_gpt2: FrozenBase) -> None:
    member = seven_members(exact_gpt2, steps=6)[1]
    rate = member.options.learning_rate
    wanted, nearly, seed = by_bank(
        exact_gpt2,
        [member, like(member, learning_rate=rate * (1 + 1e-9)), replace(member, seed=8)],
    )
    for other in (nearly, seed):
        with pytest.raises(AssertionError):
            assert_unmoved(other, wanted)


@pytest.mark.parametrize("how", [{}, {"workers": 2}, {"stacked": True}], ids=["as-built", "two-workers", "stacked"])
def test_a_member_full_of_nan_is_stopped_and_no_other(
    exact: FrozenBase, together: list[Trajectory], how: dict[str, Any]
) -> None:
    members = seven_members(exact, steps=6)
    with Bank(exact, members, **how) as bank:
        bank.slots[3].parameters.fill_(torch.nan)
        first = bank.step()
        assert [isinstance(result, Diverged) for result in first] == [i == 3 for i in range(7)]
        assert isinstance(first[3], Diverged) and (first[3].step, first[3].what) == (0, "loss")
        assert 3 not in bank.running and bank.slots[3].step == 0
        while bank.running:
            assert bank.step()[3] is None
        assert bank.slots[3].exp_avg.eq(0).all()  # nothing of it was applied
        for i in (0, 1, 2, 4, 5, 6):
            final = Trajectory([], {6: snapshot(bank.slots[i].tensors())})
            assert_unmoved(final, Trajectory([], {6: together[i].last}))


def test_in_single_precision_the_neighbours_of_nan_and_infinity_keep_their_bits(base: FrozenBase) -> None:
    members, outcomes = seven_members(base, steps=3), []
    for poison in (0.0, torch.nan, torch.inf):
        with Bank(base, members, workers=1) as bank:
            if poison:
                next(iter(bank.slots[3].pairs.values())).b[0, 0] = poison
            records = bank.step()
            assert isinstance(records[3], Diverged) == (poison != 0.0)
            outcomes.append([bank.slots[i].parameters.clone() for i in (0, 1, 2, 4, 5, 6)])
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_a_gradient_that_is_not_finite_stops_its_member_before_anything_is_applied(exact_gpt2: FrozenBase) -> None:
    members = seven_members(exact_gpt2, steps=5)[:3]
    with Bank(exact_gpt2, members) as bank:
        bank.step()
        before, plain = snapshot(bank.slots[1].tensors()), bank.gradients

        def spoilt(chosen: Sequence[int], batches: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
            losses = plain(chosen, batches)
            bank.slots[1].gradient[5] = torch.inf
            return losses

        bank.gradients = spoilt  # type: ignore[method-assign]
        _, result, _ = bank.step()
        assert isinstance(result, Diverged) and (result.step, result.what) == (1, "gradient")
        assert bank.running == [0, 2]
        assert_close(bank.slots[1].tensors(), before, tolerance=0)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twins_are_equal(base: FrozenBase, dtype: torch.dtype, stacked: bool) -> None:
    """To the bit in single precision. In double, MKL's products differ in the last with the row they stand in."""
    base.model.to(dtype)
    twin, other = seven_members(base, steps=4)[1:3]
    one, _, two = by_bank(base, [twin, other, twin], stacked=stacked)
    assert_close(two.last, one.last, tolerance=0)


def assert_unchanged(bank: Bank, before: dict[int, dict[str, Tensor]]) -> None:
    """Members that have finished or were stopped are where they were, to the bit, moments included."""
    for i, state in before.items():
        assert_close(bank.slots[i].tensors(), state, tolerance=0)


def finish_some(bank: Bank) -> dict[int, dict[str, Tensor]]:
    """Runs until member 5 has finished, stops member 2, and returns the states of the two."""
    for _ in range(3):
        bank.step()
    bank.stop(2)
    assert bank.running == [0, 1, 3, 4, 6]
    return {i: snapshot(bank.slots[i].tensors()) for i in (2, 5)}


@pytest.mark.parametrize("stacked", [False, True])
def test_finished_and_stopped_members_do_not_change_while_others_go_on(
    exact: FrozenBase, reference_runs: list[Trajectory], stacked: bool
) -> None:
    with Bank(exact, seven_members(exact), stacked=stacked) as bank:
        rest = finish_some(bank)
        results = bank.step()
        assert [i for i, result in enumerate(results) if result is None] == [2, 5]
        assert set(bank.tokens) == {0, 1, 3, 4, 6}
        assert_unchanged(bank, rest)
        while bank.running:
            bank.step()
        assert_unchanged(bank, rest)
        assert bank.step() == [None] * 7
        for i in (0, 1, 3, 4, 6):
            assert_close(bank.slots[i].tensors(), reference_runs[i].last)


def test_weight_decay_of_a_stopped_member_is_detected(exact_gpt2: FrozenBase) -> None:
    """AdamW with a gradient of 0 still changes parameters: decay and momentum go on."""
    with Bank(exact_gpt2, seven_members(exact_gpt2)) as bank:
        rest = finish_some(bank)
        bank.slots[2].gradient.zero_()
        adamw_update(bank.slots[2], 0.0)
        with pytest.raises(AssertionError):
            assert_unchanged(bank, rest)


# Breaking it: the check of the parity tests must see each of these.

DETECTED = "^(loss|gradient_norm)|off by"


@pytest.fixture(scope="module")
def wanted(exact_gpt2: FrozenBase) -> list[Trajectory]:
    return [by_reference(exact_gpt2, member, (1, 3)) for member in seven_members(exact_gpt2, steps=3, dropout=False)]


def three_steps(base: FrozenBase, **how: Any) -> list[Trajectory]:
    return by_bank(base, seven_members(base, steps=3, dropout=False), (1, 3), **how)


def test_unchanged_code_passes(exact_gpt2: FrozenBase, wanted: list[Trajectory]) -> None:
    assert_parity(three_steps(exact_gpt2), wanted)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_misrouted_adapter_is_detected(
    exact_gpt2: FrozenBase, wanted: list[Trajectory], monkeypatch: pytest.MonkeyPatch, stacked: bool
) -> None:
    def swapped(batches: Sequence[Sequence[Example]], *rest: Any) -> Pack:
        packed = pack(batches, *rest)
        one, *others = packed.segments
        object.__setattr__(packed, "segments", (*others[:1], one, *others[1:]))
        return packed

    monkeypatch.setattr(engine, "pack", swapped)
    with pytest.raises(AssertionError, match=DETECTED):
        assert_parity(three_steps(exact_gpt2, stacked=stacked), wanted)


def test_a_jointly_normalised_loss_is_detected(
    exact_gpt2: FrozenBase, wanted: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Head.losses

    def jointly(self: Head, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> TokenLosses:
        return plain(self, hidden, targets, None if weights is None else torch.full_like(weights, 1 / len(targets)))

    monkeypatch.setattr(Head, "losses", jointly)
    with pytest.raises(AssertionError, match=DETECTED):
        assert_parity(three_steps(exact_gpt2), wanted)


def test_global_clipping_is_detected(
    exact_gpt2: FrozenBase, wanted: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although every member's own norm is recorded."""

    def jointly(self: Bank, members: Sequence[int], batches: dict[int, list[Example]]) -> list[StepRecord | Diverged]:
        slots = [self.slots[i] for i in members]
        for slot in slots:
            slot.gradient.zero_()
        losses = self.gradients(members, [batches[i] for i in members])
        norms = [float(slot.gradient.norm()) for slot in slots]
        overall = sum(norm**2 for norm in norms) ** 0.5
        return [
            StepRecord(slot.step, loss, norm, adamw_update(slot, overall), tokens)
            for slot, (loss, tokens), norm in zip(slots, losses, norms, strict=True)
        ]

    monkeypatch.setattr(Bank, "_update", jointly)
    with pytest.raises(AssertionError, match=DETECTED):
        assert_parity(three_steps(exact_gpt2), wanted)
