"""Norms, gates and rotations in one pass: the numbers of the layers that they replace, in no others' place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import ACT2FN
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.cross_entropy import token_costs
from adaptive_lora.training.current_batch import BankBatch, current_batch
from adaptive_lora.training.fused_layers import fused_layers
from adaptive_lora.training.kernels import forget_kernels, pointwise_kernel
from adaptive_lora.training.packing import pack
from adaptive_lora.training.pointwise import FusedGELU, FusedRMSNorm, GatedMLP, fused_rotations, gated

SIZES = {"hidden_size": 24, "intermediate_size": 35, "num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = LlamaConfig(vocab_size=32, num_hidden_layers=1, **SIZES)


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With and without `pointwise.c`."""
    if request.param == "torch":
        monkeypatch.setenv("ADAPTIVE_LORA_KERNEL", "off")
    forget_kernels()
    if request.param == "compiled" and pointwise_kernel() is None:
        pytest.skip("no C compiler here")
    yield request.param
    forget_kernels()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def module_made(cls: type[nn.Module], *arguments: object) -> nn.Module:
    """With random weights that want no gradient."""
    made = cls(*arguments)
    for parameter in made.parameters():
        parameter.data.copy_(random(*parameter.shape, seed=3))
    return made.requires_grad_(False)


def passed(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of the input."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(random(*y.shape, seed=2))
    assert x.grad is not None
    return y.detach(), x.grad


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_a_norm_is_llamas(way: str) -> None:
    norm = module_made(LlamaRMSNorm, 27)
    x = random(2, 5, 27)
    same(passed(FusedRMSNorm(norm.weight, 1e-6), x), passed(norm, x))


def test_a_feed_forward_part_is_llamas(way: str) -> None:
    mlp = module_made(LlamaMLP, CONFIG)
    fused = GatedMLP.of(mlp)
    assert fused is not None
    x = random(1, 7, 24)
    same(passed(fused, x), passed(mlp, x))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_an_activation_is_gpt2s(way: str, name: str) -> None:
    model, x = nn.Sequential(ACT2FN[name]), 3 * random(5, 21)
    wanted = passed(model, x)
    with fused_layers(model):
        assert isinstance(model[0], FusedGELU)
        same(passed(model, x), wanted)


def test_other_activations_keep_their_place() -> None:
    model = nn.Sequential(*(ACT2FN[name] for name in ("gelu", "silu", "relu2", "quick_gelu")))
    with fused_layers(model):
        assert not any(isinstance(layer, FusedGELU) for layer in model)


def test_other_feed_forward_parts_keep_their_place() -> None:
    def variant(**changes: object) -> nn.Module:
        return module_made(LlamaMLP, LlamaConfig(**{**CONFIG.to_dict(), **changes}))

    extra = variant()
    extra.norm = nn.LayerNorm(24)
    own = variant()
    own.scale = nn.Parameter(torch.ones(1))
    assert [GatedMLP.of(mlp) for mlp in (variant(hidden_act="gelu"), extra, own)] == [None] * 3


class DoubledMLP(LlamaMLP):
    """By its parts Llama's, by its numbers not."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(("cls", "kept"), [(LlamaMLP, False), (DoubledMLP, True)])
def test_only_what_computes_the_same_is_replaced(cls: type[nn.Module], kept: bool) -> None:
    model = nn.Sequential(module_made(cls, CONFIG))
    own = model[0]
    with fused_layers(model):
        assert isinstance(model[0], GatedMLP) != kept
    assert model[0] is own and type(own.gate_proj) is nn.Linear


def test_a_number_has_the_same_bits_wherever_it_stands() -> None:
    """Torch's are others at the end of a tensor: there is no vector left to put them into."""
    if pointwise_kernel() is None:
        pytest.skip("no C compiler here")
    gate, up = random(9, 35), random(9, 35, seed=5)
    assert torch.equal(gated(gate, up)[3:], gated(gate[3:], up[3:]))
    norm, x = FusedRMSNorm(random(27), 1e-6), random(9, 27)
    assert torch.equal(passed(norm, x)[0][3:], passed(norm, x[3:])[0])


def test_what_is_not_a_number_stays_none(way: str) -> None:
    """A run that diverges is recognised by its loss, which no function may make finite."""
    x = random(3, 40)
    x[1, 17] = torch.nan
    norm = FusedRMSNorm(random(40), 1e-6)
    nll, _, slope = token_costs(x, torch.tensor([0, 1, 2]), torch.ones(3))
    found = [gated(x, x), gated(random(3, 40), x), FusedGELU()(x)]
    assert all(torch.equal(y.isnan(), x.isnan()) for y in found)
    assert slope is not None
    for y in (norm(x).sum(1), nll, slope.sum(1)):
        assert y.isnan().tolist() == [False, True, False]


def rotated(model: LlamaForCausalLM, inside: bool) -> tuple[Tensor, Tensor]:
    """The model's logits of one row, and the gradient of its embeddings; `inside` a bank's batch."""
    ids = torch.arange(11)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    batch = BankBatch(pack([[Example(tuple(range(12)), 1, False)]], torch.device("cpu"), padded=False))
    with current_batch(batch) if inside else contextlib.nullcontext():
        logits = model(inputs_embeds=embedded, use_cache=False).logits
    logits.backward(random(*logits.shape, seed=4))
    assert embedded.grad is not None
    return logits.detach(), embedded.grad


def test_rotations_are_llamas_and_its_own_again_at_the_end(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaForCausalLM(CONFIG).requires_grad_(False)
    own, wanted = modeling_llama.apply_rotary_pos_emb, rotated(model, inside=False)
    calls = []
    counted = lambda *inputs, **named: calls.append(1) or own(*inputs, **named)  # noqa: E731
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", counted)
    with fused_rotations(model):
        calls.clear()
        same(rotated(model, inside=True), wanted)
        assert len(calls) == (0 if way == "compiled" else 1)
        same(rotated(model, inside=False), wanted)  # outside of a bank's passes it is transformers' own
        assert len(calls) == (1 if way == "compiled" else 2)
        with fused_rotations(model):
            same(rotated(model, inside=True), wanted)
    assert modeling_llama.apply_rotary_pos_emb is counted


def test_rotations_of_another_kind_are_left_alone() -> None:
    """GLM rotates neighbours, and half of a head."""
    model = nn.Module()
    model.__class__ = type("Module", (nn.Module,), {"__module__": modeling_glm.__name__})
    own = modeling_glm.apply_rotary_pos_emb
    with fused_rotations(model):
        assert modeling_glm.apply_rotary_pos_emb is own
