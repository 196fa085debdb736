"""What a training tool makes of a pasted text: the arguments that it hands to PEFT, or its own count of parameters.

Texts are read, never run: from Python the table of modules and the expressions of one call are taken.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from adaptive_lora.errors import PlanError
from adaptive_lora.export.snippets.fragment import Snippet
from adaptive_lora.planning.modules import ModuleShape, role_of

_OURS = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "fan_in_fan_out", "target_modules", "rank_pattern",
         "alpha_pattern")  # fmt: skip


def peft_arguments(snippet: Snippet) -> dict[str, Any] | None:
    """The arguments of `LoraConfig` that the tool builds from the text; None for tools that do not train with PEFT."""
    if snippet.adapter is not None:
        return _of_adapter(Path(_named_adapter(snippet)))
    if snippet.trainer.language == "python":
        return _of_python(snippet.text)
    keys = YAML(typ="safe", pure=True).load(snippet.text)
    return {"axolotl": _of_axolotl, "llama-factory": _of_llama_factory}.get(snippet.trainer.name, _of_none)(keys)


def _named_adapter(snippet: Snippet) -> str:
    found = YAML(typ="safe", pure=True).load(snippet.text)[snippet.trainer.continues]
    return str(found)


def _of_adapter(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return {key: config[key] for key in _OURS}


def _of_python(text: str) -> dict[str, Any]:
    tree = ast.parse(text)
    (table,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "modules"]
    names = {"modules": ast.literal_eval(table), "re": re, "list": list, "__builtins__": {}}
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and any(keyword.arg == "rank_pattern" for keyword in node.keywords)
    ]
    values = {k.arg: eval(compile(ast.Expression(k.value), "snippet", "eval"), names) for k in call.keywords if k.arg}
    return {key: values[key] for key in _OURS}


def _of_axolotl(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "r": keys["lora_r"],
        "lora_alpha": keys["lora_alpha"],
        "lora_dropout": keys["lora_dropout"],
        "bias": "none",
        "use_rslora": keys["peft_use_rslora"],
        "fan_in_fan_out": keys.get("lora_fan_in_fan_out", False),
        "target_modules": keys["lora_target_modules"],
        "rank_pattern": keys["lora_rank_pattern"],
        "alpha_pattern": keys["lora_alpha_pattern"],
    }


def _of_llama_factory(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "r": keys["lora_rank"],
        "lora_alpha": keys["lora_alpha"],
        "lora_dropout": keys["lora_dropout"],
        "use_rslora": keys["use_rslora"],
        "target_modules": [name.strip() for name in keys["lora_target"].split(",")],
    }


def _of_none(keys: Mapping[str, Any]) -> None:
    return None


def by_own_layers(snippet: Snippet, available: Sequence[ModuleShape]) -> dict[str, tuple[int, float]]:
    """Module -> (rank, scaling) that a tool with LoRA layers of its own makes of the text, on a model's modules."""
    keys = YAML(typ="safe", pure=True).load(snippet.text)
    name, parts = snippet.trainer.name, snippet.trainer.parts
    if name == "torchtune":
        own = keys["model"]
        rank, scaling = own["lora_rank"], own["lora_alpha"] / own["lora_rank"]
        on = {*own["lora_attn_modules"], *(["mlp"] if own["apply_lora_to_mlp"] else [])}
        roles = {role for part in on for role in parts[part]}
    elif name == "litgpt":
        rank, scaling = keys["lora_r"], keys["lora_alpha"] / keys["lora_r"]
        roles = {role for part, named in parts.items() if keys[f"lora_{part}"] for role in named}
    elif name == "mlx-lm":
        own = keys["lora_parameters"]
        rank, scaling, roles = own["rank"], own["scale"], set(own["keys"])
    else:
        raise PlanError(f"{snippet.trainer.title} trains with PEFT; read its text with `peft_arguments`.")
    return {m.name: (rank, scaling) for m in available if role_of(m.name) in roles}
