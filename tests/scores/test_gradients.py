"""Scores against a direct computation of the full gradient."""

from __future__ import annotations

import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.scores.gradients import gradient_scores
from adaptive_lora.training.base import FrozenBase


def test_scores_equal_the_full_mean_gradients(base: FrozenBase, examples: list[Example]) -> None:
    base.model.double()
    modules = base.outline.modules
    chosen = examples[:6]
    found = gradient_scores(base, modules, chosen, 3, ["weight-gradient", "gradient-norm"])

    weights = [base.model.get_submodule(m.name).weight.requires_grad_() for m in modules]
    total = torch.zeros((), dtype=torch.float64)
    for batch in (chosen[:3], chosen[3:]):
        nll = tokens = 0
        for example in batch:
            ids = torch.tensor([example.ids])
            scores = base.model(ids).logits[0].log_softmax(-1)
            start = example.prompt_length
            nll = nll - scores[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()
            tokens += ids.shape[1] - start
        total = total + nll / tokens / 2
    for m, weight, gradient in zip(modules, weights, torch.autograd.grad(total, weights), strict=True):
        assert found["weight-gradient"][m.name] == pytest.approx((weight * gradient).abs().mean().item(), rel=1e-6)
        assert found["gradient-norm"][m.name] == pytest.approx(
            gradient.norm().item() / (m.d_in * m.d_out) ** 0.5, rel=1e-6
        )


def test_the_base_is_left_frozen_and_clean(gpt2: FrozenBase, examples: list[Example]) -> None:
    before = {name: p.clone() for name, p in gpt2.model.named_parameters()}
    gradient_scores(gpt2, gpt2.outline.modules, examples[:4], 2, ["gradient-norm"])
    for name, parameter in gpt2.model.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_half_precision_gradients_are_summed_in_full(gpt2: FrozenBase, examples: list[Example]) -> None:
    full = gradient_scores(gpt2, gpt2.outline.modules, examples[:12], 1, ["gradient-norm"])["gradient-norm"]
    gpt2.model.bfloat16()
    half = gradient_scores(gpt2, gpt2.outline.modules, examples[:12], 1, ["gradient-norm"])["gradient-norm"]
    assert [half[name] for name in full] == pytest.approx(list(full.values()), rel=0.05)


def test_weights_that_take_no_part_score_zero(gpt2: FrozenBase, examples: list[Example]) -> None:
    gpt2.model.transformer.h[2].register_forward_hook(lambda module, inputs, output: inputs[0])
    scores = gradient_scores(gpt2, gpt2.outline.modules, examples[:2], 2, ["gradient-norm"])["gradient-norm"]
    assert {name for name, value in scores.items() if value == 0} == {name for name in scores if ".h.2." in name}


def test_a_score_that_is_not_finite_is_an_error(gpt2: FrozenBase, examples: list[Example]) -> None:
    gpt2.model.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        gradient_scores(gpt2, gpt2.outline.modules, examples[:4], 2, ["gradient-norm"])
