"""Memory by shape, and what is pasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import UsageError
from adaptive_lora.planning.outline import ModelOutline
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.recommend.material import Material, check_rank, middle_rank
from adaptive_lora.recommend.real_run import fit, memory_of, parse_memory, real_run
from adaptive_lora.recommend.snippet import short_names, snippet
from adaptive_lora.recommend.speed import uniform_plan
from adaptive_lora.study.prepare import open_outline
from tests.conftest import mixed_plan


def material(outline: ModelOutline, records: int = 4000) -> Material:
    return Material(outline, outline.modules, records, 100.0, 300, ())


@pytest.fixture(scope="module")
def llama_8b() -> Material:
    """Llama 3.1 8B, by its sizes."""
    from adaptive_lora.planning.outline import _llama

    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
              "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
              "max_position_embeddings": 131072, "tie_word_embeddings": False}  # fmt: skip
    modules, others = _llama(config)
    total = sum(m.d_in * m.d_out for m in modules) + others
    assert total == 8_030_261_248
    return material(ModelOutline("llama", modules, total, 131072, embedding_rows=128256))


def test_memory_is_weights_adapter_and_activations(llama_8b: Material) -> None:
    found = memory_of(llama_8b, 16, "bfloat16", 1)
    assert found.weights == 2 * 8_030_261_248
    assert found.adapter == 16 * 41_943_040  # what a uniform rank 16 is known to have
    per_position = sum(m.d_in + m.d_out for m in llama_8b.modules) * 2 + 8 * 128256
    assert found.activations == 300 * per_position
    assert found.total == pytest.approx(1.1 * (found.weights + found.adapter + found.activations))


def test_what_fits_a_card_is_the_most_comfortable_way(llama_8b: Material) -> None:
    small, card, large = (fit(llama_8b, 16, parse_memory(text), 4) for text in ("4GB", "12GB", "80GB"))
    assert (large.dtype, large.batch_size, large.fits) == ("bfloat16", 4, True)
    assert (card.dtype, card.fits) == ("4-bit", True) and card.memory.total <= 12e9
    assert not small.fits and (small.dtype, small.batch_size) == ("4-bit", 1)


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "0GB", "24 cards"])
def test_a_memory_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 24GB or 80GiB"):
        parse_memory(text)


def test_few_records_are_read_three_times(llama_8b: Material) -> None:
    many, few = (real_run(own, 8, 0.5, "float32", None) for own in (llama_8b, material(llama_8b.outline, 101)))
    assert (many.epochs, many.steps, many.seconds) == (1, 1000, 2000.0)
    assert (few.epochs, few.steps, few.seconds) == (3, 78, 151.5)
    assert real_run(llama_8b, 8, None, "float32", None).seconds is None and many.fit is None


def test_uniform_ranks_are_written_out_and_mean_what_the_plan_means(model_folders: dict[str, Path]) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    for kind, folder in model_folders.items():
        plan = uniform_plan(material(open_outline(str(folder))), 4)
        code = snippet(plan, plan.modules, Path("unused"))
        assert len(code.splitlines()) <= 5 and max(map(len, code.splitlines())) <= 80
        names: dict[str, LoraConfig] = {}
        exec(code, names)
        model = inject_adapter_in_model(_quiet(names["config"], kind), AutoModelForCausalLM.from_pretrained(folder))
        ranks = {name: m.r["default"] for name, m in model.named_modules() if hasattr(m, "lora_A")}
        assert ranks == dict(plan.ranks)
        assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == plan.trainable_parameters


def _quiet(config: Any, kind: str) -> Any:
    """GPT-2's weights are stored the other way round, which PEFT finds out with a warning."""
    config.fan_in_fan_out = kind == "gpt2"
    return config


def test_mixed_ranks_are_read_from_the_file_that_is_written(llama_8b: Material) -> None:
    code = snippet(mixed_plan(llama_8b.modules), llama_8b.modules, Path("runs/x/peft"))
    assert code.splitlines()[-1] == 'config = LoraConfig.from_pretrained("runs/x/peft")'
    one = RankPlan("uniform", 8 * 8192, llama_8b.modules[:1], {llama_8b.modules[0].name: 8}, Scaling())
    assert '"model.layers.0.self_attn.q_proj"' in snippet(one, llama_8b.modules, Path("x"))


def test_attention_alone_is_named_by_its_roles(model_folders: dict[str, Path]) -> None:
    every = open_outline(str(model_folders["gpt2"])).modules
    attention = [m for m in every if m.kind == "attention"]
    assert short_names(every, every) == ["c_attn", "c_proj", "c_fc"]
    assert short_names(attention, every) == ["attn.c_attn", "attn.c_proj"]


def test_the_middle_of_three_ranks_has_room_on_both_sides(llama_8b: Material, model_folders: dict[str, Path]) -> None:
    tiny = open_outline(str(model_folders["llama"])).modules  # its narrowest matrix has 12 rows
    assert middle_rank(llama_8b.modules) == 8 and middle_rank(tiny) == 4
    check_rank(4, tiny)
    for rank in (0, 3, 8):
        with pytest.raises(UsageError, match="an even number from 2 to 6"):
            check_rank(rank, tiny)
