"""The bank as it runs on accelerators: stacked products, flags as dropout masks, packs of few sizes.

On the CPU unless ADAPTIVE_LORA_TEST_DEVICE names another device; `bench/accelerator.sh` runs them there.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.training import bank as engine
from adaptive_lora.training import bank_model, current_batch
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.current_batch import BankBatch
from adaptive_lora.training.dropout import DropoutMasks
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.kernels import forget_kernels
from adaptive_lora.training.optimizer import checked_updates
from adaptive_lora.training.packing import BLOCK, positions_of
from adaptive_lora.training.pass_layout import block_layout, dropped_inputs
from tests.training import conftest
from tests.training.conftest import (
    CLOSE,
    SAME,
    Trajectory,
    assert_close,
    assert_parity,
    assert_same_records,
    by_bank,
    by_reference,
    demo_examples,
    in_memory,
    like,
    make_exact,
    seven_members,
    tiny_config,
    with_adapter,
)

DEVICE = torch.device(os.environ.get("ADAPTIVE_LORA_TEST_DEVICE", "cpu"))
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def as_on_an_accelerator() -> Any:
    """On the CPU too, both engines draw flags and nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DropoutMasks, "as_flags", staticmethod(lambda device: True))
        patch.setattr(engine, "checked_updates", functools.partial(checked_updates, together=True))
        patch.setenv("ADAPTIVE_LORA_KERNEL", "off")
        forget_kernels()
        yield
    forget_kernels()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def there(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> FrozenBase:
    """Each tiny model in float64 on the device."""
    return make_exact(load_base(request.param, model_folders[request.param], device=DEVICE))


@pytest.fixture(scope="module")
def wanted(there: FrozenBase) -> list[Trajectory]:
    """What the reference makes of the seven members."""
    return [by_reference(there, member, (1, STEPS)) for member in seven_members(there, STEPS)]


def refuse(*_: object) -> None:
    raise ValueError("not here")


HOW: dict[str, dict[str, Any]] = {
    "all at once": {},
    "in small passes": {"chunk_tokens": 3 * BLOCK},
    "recomputed": {"checkpointing": True},
}


@pytest.mark.parametrize("how", HOW)
def test_the_bank_ends_where_the_reference_ends(there: FrozenBase, wanted: list[Trajectory], how: str) -> None:
    assert_parity(by_bank(there, seven_members(there, STEPS), (1, STEPS), stacked=True, **HOW[how]), wanted)


def test_so_it_does_in_padded_rows(
    there: FrozenBase, wanted: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_model, "_packed_attention", refuse)
    assert_parity(by_bank(there, seven_members(there, STEPS), (1, STEPS), stacked=True), wanted)


def test_other_masks_would_be_noticed(there: FrozenBase, wanted: list[Trajectory]) -> None:
    members = seven_members(there, STEPS)
    dropping = like(members[1], dropout=members[1].options.dropout + 1e-3)
    with pytest.raises(AssertionError):
        assert_parity(by_bank(there, [dropping], (1, STEPS), stacked=True), wanted[1:2])


def test_neighbours_do_not_change_a_member(there: FrozenBase, wanted: list[Trajectory]) -> None:
    members = seven_members(there, STEPS)
    for chosen in ([1], [6, 1, 2], [5, 4, 1]):
        found = by_bank(there, [members[i] for i in chosen], (STEPS,), stacked=True)[chosen.index(1)]
        for name, tensor in wanted[1].last.items():
            if name.startswith("parameter/"):
                assert (found.last[name] - tensor).abs().max() <= 1e3 * SAME * tensor.abs().max()


def test_evaluations_are_the_references(there: FrozenBase, wanted: list[Trajectory]) -> None:
    examples, members = demo_examples(there, 23), seven_members(there, STEPS)
    with Bank(there, members, stacked=True, chunk_tokens=8192) as bank:
        for slot, reference in zip(bank.slots, wanted, strict=True):
            slot.restore(reference.last)
        found = bank.evaluate(examples)
        several = zip(*bank._evaluate([4, 2, 1], examples), strict=True)  # as many in a pass as there is room for
    for k, (nll, tokens, exact) in zip((4, 2, 1), several, strict=True):
        assert np.allclose(nll, found[k].nll, rtol=CLOSE, atol=0)
        assert np.array_equal(tokens, found[k].tokens) and np.array_equal(exact, found[k].exact)
    for ours, member, reference in zip(found, members, wanted, strict=True):
        with with_adapter(there, member, reference.last) as model:
            theirs = evaluate(model, examples, DEVICE)
        assert np.allclose(ours.nll, theirs.nll, rtol=CLOSE, atol=0)
        assert np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.exact, theirs.exact)


def long_texts(dtype: torch.dtype) -> tuple[FrozenBase, list[Example]]:
    """A random model with heads of 32 and texts of up to 300 tokens, for which attention takes several blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**tiny_config(**sizes, max_position_embeddings=512))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(device=DEVICE, dtype=dtype)
    base = in_memory(model, FrozenBase("", None, None, None, "", "", DEVICE))  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    return base, [Example(tuple(random.integers(1, 768, n).tolist()), 9, False) for n in (300, 140, 201, 20, 77, 260)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twins_are_equal_and_so_is_a_second_run(dtype: torch.dtype) -> None:
    """To the bit, in the precisions that adapters are trained in."""
    base, examples = long_texts(dtype)
    members = [like(m, batch_size=2, steps=3) for m in seven_members_of(base, examples)]
    twin, other = members[1:3]
    one, _, two = by_bank(base, [twin, other, twin], (1, 3), stacked=True)
    assert_close(two.last, one.last, tolerance=0)
    assert_close(by_bank(base, [twin, other, twin], (1, 3), stacked=True)[0].last, one.last, tolerance=0)


def test_in_half_precision_losses_are_the_references_as_far_as_it_goes() -> None:
    base, examples = long_texts(torch.bfloat16)
    members = [like(m, batch_size=2, steps=2) for m in seven_members_of(base, examples)[1:3]]
    reference = [[r.loss for r in by_reference(base, member, ()).records] for member in members]
    for ours, losses in zip(by_bank(base, members, (), stacked=True), reference, strict=True):
        assert [r.loss for r in ours.records] == pytest.approx(losses, rel=1e-2)


def test_in_half_precision_logits_are_those_of_the_newest_parameters() -> None:
    """Products there are with copies, which what writes into a member does not change."""
    base, examples = long_texts(torch.bfloat16)
    with Bank(base, seven_members_of(base, examples)[1:2], stacked=True) as bank:
        before = bank.logits(0, examples[:2])
        for pair in bank.slots[0].pairs.values():
            pair.b.fill_(1.0)
        assert not torch.equal(bank.logits(0, examples[:2]), before)


def seven_members_of(base: FrozenBase, examples: list[Example]) -> list[Member]:
    """The seven members on other examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "demo_examples", lambda base: examples)
        return [replace(member, examples=examples) for member in seven_members(base, 3)]


# What is made once a pass.


def test_layout_and_masks_are_made_once_a_pass(there: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()

    def counted(name: str, plain: Any) -> Any:
        def counting(*given: Any) -> Any:
            calls[name] += 1
            return plain(*given)

        return counting

    for name, where, plain in (
        ("layout", current_batch, block_layout),
        ("flags", current_batch, dropped_inputs),
    ):
        monkeypatch.setattr(where, plain.__name__, counted(name, plain))
    monkeypatch.setattr(DropoutMasks, "draw_", counted("draws", DropoutMasks.draw_))
    members = [like(member, dropout=0.1 if i != 3 else 0.0) for i, member in enumerate(seven_members(there, STEPS))]
    with Bank(there, members, stacked=True, chunk_tokens=8192, checkpointing=True) as bank:
        calls.clear()
        bank.step()
    assert calls == {"layout": 1, "flags": 1, "draws": 6}


def test_a_layout_says_whose_block_is_whose_and_how_it_is_scaled(there: FrozenBase) -> None:
    with Bank(there, seven_members(there), stacked=True, chunk_tokens=8192) as bank:
        batch = bank._batch([4, 2, 1], [demo_examples(there)[:k] for k in (3, 9, 1)], training=True)
        layout, slots = batch.layout, [bank.slots[k] for k in (4, 2, 1)]
        blocks = [(end - begin) // BLOCK for begin, end in batch.pack.segments]
        owners = [slot for slot, count in zip(slots, blocks, strict=True) for _ in range(count)]
        assert layout.rows.tolist() == [slot.row for slot in owners] and layout.adapters.tolist() == [4, 2, 1]
        assert layout.lengths.tolist() == blocks
        for name, scaling in layout.scaling.items():
            own = [s.pairs[name].scaling / (1 - s.masks.p) if name in s.pairs else 0.0 for s in owners]
            assert scaling.flatten().tolist() == pytest.approx(own, rel=1e-12)
        still = BankBatch(batch.pack, slots, training=False, stacks=batch.stacks)
        first = next(iter(layout.scaling))
        assert still.layout.scaling[first][-1].item() == slots[2].pairs[first].scaling  # nothing is dropped
        assert still.dropped is None and batch.dropped is not None


def test_flags_are_counted_in_what_a_position_takes(there: FrozenBase) -> None:
    """Recomputed or not: they stay from the beginning of a pass to its end."""
    members = [like(m, dropout=0.0) for m in seven_members(there)[:2]]
    for checkpointing in (False, True):
        found = []
        for chosen in (members, [members[0], like(members[1], dropout=0.1)]):
            with Bank(there, chosen, stacked=True, chunk_tokens=512, checkpointing=checkpointing) as bank:
                found.append(bank.bytes_per_position())
        assert found[1] - found[0] == sum(m.d_in for m in there.outline.modules)


def test_passes_have_few_sizes(there: FrozenBase) -> None:
    """Batches of thirty updates by twenty-eight members; far more sizes without classes."""
    random, sizes, exact = np.random.default_rng(0), set[int](), set[int]()
    with Bank(there, seven_members(there) * 4, stacked=True, chunk_tokens=32768) as bank:
        for _ in range(30):
            batches = [[Example((0,) * int(n), 1, False) for n in random.integers(9, 60, 8)] for _ in range(28)]
            sizes.add(bank._batch(range(28), batches, training=True).pack.size)
            exact.add(sum(positions_of(dict(enumerate(batches)), block=BLOCK).values()))
    assert len(sizes) <= 4 and len(exact) >= 3 * len(sizes)
    assert max(sizes) < max(exact) * (1 + 1 / 16)


def test_what_fills_a_pass_changes_no_result(there: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    members, found = seven_members(there, STEPS), []
    for room in (0, 5):
        monkeypatch.setattr(engine, "size_class", lambda positions, limit, room=room: positions + room * BLOCK)
        with Bank(there, members, stacked=True, chunk_tokens=8192) as bank:
            records = [r for _ in range(STEPS) for r in bank.step() if isinstance(r, StepRecord)]
            states = {f"{k}/{name}": x for k, slot in enumerate(bank.slots) for name, x in slot.tensors().items()}
            found.append((records, states, bank.evaluate(demo_examples(there, 5)), bank.padding_share))
    assert_same_records(found[1][0], found[0][0])
    assert_close(found[1][1], found[0][1])
    for ours, theirs in zip(found[1][2], found[0][2], strict=True):
        assert np.allclose(ours.nll, theirs.nll, rtol=CLOSE, atol=0) and np.array_equal(ours.tokens, theirs.tokens)
    assert found[1][3] > found[0][3] + 0.2
