"""Which linear layers text passes through: seen from outside, on models with and without weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from adaptive_lora.training import base as base_module
from adaptive_lora.training.base import frozen, outline_of
from adaptive_lora.training.text_pass import called_in_text, outside_towers
from tests.training.conftest import tiny_config

VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip

CONFIGS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "pictures": (
        lambda: transformers.Gemma3Config(
            text_config={**tiny_config(head_dim=8), "model_type": "gemma3_text"},
            vision_config=VISION,
            mm_tokens_per_image=4,
        ),
        {f"self_attn.{leaf}_proj" for leaf in ("q", "k", "v", "out")} | {"mlp.fc1", "mlp.fc2", "attention.out_proj"},
    ),
    "a weight read past its layer": (
        lambda: transformers.FalconMambaConfig(
            vocab_size=96, hidden_size=24, num_hidden_layers=2, state_size=4, eos_token_id=0, bos_token_id=0
        ),
        {"mixer.dt_proj"},
    ),
    "a router that answers with a pair": (
        lambda: transformers.Llama4TextConfig(**tiny_config(head_dim=8, num_local_experts=2, intermediate_size_mlp=40)),
        {"feed_forward.router"},
    ),
    "attention to an encoder that is not there": (
        lambda: transformers.BartConfig(
            vocab_size=96, d_model=24, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=40, is_decoder=True
        ),
        {f"encoder_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "out_proj")},
    ),
    "tensors made on the CPU": (
        lambda: transformers.XLNetConfig(vocab_size=96, d_model=24, n_layer=2, n_head=2, d_inner=40),
        set(),
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_text_passes_through_is_the_same_with_and_without_weights(kind: str, tmp_path: Path) -> None:
    make, left_out = CONFIGS[kind]
    config = make()
    config.save_pretrained(tmp_path)
    outline = outline_of(kind, tmp_path)
    assert outline.pass_failed is None
    roles = {".".join(m.name.rsplit(".", 2)[-2:]) for m in outline.uncalled}
    assert roles == left_out
    with frozen(transformers.AutoModelForCausalLM.from_config(config), None) as loaded:
        assert loaded.outline.modules == outline.modules and loaded.outline.uncalled == outline.uncalled


def test_a_picture_block_is_no_block_of_the_text(tmp_path: Path) -> None:
    """Both count their blocks from 0; only the text's are depths of a plan."""
    CONFIGS["pictures"][0]().save_pretrained(tmp_path)
    modules = outline_of("x", tmp_path).modules
    assert [m.depth for m in modules] == [0] * 7 + [1] * 7
    assert not any("vision" in m.name for m in modules)


class Mixture(nn.Module):
    """Four experts as modules of their own, of which a text reaches one; and a block that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        blocks = [nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(6, 6) for _ in range(4))}) for _ in range(2)]
        self.blocks = nn.ModuleList(blocks)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        experts: Any = self.blocks[0]["experts"]  # type: ignore[index]
        return experts[2](self.embedding(input_ids))  # type: ignore[no-any-return]


def test_one_expert_that_is_reached_stands_for_its_siblings_alone() -> None:
    widths = {f"blocks.{i}.experts.{j}": 6 for i in range(2) for j in range(4)}
    assert called_in_text(Mixture(), widths) == {f"blocks.0.experts.{j}" for j in range(4)}


def test_the_hooks_are_gone_also_where_the_model_fails() -> None:
    model = Mixture()
    model.blocks = nn.ModuleList()
    widths = {"embedding": 6}
    with pytest.raises(IndexError):
        called_in_text(model, widths)
    assert not model.embedding._forward_hooks


def test_where_no_pass_can_be_run_names_decide_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any) -> None:
        raise NotImplementedError("no kernel for meta\nmore")

    CONFIGS["pictures"][0]().save_pretrained(tmp_path)
    by_pass = outline_of("x", tmp_path)
    monkeypatch.setattr(base_module, "called_in_text", broken)
    by_name = outline_of("x", tmp_path)
    assert by_name.pass_failed == "NotImplementedError: no kernel for meta"
    assert by_name.modules == by_pass.modules
    assert outside_towers(["audio_tower.q", "model.layers.0.q", "model.visual.merger"]) == {"model.layers.0.q"}


def test_a_pass_moves_no_global_randomness() -> None:
    model = Mixture()
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    called_in_text(model, {"blocks.0.experts.2": 6})
    torch.testing.assert_close(torch.rand(2), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "fused"), [("pictures", False), ("a weight read past its layer", False),
                                             ("a router that answers with a pair", True)])  # fmt: skip
def test_a_convolution_or_a_tower_is_no_stack_of_experts(kind: str, fused: bool, tmp_path: Path) -> None:
    CONFIGS[kind][0]().save_pretrained(tmp_path)
    outline = outline_of("x", tmp_path)
    assert bool(outline.experts) == bool(outline.fused_parameters) == fused
