"""The second half of a model: losses and gradients of hidden states, a few positions at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM

from adaptive_lora.training import head as heads
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.cross_entropy import token_costs
from adaptive_lora.training.fused_layers import fused_layers
from adaptive_lora.training.head import Head
from tests.training.conftest import tiny_config


def head_inputs(base: FrozenBase, count: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets and weights."""
    generator = torch.Generator().manual_seed(0)
    width = base.model.get_input_embeddings().weight.shape[1]
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64).to(base.model.dtype)
    return hidden, torch.randint(768, (count,), generator=generator), torch.rand(count, generator=generator)


def test_the_two_halves_are_the_model(base: FrozenBase) -> None:
    ids, head = torch.tensor([[5, 9, 300, 42, 17]]), Head(base.model)
    assert torch.equal(head.logits(head.decoder(ids)[0][0]), base.model(ids).logits[0])


def test_the_model_is_not_touched_and_its_logits_are_its_own() -> None:
    """Whatever a model does to its logits is done: Gemma caps them."""
    config = Gemma2Config(**tiny_config(), head_dim=8, final_logit_softcapping=2.0)
    model = Gemma2ForCausalLM(config).eval()
    ids, names = torch.tensor([[5, 9, 300]]), [name for name, _ in model.named_modules()]
    head = Head(model)
    logits = head.logits(head.decoder(ids)[0][0])
    assert torch.equal(logits, model(ids).logits[0]) and 1.0 < logits.abs().max() <= 2.0
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_and_gradients_are_autograds(base: FrozenBase, dtype: torch.dtype) -> None:
    base.model.to(dtype)
    hidden, targets, weights = head_inputs(base)
    found = Head(base.model).losses(hidden, targets, weights)
    leaf = hidden.clone().requires_grad_()
    logits = torch.nn.functional.linear(leaf, base.model.get_output_embeddings().weight)
    exact = logits.float() if dtype == torch.bfloat16 else logits
    nll = cross_entropy(exact, targets, reduction="none")
    (nll * weights.to(nll.dtype)).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.nll, nll.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.gradient, leaf.grad, rtol=tolerance, atol=tolerance)
    assert found.gradient is not None and found.gradient.dtype == dtype
    assert torch.equal(found.correct, logits.argmax(-1) == targets)


@pytest.mark.parametrize("size", [49152, 50257, 300])
def test_losses_over_a_large_vocabulary_are_those_of_double_precision(size: int) -> None:
    logits = torch.randn(64, size, generator=torch.Generator().manual_seed(size))
    targets = torch.arange(64) * (size // 64)
    logits[range(0, 64, 2), targets[::2]] += 15  # where one token is likely, the others are many and small
    nll, right, slope = token_costs(logits, targets, torch.ones(64))
    exact = logits.double().requires_grad_()
    wanted = cross_entropy(exact, targets, reduction="none")
    wanted.sum().backward()
    assert (nll - wanted).abs().max() < 2e-6  # torch's own in single precision: 1e-5 and more
    assert abs((nll / wanted - 1).mean()) < 1e-4  # its mean: a thousandth
    assert slope is not None and exact.grad is not None and (slope - exact.grad).abs().max() < 1e-6
    assert torch.equal(right, logits.argmax(-1) == targets)


@pytest.mark.parametrize("at_once", [1, 7, 22])
def test_a_few_positions_at_a_time_give_the_same(
    exact_gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    hidden, targets, weights = head_inputs(exact_gpt2)
    head, seen = Head(exact_gpt2.model), []
    targets[::2] = head.logits(hidden).argmax(-1)[::2]
    whole = head.losses(hidden, targets, weights)
    plain = Head.logits

    def counted(self: Head, rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(Head, "logits", counted)
    monkeypatch.setattr(heads, "_CPU_LOGITS", 768 * at_once + 100)
    parts = head.losses(hidden, targets, weights)
    assert max(seen) <= at_once and sum(seen) == 23 and max(seen) - min(seen) <= 1
    assert len(seen) == -(-23 // at_once)  # no more passes than needed
    for name in ("nll", "gradient"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-13, atol=1e-15)
    assert torch.equal(parts.correct, whole.correct) and 12 <= parts.correct.sum() < 23
    assert not parts.nll.requires_grad


@pytest.mark.parametrize("count", [1, 7, 8, 15, 22])
def test_a_row_has_the_same_bits_whatever_the_other_rows(
    gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A twin of the baseline has another slot of the bank and must end bit-equal. Seven rows go at once, so
    that 8, 15 and 22 used to leave a lone one."""
    hidden, targets, weights = head_inputs(gpt2)
    with fused_layers(gpt2.model):
        head = Head(gpt2.model)
        whole = head.losses(hidden, targets, weights)
        monkeypatch.setattr(heads, "_CPU_LOGITS", 768 * 7)
        found = head.losses(hidden[:count], targets[:count], weights[:count])
    assert torch.equal(found.nll, whole.nll[:count])
    assert found.gradient is not None and whole.gradient is not None
    assert torch.equal(found.gradient, whole.gradient[:count])


def test_without_weights_there_is_no_gradient(exact_gpt2: FrozenBase) -> None:
    hidden, targets, weights = head_inputs(exact_gpt2)
    head = Head(exact_gpt2.model)
    found = head.losses(hidden, targets)
    assert found.gradient is None and torch.equal(found.nll, head.losses(hidden, targets, weights).nll)


def test_a_pack_without_completion_tokens_has_no_losses(exact_gpt2: FrozenBase) -> None:
    hidden, targets, weights = head_inputs(exact_gpt2, 0)
    found = Head(exact_gpt2.model).losses(hidden, targets, weights)
    assert found.nll.shape == found.correct.shape == (0,)
    assert found.gradient is not None and found.gradient.shape == hidden.shape
