"""The table of tools, and what is chosen by it."""

from __future__ import annotations

import re

import pytest

from adaptive_lora.errors import UsageError
from adaptive_lora.export.forms import DESCRIPTIONS, FORMS, MERGED
from adaptive_lora.export.tools import TOOLS, Filled, compatible, find_tool, form_for, not_read, table_json, vllm_rank

CHOSEN = {
    "peft": "peft", "vllm": "peft", "sglang": "padded", "llama.cpp": "gguf", "ollama": "gguf", "mlx": "mlx",
    "openvino": "padded", "onnxruntime": "peft", "olive": "padded", "lmdeploy": "padded", "tensorrt-llm": "padded",
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_the_form_for_a_tool(name: str) -> None:
    assert form_for(find_tool(name), transposed=False, converter=True) == CHOSEN[name]


def test_gpt2_is_merged_for_all_but_those_that_read_its_adapters_right() -> None:
    merged = {tool.name for tool in TOOLS if tool.name != "olive" and form_for(tool, True, True) in MERGED}
    with pytest.raises(UsageError, match="Olive takes adapters alone"):
        form_for(find_tool("olive"), True, True)
    assert merged >= {"vllm", "llama.cpp", "ollama", "sglang", "mlx"} and not merged & {"peft", "lm-eval"}
    assert form_for(find_tool("llama.cpp"), True, True) == "gguf-merged"


def test_without_llama_cpps_converter_the_form_is_one_that_it_converts_right() -> None:
    assert form_for(find_tool("llama.cpp"), False, converter=False) == "single-alpha"
    assert form_for(find_tool("llama.cpp"), True, converter=False) == "merged"


def test_a_row_says_of_each_form_once_whether_it_is_read() -> None:
    for tool in TOOLS:
        assert not tool.accepts.keys() & tool.wrong.keys(), tool.name
        assert tool.needs.keys() <= tool.accepts.keys() <= set(FORMS), tool.name
        assert {"peft", "padded", "single-alpha", "unit"} <= tool.accepts.keys() | tool.wrong.keys(), tool.name
    assert DESCRIPTIONS.keys() == set(FORMS) and len({tool.name for tool in TOOLS}) == len(TOOLS)
    assert [row["name"] for row in table_json()] == [tool.name for tool in TOOLS]


def test_every_command_can_be_filled() -> None:
    filled = Filled("owner/base", "out", "mixed", 12)
    for tool in TOOLS:
        for command in (*tool.accepts.values(), *tool.needs.values()):
            assert not re.search(r"[{}]", filled.into(command)), command


def test_vllm_is_told_a_rank_that_it_takes() -> None:
    vllm = find_tool("vLLM")
    assert "--max-lora-rank 16 " in Filled("owner/base", "out", "mixed", 12).into(vllm.accepts["peft"])
    assert [vllm_rank(r) for r in (1, 2, 8, 9, 256, 257, 512)] == [1, 8, 8, 16, 256, 320, 512]
    with pytest.raises(UsageError, match="up to 512, and the adapter has one of 513"):
        vllm_rank(513)
    big = Filled("owner/base", "out", "mixed", 513)
    assert "513" in big.into(find_tool("sglang").accepts["padded"])


def test_an_unknown_tool_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'sglang'\?.*There is: peft, "):
        find_tool("sgland")


def test_why_a_form_is_not_read() -> None:
    assert "no merged weights" in not_read(find_tool("olive"), "merged")
    assert "a format of its own" in not_read(find_tool("vllm"), "mlx")
    assert "silently wrong" in not_read(find_tool("llama.cpp"), "peft")
    assert {tool.name for tool, command in compatible("merged", True) if command is None} == {"olive"}
