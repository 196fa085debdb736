"""Fused layers compute the same as the layers that they replace, and replace no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.fused_layers import FusedLinear, frozen_linear, fused_layers, fused_linear
from adaptive_lora.training.pointwise import FusedGELU, FusedRMSNorm


class Scaled(nn.Linear):
    """A linear layer that is more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TrickRMSNorm(LlamaRMSNorm):
    """A norm by name, something else by nature."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + 0.01


def frozen(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Random weights that want no gradient."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return module.to(dtype).requires_grad_(False)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def replaced(module: nn.Module) -> nn.Module:
    """What a model has in the module's place under `fused_layers`."""
    model = nn.Sequential(module)
    with fused_layers(model):
        return model[0]


LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "without bias": lambda: nn.Linear(12, 20, bias=False),
    "conv1d": lambda: Conv1D(20, 12),
    "norm": lambda: LlamaRMSNorm(12, eps=1e-3),
}


BOTH = [(kind, dtype) for kind in LAYERS for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize(("kind", "dtype"), BOTH[:-1])  # Llama's norm rounds to single precision, and keeps its place
def test_values_and_input_gradients_are_the_layers(kind: str, dtype: torch.dtype) -> None:
    module = frozen(LAYERS[kind](), dtype)
    fused = replaced(module)
    assert isinstance(fused, FusedRMSNorm if kind == "norm" else FusedLinear)
    for shape in ((7, 12), (2, 5, 12), (1, 1, 12)):
        one, two = (random(*shape, dtype=dtype).requires_grad_() for _ in range(2))
        a, b = module(one), fused(two)
        grad_output = random(*a.shape, dtype=dtype, seed=3)
        (a * grad_output).sum().backward()
        (b * grad_output).sum().backward()
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(two.grad, one.grad)


def test_gradients_are_those_of_finite_differences() -> None:
    x = random(3, 4, dtype=torch.float64).requires_grad_()
    weight = random(6, 4, dtype=torch.float64)
    norm, linear = FusedRMSNorm(random(4, dtype=torch.float64, seed=5), 1e-3), FusedLinear(weight, weight[:, 0].clone())
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradcheck(linear, x)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_take_any_strides(dtype: torch.dtype, strided: bool) -> None:
    x, weight, bias = random(9, 12, dtype=dtype), random(20, 12, dtype=dtype), random(20, dtype=dtype)
    if strided:
        x, weight = random(12, 9, dtype=dtype).t(), random(12, 20, dtype=dtype).t()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 5e-2)
    torch.testing.assert_close(frozen_linear(x, weight, bias), x @ weight.t() + bias, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(frozen_linear(x, weight), x @ weight.t(), rtol=tolerance, atol=tolerance)


def test_layers_that_only_look_alike_are_not_replaced() -> None:
    """Subclasses, norms that add one to their weight or something to their result, whole numbers, embeddings."""
    whole = nn.Linear(12, 20, bias=False)
    whole.weight = nn.Parameter(torch.ones(20, 12, dtype=torch.int8), requires_grad=False)
    others = [frozen(m, torch.float32) for m in (Scaled(12, 20), GemmaRMSNorm(12), TrickRMSNorm(12), nn.LayerNorm(12))]
    for module in (*others, whole, nn.Embedding(4, 12), nn.GELU()):
        assert replaced(module) is module
    assert fused_linear(Scaled(12, 20)) is None and fused_linear(whole) is None
    assert isinstance(replaced(frozen(LlamaRMSNorm(12), torch.float32)), FusedRMSNorm)
    assert not isinstance(replaced(frozen(LlamaRMSNorm(12), torch.bfloat16)), FusedRMSNorm)


def test_gelu_by_tanh_is_torchs_own(gpt2: FrozenBase) -> None:
    act = gpt2.model.get_submodule("transformer.h.0.mlp.act")
    x = 3 * random(50, 16)
    with fused_layers(gpt2.model):
        fused = gpt2.model.get_submodule("transformer.h.0.mlp.act")
        assert isinstance(fused, FusedGELU)
        torch.testing.assert_close(fused(x), act(x))
    assert gpt2.model.get_submodule("transformer.h.0.mlp.act") is act


def test_a_model_says_the_same_with_fused_layers_and_gets_its_own_back(base: FrozenBase) -> None:
    model, ids = base.model, torch.tensor([[5, 9, 300, 42, 17]])
    expected, before = model(ids).logits, dict(model.named_modules(remove_duplicate=False))
    with pytest.raises(ArithmeticError), fused_layers(model):
        assert sum(isinstance(module, FusedLinear) for module in model.modules()) == len(base.outline.modules) + 1
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
        raise ArithmeticError
    after = dict(model.named_modules(remove_duplicate=False))
    assert list(after) == list(before) and all(after[name] is before[name] for name in after)
    assert torch.equal(model(ids).logits, expected)
