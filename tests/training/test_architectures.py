"""The bank on models that are not plain: windows, capped scores, their own dropout, experts, sums in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from adaptive_lora.errors import ModelError, TrainingError
from adaptive_lora.training import bank_model
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import TrainingOptions
from tests.conftest import mixed_plan
from tests.training.conftest import by_bank, by_reference, demo_examples, in_memory, seven_members, tiny_config

GPT = {"vocab_size": 768, "n_embd": 24, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
OPT = {"vocab_size": 768, "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
       "max_position_embeddings": 64, "word_embed_proj_dim": 24, "init_std": 0.2}  # fmt: skip

CONFIGS: dict[str, tuple[Callable[[], Any], bool | None]] = {
    "a window shorter than all": (lambda: transformers.MistralConfig(**tiny_config(sliding_window=4)), False),
    "a window longer than some": (lambda: transformers.MistralConfig(**tiny_config(sliding_window=16)), False),
    "a window longer than all": (lambda: transformers.MistralConfig(**tiny_config(sliding_window=64)), False),
    "capped scores": (
        lambda: transformers.Gemma2Config(**tiny_config(head_dim=8, attn_logit_softcapping=5.0, sliding_window=64)),
        True,
    ),
    "some layers with a window": (
        lambda: transformers.Gemma3TextConfig(**tiny_config(head_dim=8, sliding_window=16)),
        False,
    ),
    "sums in place": (
        lambda: transformers.FalconConfig(vocab_size=768, hidden_size=24, num_hidden_layers=2, num_attention_heads=4),
        None,
    ),
    "dropout of its own": (lambda: transformers.OPTConfig(**OPT, dropout=0.3), None),
    "tokens in one row": (lambda: transformers.OPTConfig(**OPT, dropout=0.0), None),
    "places told by a bias": (
        lambda: transformers.BloomConfig(vocab_size=768, hidden_size=24, n_layer=2, n_head=4, initializer_range=0.2),
        True,
    ),
    "a mixture of experts": (lambda: transformers.MixtralConfig(**tiny_config(num_local_experts=4)), False),
    "a mixture with experts for all": (
        lambda: transformers.Qwen2MoeConfig(**tiny_config(num_experts=4, moe_intermediate_size=16)),
        False,
    ),
    "attention and products side by side": (lambda: transformers.GPTNeoXConfig(**tiny_config()), False),
}


def two_members(base: FrozenBase, dropout: float = 0.1) -> list[Member]:
    options = TrainingOptions(learning_rate=1e-2, steps=3, dropout=dropout)
    plans = [mixed_plan(base.outline.modules, shift=shift) for shift in (0, 1)]
    return [Member(plan=plan, options=options, seed=i, examples=demo_examples(base)) for i, plan in enumerate(plans)]


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def losses(trained: Any) -> list[float]:
    return [record.loss for record in trained.records]


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_model_is_trained_as_the_reference_trains_it(gpt2: FrozenBase, kind: str) -> None:
    """Packed where its attention is causal, in a window or not, padded elsewhere; single precision, to 1e-5."""
    make, padded = CONFIGS[kind]
    base = in_memory(model_of(make()), gpt2)
    members = two_members(base, dropout=0.0 if kind == "dropout of its own" else 0.1)
    wanted = [losses(by_reference(base, member, ())) for member in members]
    for checkpointing in (False, True):
        with Bank(base, members, checkpointing=checkpointing) as bank:
            assert padded in (None, bank.model.padded)
            steps = [[getattr(record, "loss", None) for record in bank.step()] for _ in range(3)]
        for ours, theirs in zip(zip(*steps, strict=True), wanted, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_window_exceeded_by_evaluation_texts_only_is_applied(gpt2: FrozenBase) -> None:
    """Short texts in training, long ones at the evaluation."""
    base = in_memory(model_of(transformers.MistralConfig(**tiny_config(sliding_window=16))), gpt2)
    short = [example for example in demo_examples(base) if len(example.ids) <= 16]
    long = [example for example in demo_examples(base) if len(example.ids) > 16]
    (member, _), options = two_members(base), TrainingOptions(learning_rate=1e-2, steps=1)
    with Bank(base, [Member(plan=member.plan, options=options, seed=0, examples=short or long)]) as bank:
        (found,) = bank.evaluate(long)  # B is 0 at first
        bank.step()
    assert found.loss == pytest.approx(evaluate(base.model, long, base.device).loss, rel=1e-5)


def test_a_short_context_is_enough_for_all_adapters_in_one_call(gpt2: FrozenBase) -> None:
    """What fills a segment must not lie beyond the last position that the model knows."""
    base = in_memory(model_of(transformers.GPT2Config(**GPT, n_positions=32, initializer_range=0.2)), gpt2)
    members = two_members(base)
    assert max(len(example.ids) for example in members[0].examples) <= 32
    for ours, theirs in zip(by_bank(base, members, stacked=True), by_bank(base, members), strict=True):
        assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)


class Experts(nn.Module):
    """Two linear layers, each for some of the positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out, chosen = torch.zeros_like(x), x.sum(-1) > 0
        for expert, rows in zip(self.experts, (chosen, ~chosen), strict=True):
            out[rows] = expert(x[rows])
        return out


def test_experts_that_see_some_of_the_positions_cannot_be_adapted(gpt2: FrozenBase, model_folders: Any) -> None:
    model = model_of(transformers.LlamaConfig(**tiny_config()))
    model.model.layers[1].mlp = Experts(24)
    base = in_memory(model, gpt2)
    names = [name for name, _ in base.model.named_modules()]
    with (
        pytest.raises(
            ModelError,
            match=r"layers\.1\.mlp\.experts\.0 sees .* positions \(a mixture of experts\?\).*engine: reference",
        ),
        Bank(base, two_members(base)) as bank,
    ):
        bank.step()
    assert [name for name, _ in base.model.named_modules()] == names
    others = tuple(module for module in base.outline.modules if "experts" not in module.name)
    options = TrainingOptions(learning_rate=1e-2, steps=3)
    member = Member(plan=mixed_plan(others), options=options, seed=0, examples=demo_examples(base))
    (ours,) = by_bank(base, [member])
    assert losses(ours) == pytest.approx(losses(by_reference(base, member, ())), rel=1e-5)


def test_a_model_that_cannot_be_run_is_refused_with_the_reasons_and_the_remedy(
    gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_model, "_deviation", lambda *_: 0.5)
    with pytest.raises(ModelError, match=r"logits differ by 0\.5.*engine: reference"), Bank(gpt2, seven_members(gpt2)):
        pass
    bank_model._COMPARED.clear()  # a refusal is remembered too
    monkeypatch.setattr(bank_model, "_deviation", lambda *_: float("nan"))
    with pytest.raises(ModelError, match="logits differ by nan"), Bank(gpt2, seven_members(gpt2)):
        pass


def test_checkpointing_is_refused_where_blocks_cannot_recompute(gpt2: FrozenBase) -> None:
    model = model_of(transformers.CTRLConfig(vocab_size=768, n_positions=64, n_embd=24, dff=40, n_layer=2, n_head=2))
    base = in_memory(model, gpt2)
    with pytest.raises(ModelError, match="do not support activation checkpointing"):
        Bank(base, two_members(base), checkpointing=True).__enter__()


def test_a_plan_for_another_model_and_an_empty_bank_are_refused(base: FrozenBase, gpt2: FrozenBase) -> None:
    with pytest.raises(TrainingError, match="at least one adapter"):
        Bank(base, [])
    if base.name != "gpt2":
        with pytest.raises(TrainingError, match="names modules that the bank's model does not have"):
            Bank(base, seven_members(gpt2))
