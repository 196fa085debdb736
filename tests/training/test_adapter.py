"""Adapters: built as planned, nested, seeded, and readable by PEFT."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adaptive_lora.errors import TrainingError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.training.adapter import (
    ADAPTER,
    SeededDropout,
    attached,
    lora_layers,
    save_adapter,
    trainable,
    verify,
    weights_of,
)
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.dropout import DropoutMasks
from adaptive_lora.training.options import initial_a
from tests.conftest import mixed_plan

IDS = torch.tensor([[5, 9, 300, 42, 17], [7, 7, 20, 31, 2]])


@pytest.mark.parametrize("rule", ["constant", "rslora", "alpha-over-r"])
def test_ranks_and_scalings_are_built_as_planned(base: FrozenBase, rule: str) -> None:
    plan = mixed_plan(base.outline.modules, rule)
    with attached(base, plan, seed=0) as model:
        assert sum(p.numel() for p in trainable(model).values()) == plan.trainable_parameters
        for name, layer in lora_layers(model).items():
            assert layer.r[ADAPTER] == plan.ranks[name]
            assert layer.scaling[ADAPTER] == pytest.approx(plan.scaling_of(name), rel=1e-12)


def test_an_adapter_begins_as_the_base_with_nested_a(base: FrozenBase) -> None:
    before = base.model(IDS).logits
    plan = mixed_plan(base.outline.modules)
    with attached(base, plan, seed=4) as model:
        torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=0)
        for name, layer in lora_layers(model).items():
            wanted = initial_a(4, name, plan.ranks[name], layer.in_features)
            torch.testing.assert_close(layer.lora_A[ADAPTER].weight.detach(), torch.from_numpy(wanted), rtol=0, atol=0)


def test_the_base_is_restored(base: FrozenBase) -> None:
    before = copy.deepcopy(base.model.state_dict())
    modules = [name for name, _ in base.model.named_modules()]
    with attached(base, mixed_plan(base.outline.modules), seed=0) as model:
        for parameter in trainable(model).values():
            parameter.data.add_(1.0)
    assert [name for name, _ in base.model.named_modules()] == modules
    assert not any(p.requires_grad for p in base.model.parameters())
    for name, value in base.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_plan_that_peft_cannot_build_leaves_the_base_clean(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    def halfway(model: torch.nn.Module, config: peft.LoraConfig) -> None:
        peft.PeftModel(model, config)  # the layers are in place, and then something goes wrong
        raise RuntimeError("out of memory")

    monkeypatch.setattr("peft.get_peft_model", halfway)
    names = [name for name, _ in gpt2.model.named_modules()]
    with pytest.raises(RuntimeError, match="out of memory"), attached(gpt2, mixed_plan(gpt2.outline.modules), 0):
        pass
    assert [name for name, _ in gpt2.model.named_modules()] == names


def test_global_randomness_is_neither_read_nor_moved(gpt2: FrozenBase) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with attached(gpt2, mixed_plan(gpt2.outline.modules), seed=0, dropout=0.5) as model:
        for layer in lora_layers(model).values():
            layer.lora_dropout[ADAPTER].train()
        model(IDS)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["constant", "alpha-over-r"])
def test_peft_reads_what_we_save(base: FrozenBase, tmp_path: Path, rule: str) -> None:
    """Mixed ranks, both architectures: the same logits from PeftModel.from_pretrained."""
    with attached(base, mixed_plan(base.outline.modules, rule), seed=0) as model:
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B[ADAPTER].weight, generator=torch.Generator().manual_seed(1))
        expected = model(IDS).logits
        save_adapter(weights_of(model), mixed_plan(base.outline.modules, rule), tmp_path, base)
    plain = base.model(IDS).logits
    with quiet_libraries():
        loaded = PeftModel.from_pretrained(base.model, tmp_path)

    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=0)
    assert (expected - plain).abs().max() > 0.1  # the adapter does something, so the comparison can fail
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_peft_did_not_build_is_refused(gpt2: FrozenBase) -> None:
    plan = mixed_plan(gpt2.outline.modules)
    other = mixed_plan(gpt2.outline.modules, shift=1)
    scaled = mixed_plan(gpt2.outline.modules, "rslora")
    with attached(gpt2, plan, seed=0) as model:
        layers = lora_layers(model)
        verify(layers, plan)
        with pytest.raises(TrainingError, match=r"has rank 1, the plan says 2.*12 modules"):
            verify(layers, other)
        with pytest.raises(TrainingError, match="has scaling"):
            verify(layers, scaled)
        name = next(iter(layers))
        with pytest.raises(TrainingError, match=f"{name} has no adapter"):
            verify({k: v for k, v in layers.items() if k != name}, plan)
        with pytest.raises(TrainingError, match="that the plan does not name"):
            verify({**layers, "extra": layers[name]}, plan)


def test_dropout_masks_are_functions_of_seed_module_and_step() -> None:
    x = torch.ones(4, 5, 6)

    def mask(seed: int, name: str, step: int) -> torch.Tensor:
        dropout = SeededDropout(DropoutMasks(seed, 0.4, {"a": 6, "b": 6}), name).train()
        dropout.step = step
        return dropout(x)

    torch.testing.assert_close(mask(1, "a", 2), mask(1, "a", 2), rtol=0, atol=0)
    for other in (mask(2, "a", 2), mask(1, "b", 2), mask(1, "a", 3)):
        assert not torch.equal(mask(1, "a", 2), other)
    assert mask(1, "a", 2).unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    share = (SeededDropout(DropoutMasks(0, 0.25, {"a": 200}), "a").train()(torch.ones(200, 200)) == 0).float().mean()
    assert share == pytest.approx(0.25, abs=0.01)
    assert torch.equal(SeededDropout(DropoutMasks(1, 0.4, {"a": 6}), "a").eval()(x), x)
