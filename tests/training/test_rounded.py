"""Frozen products in bfloat16: their values and gradients, which layers have them, both engines, studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.fidelity import check_alone, check_bank, check_causal
from adaptive_lora.training.fused_layers import FusedLinear, fused_linear, use_rounded_products
from adaptive_lora.training.rounded import rounded_product, rounded_weight
from tests.training.conftest import by_bank, by_reference, demo_examples, seven_members

WriteStudy = Callable[..., Path]
ROUNDED = ("}\ndata:", ", products: bfloat16}\ndata:")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> FrozenBase:
    """Each tiny model, shared by tests that leave it unchanged."""
    return load_base(request.param, model_folders[request.param], products="bfloat16")


@pytest.fixture(scope="module")
def exact(base: FrozenBase, model_folders: dict[str, Path]) -> FrozenBase:
    """The same with its own products."""
    return load_base(base.name, model_folders[base.name])


# what a layer computes


def test_inputs_weights_and_the_result_are_rounded_and_the_sum_is_not() -> None:
    fine = 1 + 2**-8  # bfloat16 has 1 and 1 + 2^-7
    x, weight = torch.tensor([[fine, 2**-8, 1.0]]), torch.tensor([[1.0, 1.0, 2**-8]], dtype=torch.bfloat16)
    assert rounded_product(x[:, :1], weight[:, :1]).item() == 1  # the input is rounded, to even
    # 2^-8 alone would vanish beside 1 in a sum in bfloat16; two of them are 2^-7, which the result can hold.
    assert rounded_product(x, weight).item() == 1 + 2**-7
    biased = rounded_product(x[:, :1], weight[:, :1], torch.tensor([2**-20]))
    assert biased.dtype == torch.float32 and biased.item() == 1 + 2**-20


@pytest.mark.parametrize("kind", [nn.Linear, "Conv1D"])
def test_a_layer_and_its_fused_form_agree_with_the_formula(kind: type[nn.Linear] | str) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = Conv1D(5, 7) if kind == "Conv1D" else nn.Linear(7, 5)
    layer.bias.data.normal_()
    own = (layer.weight.t() if kind == "Conv1D" else layer.weight).detach()
    layer.requires_grad_(False)
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([layer])
    use_rounded_products(decoder)
    fused = fused_linear(layer)
    assert isinstance(fused, FusedLinear) and fused.weight.dtype == torch.bfloat16
    # An input that bfloat16 holds, so that results differ from the formula's in their last rounding alone.
    x, slope = torch.randn(2, 3, 7).bfloat16().float(), torch.randn(2, 3, 5).bfloat16().float()
    rounded = own.bfloat16().float()
    for form in (layer, fused):
        given = x.clone().requires_grad_()
        y = form(given)
        (gradient,) = torch.autograd.grad(y, given, slope)
        torch.testing.assert_close(y - layer.bias, x @ rounded.T, rtol=2**-8, atol=1e-6)
        torch.testing.assert_close(gradient, slope @ rounded, rtol=2**-8, atol=1e-6)
        assert not torch.allclose(y, x @ own.T + layer.bias, rtol=1e-5)


def test_the_linear_layers_of_the_decoder_alone_have_it(base: FrozenBase, exact: FrozenBase) -> None:
    has = {name for name, module in base.model.named_modules() if rounded_weight(module) is not None}
    assert has == {m.name for m in base.outline.modules} and base.coarse
    assert not exact.coarse and all(rounded_weight(module) is None for module in exact.model.modules())
    same = zip(base.model.state_dict().items(), exact.model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)  # what would be saved or merged


# both engines


def test_losses_are_near_the_models_own_and_not_the_same(base: FrozenBase, exact: FrozenBase) -> None:
    examples = demo_examples(base)
    rounded, own = (evaluate(one.model, examples, one.device) for one in (base, exact))
    assert rounded.loss != own.loss and rounded.loss == pytest.approx(own.loss, rel=2e-3)
    check_causal(base)
    check_alone(base, examples, rounded)
    agreement = check_bank(base, base.outline.modules, examples, rounded)
    assert agreement.largest < 0.02


def test_bank_and_reference_learn_the_same(base: FrozenBase) -> None:
    members = seven_members(base, dropout=False)
    trained = by_bank(base, members)
    for member, mine in zip(members, trained, strict=True):
        theirs = by_reference(base, member)
        losses, wanted = ([record.loss for record in one.records] for one in (mine, theirs))
        assert losses == pytest.approx(wanted, rel=5e-3)
        assert all(tensor.dtype == torch.float32 for tensor in mine.last.values())


def test_a_bank_multiplies_so(base: FrozenBase, exact: FrozenBase) -> None:
    def loss(one: FrozenBase) -> float:
        with Bank(one, seven_members(one)[:1]) as bank:
            return bank.evaluate(demo_examples(one))[0].loss

    assert loss(base) != loss(exact) and loss(base) == pytest.approx(loss(exact), rel=2e-3)


# studies


def test_a_study_says_so_and_one_without_the_key_is_what_it_was(study_file: WriteStudy) -> None:
    plain, rounded = load_study(study_file()), load_study(study_file(ROUNDED, name="rounded.yaml"))
    assert "products" not in plain.spec.model_dump(mode="json")["model"] and plain.identity != rounded.identity
    there, here = prepare(plain), prepare(rounded)
    assert here.context["model"] == {**there.context["model"], "products": "bfloat16"}
    assert here.facts()["model"]["note"] == "products of its frozen linear layers in bfloat16"
    assert not there.facts()["model"]["note"]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("products: float16", "bfloat16"),
        ("products: bfloat16, dtype: bfloat16", "are of float32 weights, got bfloat16: leave one of them out"),
        ("products: bfloat16, quantise: nf4", "are of float32 weights, got nf4: leave one of them out"),
    ],
)
def test_what_cannot_be_is_said_with_the_line(study_file: WriteStudy, said: str, answer: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        load_study(study_file(("}\ndata:", f", {said}}}\ndata:")))
    assert answer in str(caught.value) and "line 2" in str(caught.value)
