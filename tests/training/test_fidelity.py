"""The bank is the model, whatever the length: windows in the mask alone, chunks, scaling by length; what checks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from bench.zoo import ZOO, texts
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import ModelError
from adaptive_lora.training import attention, bank_model, fidelity
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase, find_modules, frozen
from adaptive_lora.training.evaluate import Evaluation, evaluate
from adaptive_lora.training.fidelity import check_alone, check_bank, check_causal, spread
from adaptive_lora.training.mask_pattern import is_pattern, packed_mask
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.packing import pack
from adaptive_lora.training.positions import decoder_of, depends_on_length, scale_each_text
from tests.conftest import mixed_plan
from tests.training.conftest import by_bank, by_reference, in_memory

SILENT = {
    "qwen2_moe (window in the mask alone)": False,
    "phimoe (window in the mask alone)": False,
    "phimoe (longrope)": False,
    "phi3 (longrope)": False,
    "llama, dynamic NTK": False,
    "llama4_text (chunks)": False,
    "gemma2 (window, capped scores)": True,
    "mamba": True,
}
"""Families that were off, or could be, without a word; and whether they are padded."""


def plain(family: str) -> Any:
    """The tiny model as transformers has it."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(ZOO[family]()).eval()


def base_of(family: str, like: FrozenBase) -> FrozenBase:
    model = plain(family)
    scale_each_text(model)
    return in_memory(model, like)


def alone(model: Any, examples: Sequence[Example]) -> list[float]:
    """Each text's summed loss, one a pass, shortest first: dynamic NTK keeps the longest text's frequencies."""
    found = {}
    for example in sorted(examples, key=lambda e: len(e.ids)):
        ids = torch.tensor(example.ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, example.prompt_length - 1 : -1]
        found[example] = float(torch.nn.functional.cross_entropy(logits, ids[example.prompt_length :], reduction="sum"))
    return [found[example] for example in examples]


def attention_only(base: FrozenBase) -> list[Any]:
    """Some layers of mixtures answer with more than a tensor; Mamba has no attention."""
    found = [m for m in base.outline.modules if m.name.endswith(("q_proj", "o_proj", "in_proj"))]
    return found or list(base.outline.modules)


@pytest.mark.parametrize("family", SILENT)
def test_texts_on_both_sides_of_windows_and_switches_are_trained_as_each_alone(gpt2: FrozenBase, family: str) -> None:
    """Losses as plain transformers gives them one text a pass; training as the reference engine's; any neighbours."""
    base, examples = base_of(family, gpt2), texts()
    wanted = alone(plain(family), examples)
    assert evaluate(base.model, examples, base.device).nll.tolist() == pytest.approx(wanted, rel=1e-5)
    options = TrainingOptions(learning_rate=1e-2, steps=2, batch_size=4, epsilon=1e-3)
    plan = mixed_plan(tuple(attention_only(base)))
    members = [Member(plan=plan, options=options, seed=seed, examples=examples) for seed in (0, 1)]
    with Bank(base, members) as bank:
        assert bank.model.padded == SILENT[family]
        assert bank.evaluate(examples)[1].nll.tolist() == pytest.approx(wanted, rel=1e-5)  # B is 0 at first
    trained = [by_bank(base, members, workers=2), by_bank(base, members, stacked=True)]
    for k, member in enumerate(members):
        losses = [record.loss for record in by_reference(base, member, ()).records]
        for ours in trained:
            assert [record.loss for record in ours[k].records] == pytest.approx(losses, rel=1e-5)


def test_a_window_that_is_not_seen_is_caught_twice(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the start-up check, which then pads; and, were its texts too short, by the losses on the test split."""
    base, examples = base_of("qwen2_moe (window in the mask alone)", gpt2), texts()
    own = evaluate(base.model, examples, base.device)
    modules = attention_only(base)
    monkeypatch.setattr(attention, "packed_mask", lambda **_: None)
    with Bank(base, [fidelity._at_zero(modules)], texts=examples) as bank:
        assert bank.model.padded
        assert bank.evaluate(examples)[0].nll.tolist() == pytest.approx(own.nll.tolist(), rel=1e-5)
    bank_model._COMPARED.clear()
    # Five tokens are fewer than the window's eight.
    monkeypatch.setattr(bank_model, "_probe_texts", lambda base, texts: bank_model.probe_examples(base)[1:2])
    with pytest.raises(ModelError, match=r"without adapters test record \d+ \(\d+ tokens\) has the loss .*reference"):
        check_bank(base, modules, examples, own)
    monkeypatch.undo()
    assert check_bank(base, modules, examples, own).largest < 1e-5


def test_texts_longer_than_any_before_are_compared_before_they_are_evaluated(
    gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, examples = base_of("qwen2_moe (window in the mask alone)", gpt2), texts()
    monkeypatch.setattr(attention, "packed_mask", lambda **_: None)
    with Bank(base, [fidelity._at_zero(attention_only(base))], texts=examples[:1]) as bank:
        assert (bank.model.padded, bank.model.longest) == (True, 12)  # the window is 8
        bank.evaluate(examples)
        assert bank.model.longest == 60


def test_later_banks_do_not_compare_again(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    member, calls = fidelity._at_zero(gpt2.outline.modules), []
    real = bank_model._deviation
    monkeypatch.setattr(bank_model, "_deviation", lambda *given: calls.append(1) or real(*given))  # type: ignore[func-returns-value]
    kernels = []
    for _ in range(2):
        with Bank(gpt2, [member], chunk_tokens=500, texts=texts()[:3]) as bank:
            kernels.append(bank.kernels)
    assert len(calls) == 1 and kernels[0] == kernels[1]


def test_texts_in_the_second_axis_are_not_given_to_the_wrong_adapters(gpt2: FrozenBase) -> None:
    """XLNet computes positions by text where all others compute texts by position; it sees later tokens too."""
    base = in_memory(plain("xlnet"), gpt2)
    with (
        pytest.raises(ModelError, match="one adapter's layers change the logits of another's texts"),
        Bank(base, [fidelity._at_zero(base.outline.modules)]),
    ):
        pass
    with pytest.raises(ModelError, match="not a causal language model"):
        check_causal(base)
    check_causal(gpt2)


def test_a_text_whose_loss_depends_on_its_batch_is_refused(gpt2: FrozenBase) -> None:
    """transformers as it is, with scaling by the longest text of a batch."""
    base, examples = in_memory(plain("llama, dynamic NTK"), gpt2), texts()
    with pytest.raises(ModelError, match=r"record \d+ of the split .* alone and .* in a batch with others"):
        check_alone(base, examples, evaluate(base.model, examples, base.device))
    scale_each_text(base.model)
    check_alone(base, examples, evaluate(base.model, examples, base.device))


def test_frequencies_forget_the_texts_before_and_the_model_is_given_back(gpt2: FrozenBase) -> None:
    model, (_, long, *_) = plain("llama, dynamic NTK"), texts()
    middle = replace(long, ids=long.ids[:40])
    wanted = alone(plain("llama, dynamic NTK"), [middle])
    assert alone(model, [long])
    with frozen(model, gpt2.tokenizer):
        assert alone(model, [long]) and alone(model, [middle]) == wanted
    (rotary,) = (module for module in model.modules() if depends_on_length(module))
    assert "forward" not in rotary.__dict__ and not decoder_of(model)._forward_pre_hooks
    assert alone(model, [long]) and alone(model, [middle]) != wanted  # transformers remembers the longest


def test_a_mask_that_sees_later_tokens_or_was_changed_is_no_pattern() -> None:
    from adaptive_lora.training.current_batch import BankBatch, current_batch

    def window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - 3)

    with current_batch(BankBatch(pack([[Example((0,) * n, 1, False) for n in (2, 6)]], "cpu", block=16))):
        assert packed_mask(mask_function=lambda b, h, q, k: k <= q) is None
        found = packed_mask(mask_function=window)
        assert found is not None and is_pattern(found) and not is_pattern(found[:5, :5])
        assert found.sum(1).tolist() == [1, 2, 3, 3, 3, 3]
        both_ways = packed_mask(mask_function=lambda b, h, q, k: (k <= q) | (q > 2))
        assert both_ways is not None and not is_pattern(both_ways)


def test_a_long_split_is_compared_on_an_even_spread_of_lengths() -> None:
    examples = [Example((0,) * n, 1, False) for n in range(10, 110)]
    chosen = [len(examples[i].ids) for i in spread(examples, 1000)]
    assert chosen[0] == 10 and chosen[-1] == 109 and 700 < sum(chosen) < 1300
    assert spread(examples, 10**6) == list(range(100))


def test_a_loss_that_is_no_number_is_no_agreement(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    own, real = evaluate(gpt2.model, texts()[:3], gpt2.device), Bank.evaluate

    def broken(*given: Any) -> list[Evaluation]:
        found = real(*given)
        found[0].nll[1] = float("nan")
        return found

    monkeypatch.setattr(Bank, "evaluate", broken)
    with pytest.raises(ModelError, match=r"test record 2 .* has the loss nan"):
        check_bank(gpt2, find_modules(gpt2.model), texts()[:3], own)
