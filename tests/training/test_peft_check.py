"""Plans are built by PEFT before they are used; what it builds otherwise is refused with targets that were tried."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from adaptive_lora.errors import ModelError, TrainingError
from adaptive_lora.planning.modules import select_targets
from adaptive_lora.planning.outline import ModelOutline
from adaptive_lora.training.adapter import attached, save_adapter, weights_of
from adaptive_lora.training.base import FrozenBase, meta_model, outline_of, quiet_libraries
from adaptive_lora.training.peft_check import built_otherwise, check_with_peft, read_back, remedy, uniform_plan
from tests.conftest import mixed_plan
from tests.training.conftest import tiny_config

MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
          "v_head_dim": 8}  # fmt: skip
MAMBA = {"vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
STATE = {"mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6, "mamba_n_groups": 1, "mamba_d_state": 4,
         "mamba_chunk_size": 8}  # fmt: skip
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 16}  # fmt: skip

ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "latent attention": (lambda: transformers.DeepseekV3Config(**{**tiny_config(), **MIXTURE, **ROUTED, **LATENT}),
                         "gate_proj, up_proj, down_proj"),
    "shared experts": (lambda: transformers.Glm4MoeConfig(**tiny_config(head_dim=8), **MIXTURE, **ROUTED),
                       "gate_proj, up_proj, down_proj"),
    "linear attention": (lambda: transformers.Qwen3NextConfig(**tiny_config(head_dim=8, num_experts=4), **MIXTURE,
                                                              **LINEAR), "gate_proj, up_proj, down_proj"),
    "a dense layer": (lambda: transformers.Qwen3MoeConfig(**tiny_config(head_dim=8, num_experts=4), **MIXTURE,
                                                          mlp_only_layers=[1]), "gate_proj, up_proj, down_proj"),
    "a state": (lambda: transformers.MambaConfig(**MAMBA), "out_proj"),
    "a state and attention": (lambda: transformers.FalconH1Config(**tiny_config(), **STATE), "out_proj"),
}  # fmt: skip


def opened(config: Any, folder: Path) -> tuple[Any, ModelOutline]:
    config.save_pretrained(folder)
    return meta_model("odd", folder), outline_of("odd", folder)


@pytest.mark.parametrize("kind", ODD)
def test_what_peft_builds_otherwise_is_refused_with_targets_that_it_builds(kind: str, tmp_path: Path) -> None:
    """The remedy is read from the message as a user would, and PEFT's own layers are counted."""
    from peft import get_peft_model

    make, moved = ODD[kind]
    model, outline = opened(make(), tmp_path)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ModelError, match=r"PEFT \d.* does not build this plan on odd as it is written") as refused:
        check_with_peft(model, uniform_plan(outline.modules), outline.modules, "odd")
    assert [name for name, _ in model.named_modules()] == names and not hasattr(model, "peft_config")
    assert f"PEFT refuses {moved} here" in str(refused.value)
    told = re.findall(r"`targets: (?:\[([^]]*)\]|(\w+))`(?:, in a command `[^`]*`)? \((\d+) of", str(refused.value))
    assert told
    for listed, word, count in told:
        chosen = select_targets(outline.modules, listed.split(", ") if listed else word)
        with quiet_libraries():
            wrapped = get_peft_model(meta_model("odd", tmp_path), uniform_plan(chosen).to_lora_config())
        found = {name for name, _ in wrapped.base_model.model.named_parameters() if ".lora_A." in name}
        assert found == {f"{m.name}.lora_A.default.weight" for m in chosen} and len(found) == int(count)


def test_a_plan_that_peft_builds_passes_and_leaves_no_trace(base: FrozenBase) -> None:
    before = {name: (type(module), module.training) for name, module in base.model.named_modules()}
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    check_with_peft(base.model, mixed_plan(base.outline.modules, "rslora"), base.outline.modules, base.name)
    torch.testing.assert_close(torch.rand(2), wanted, rtol=0, atol=0)
    assert {name: (type(module), module.training) for name, module in base.model.named_modules()} == before
    assert not any(p.requires_grad for p in base.model.parameters())


def test_ranks_and_scalings_are_read_back_too(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = mixed_plan(gpt2.outline.modules)
    config = plan.to_lora_config()
    config.alpha_pattern = {}
    monkeypatch.setattr(type(plan), "to_lora_config", lambda self: config)
    assert "scaling" in (built_otherwise(gpt2.model, plan) or "")


def test_where_nothing_is_built_no_targets_are_promised(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any, **__: Any) -> None:
        raise ValueError("not today")

    monkeypatch.setattr("peft.get_peft_model", refusing)
    assert built_otherwise(gpt2.model, uniform_plan(gpt2.outline.modules)) == "not today"
    assert "take another model" in remedy(gpt2.model, gpt2.outline.modules)


@pytest.mark.parametrize("config", [
    lambda: transformers.MixtralConfig(**tiny_config(num_local_experts=3)),
    lambda: transformers.GptOssConfig(**tiny_config(num_local_experts=4, head_dim=8)),
])  # fmt: skip
def test_experts_cost_what_peft_trains_of_them(config: Callable[[], Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, outline = opened(config(), tmp_path)
    parameters = [stack.name for stack in outline.experts]
    assert len(parameters) == 4  # two stacks in each of two blocks
    with quiet_libraries():
        built = get_peft_model(model, LoraConfig(r=3, target_modules=[], target_parameters=parameters))
    found = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert found == 3 * sum(stack.params_per_rank for stack in outline.experts)


@pytest.fixture
def saved(gpt2: FrozenBase, tmp_path: Path) -> tuple[Path, Any]:
    plan = mixed_plan(gpt2.outline.modules, "alpha-over-r")
    with attached(gpt2, plan, seed=0) as model:
        save_adapter(weights_of(model), plan, tmp_path, gpt2)
    return tmp_path, plan


def test_a_saved_adapter_is_the_plan_and_its_targets_are_in_order(saved: tuple[Path, Any]) -> None:
    """PEFT keeps targets in a set, whose order depends on the hash seed; bytes of a file should not."""
    folder, plan = saved
    read_back(folder, plan)
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(plan.ranks)


def _other_rank(folder: Path) -> None:
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    key = next(iter(content["rank_pattern"]))
    content["rank_pattern"][key] += 1
    path.write_text(json.dumps(content))


def _one_tensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))


NAME = "base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_other_rank, "rank_pattern is"),
        (lambda folder: _one_tensor(folder, lambda found: found.pop(NAME)), "missing"),
        (lambda folder: _one_tensor(folder, lambda found: found.update({NAME: found[NAME].t().contiguous()})), "says"),
        (lambda folder: _one_tensor(folder, lambda found: found.update(more=torch.ones(1))), "nothing of it"),
    ],
)
def test_an_adapter_that_is_not_its_plan_is_refused(
    saved: tuple[Path, Any], spoil: Callable[[Path], None], said: str
) -> None:
    folder, plan = saved
    spoil(folder)
    with pytest.raises(TrainingError, match=f"is not the plan that was trained.*{said}"):
        read_back(folder, plan)
