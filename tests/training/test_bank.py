"""The bank against the reference: seven different members at once, in float64, to nine digits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.training import bank_model, lora_layer
from adaptive_lora.training.adapter import attached, set_step, set_training, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.batches import collate, sequence_losses
from adaptive_lora.training.dropout import DropoutMasks, Positions
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.reference import Diverged, train
from tests.conftest import mixed_plan
from tests.training.conftest import (
    CLOSE,
    Trajectory,
    assert_close,
    assert_parity,
    by_bank,
    by_reference,
    demo_examples,
    like,
    own_name,
    seven_members,
    with_adapter,
)


def refuse(*_: Any, **__: Any) -> None:
    raise ValueError("not here")


@pytest.mark.parametrize(
    "how",
    [{}, {"stacked": True}, {"workers": 2}, {"workers": 2, "stacked": True, "chunk_tokens": 200}],
    ids=["as-built", "stacked", "by-two-workers", "stacked-in-chunks-by-two-workers"],
)
def test_seven_at_once_end_where_the_reference_ends(
    exact: FrozenBase, reference_runs: list[Trajectory], how: dict[str, Any]
) -> None:
    members = seven_members(exact)
    assert_parity(by_bank(exact, members, **how), reference_runs)
    for member, reference in zip(members, reference_runs, strict=True):  # what is compared was at work
        limit = member.options.max_grad_norm
        assert limit is None or any(record.gradient_norm > limit for record in reference.records)
    assert {len(reference.records) for reference in reference_runs} == {2, 4, 8}


def test_members_without_dropout_end_where_the_reference_ends(exact: FrozenBase) -> None:
    members = seven_members(exact, steps=3, dropout=False)
    wanted = [by_reference(exact, member, ()) for member in members]
    for stacked in (False, True):
        assert_parity(by_bank(exact, members, (), stacked=stacked), wanted)


@pytest.fixture(scope="module")
def autograds(
    exact: FrozenBase, reference_runs: list[Trajectory]
) -> list[tuple[list[Example], float, dict[str, Tensor]]]:
    """By member a batch, its loss and gradients; other batches than those that led to the states."""
    examples, found = demo_examples(exact), []
    for i, (member, reference) in enumerate(zip(seven_members(exact), reference_runs, strict=True)):
        batch = examples[3 * i : 3 * i + 1 + i % 4]
        found.append((batch, *by_autograd(exact, member, batch, reference.last, step=4)))
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_gradients_from_the_same_state_are_autograds(
    exact: FrozenBase,
    reference_runs: list[Trajectory],
    autograds: list[tuple[list[Example], float, dict[str, Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
    stacked: bool,
    padded: bool,
) -> None:
    """At trained parameters, where B is not 0."""
    if padded:
        monkeypatch.setattr(bank_model, "_packed_attention", refuse)
    with Bank(exact, seven_members(exact), stacked=stacked) as bank:
        for slot, reference in zip(bank.slots, reference_runs, strict=True):
            slot.restore(reference.last)
            slot.step = 4
        bank._adapters.refresh(torch.float64)
        found = bank.gradients(range(7), [batch for batch, _, _ in autograds])
    for slot, (batch, expected_loss, expected), (loss, tokens) in zip(bank.slots, autograds, found, strict=True):
        assert (loss, tokens) == (pytest.approx(expected_loss, rel=CLOSE), sum(e.completion_tokens for e in batch))
        gradients = {f"parameter/{name}/A": pair.a_gradient for name, pair in slot.pairs.items()}
        gradients |= {f"parameter/{name}/B": pair.b_gradient.t() for name, pair in slot.pairs.items()}
        assert_close(gradients, expected)


def by_autograd(
    base: FrozenBase, member: Member, batch: Sequence[Example], state: dict[str, Tensor], step: int
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of PEFT's adapter in training mode."""
    inputs = collate(batch)
    with with_adapter(base, member, state) as model:
        set_training(model, True)
        set_step(model, step, inputs.attention_mask.bool())
        losses = sequence_losses(model(inputs.input_ids, attention_mask=inputs.attention_mask).logits, inputs.labels)
        loss = losses.nll.sum() / losses.tokens.sum()
        loss.backward()
        return loss.item(), {own_name(name): p.grad for name, p in trainable(model).items()}


@pytest.mark.parametrize("fused", [True, False])
def test_padded_rows_give_the_same_training(
    exact: FrozenBase, reference_runs: list[Trajectory], monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    """Models whose attention cannot be exchanged, and whose layers have no cheaper equals, dropout included."""
    monkeypatch.setattr(bank_model, "_packed_attention", refuse)
    if not fused:
        monkeypatch.setattr(bank_model, "fused_layers", refuse)
    members = seven_members(exact)
    with Bank(exact, members, workers=1) as bank:
        assert bank.model.padded
        bank.step()
        assert 0.2 < bank.padding_share < 0.8
    assert_parity(by_bank(exact, members, steps=4, workers=2), [reference.until(4) for reference in reference_runs])


def test_layers_without_a_fused_form_are_adapted_as_they_are(
    exact: FrozenBase, reference_runs: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_layer, "fused_linear", lambda module: None)
    for stacked in (False, True):
        found = by_bank(exact, seven_members(exact), steps=4, stacked=stacked)
        assert_parity(found, [reference.until(4) for reference in reference_runs])


@pytest.mark.parametrize("stacked", [False, True])
def test_both_engines_drop_what_the_masks_say(
    exact_gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch, stacked: bool
) -> None:
    """DropoutMasks put in from outside: every ninth entry, beginning where seed and step say."""
    asked: set[tuple[Any, ...]] = set()

    def injected_masks(self: DropoutMasks, step: int, tokens: int) -> Positions:
        asked.add((self.seed, self.p, step, tokens))
        own = [np.arange((self.seed + step) % 9, tokens * width, 9) for width in self.widths.values()]
        ends = np.cumsum([0, *map(len, own)]).tolist()
        return Positions(np.concatenate(own), dict(zip(self.widths, itertools.pairwise(ends), strict=True)))

    members = [like(member, dropout=0.1) for member in seven_members(exact_gpt2, steps=3)[:3]]
    with monkeypatch.context() as injected:
        injected.setattr(DropoutMasks, "_draw", injected_masks)
        wanted = [by_reference(exact_gpt2, member, (1, 3)) for member in members]
        by_engine, asked = asked, set()
        assert_parity(by_bank(exact_gpt2, members, (1, 3), stacked=stacked, chunk_tokens=4096), wanted)
    assert asked == by_engine and len(asked) == 3 * 3
    with pytest.raises(AssertionError):
        assert_parity(by_bank(exact_gpt2, members, (1, 3)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_other_precisions_the_engines_agree_as_far_as_these_go(base: FrozenBase, dtype: torch.dtype) -> None:
    base.model.to(dtype)
    members = seven_members(base, steps=3)[:3]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    wanted = [[r.loss for r in by_reference(base, member, ()).records] for member in members]
    for stacked in (False, True):
        for losses, ours in zip(wanted, by_bank(base, members, stacked=stacked), strict=True):
            assert all(tensor.dtype == torch.float32 for tensor in ours.last.values())
            assert [r.loss for r in ours.records] == pytest.approx(losses, rel=tolerance)


def test_a_member_without_anything_to_learn_is_stopped_as_the_reference_stops_it(exact_gpt2: FrozenBase) -> None:
    """A batch without completion tokens has no loss, whether others share its pass or not."""
    (member, other), prompts = seven_members(exact_gpt2)[:2], [Example((1, 2, 3), 3, False)] * 2
    empty = Member(plan=member.plan, options=member.options, seed=0, examples=prompts)
    with pytest.raises(Diverged, match="loss at step 0"):
        by_reference(exact_gpt2, empty)
    for members in ([empty, other], [empty]):
        with Bank(exact_gpt2, members, workers=1) as bank:
            result, *others = bank.step()
            assert isinstance(result, Diverged) and (result.step, result.what) == (0, "loss")
            assert bank.running == [1][: len(others)]


def test_six_adapters_on_a_real_model_end_where_the_reference_ends(assets: Path) -> None:
    """Three plans, two seeds, float32, dropout: final losses to four digits; the six differ in the third."""
    base = load_base("babyllama", assets / "models/babyllama-tok361")
    records = from_dicts(json.loads((assets / "data/alpaca/alpaca_random_9k.json").read_text())[:300], "alpaca").records
    encoded = [e for e in Encoder(base.tokenizer, 208).encode_all(records) if e.completion_tokens]
    examples, held_out = encoded[:50], encoded[50:58]  # of about 200 tokens: the prompts alone take 160
    assert len(held_out) == 8
    options = TrainingOptions(learning_rate=5e-3, steps=5, batch_size=2, warmup=2, dropout=0.05, weight_decay=0.01)
    plans = [mixed_plan(base.outline.modules, shift=shift) for shift in range(3)]
    members = [Member(plan=p, options=options, seed=seed, examples=examples) for seed in range(2) for p in plans]
    with Bank(base, members, workers=2) as bank:
        before = bank.evaluate(held_out, members=[0])[0].loss
        while bank.running:
            assert not any(isinstance(result, Diverged) for result in bank.step())
        losses = [found.loss for found in bank.evaluate(held_out)]
    assert len(set(losses)) == 6 and max(losses) < before - 0.02
    for i in (0, 5):
        with attached(base, members[i].plan, members[i].seed, options.dropout) as model:
            train(model, examples, options, members[i].seed)
            assert losses[i] == pytest.approx(evaluate(model, held_out, base.device).loss, rel=1e-4)
    assert np.ptp(losses) > 0.01
