"""An adapter as a PEFT folder: a configuration that says exactly what the weights are, and the weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.export.folder_files import CONFIG_FILE, WEIGHTS_FILE
from adaptive_lora.export.low_rank import AdapterWeights
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.modules import ModuleShape


@dataclass(frozen=True)
class BaseFacts:
    """What an export must know of the base model."""

    named: str
    """A name that loads elsewhere where one is known; else what the user called it."""
    location: str
    """The folder or hub name that it was read from here."""
    revision: str | None
    """The hub's commit, where that is known."""
    family: str
    """transformers' `model_type`, such as `llama`."""
    modules: tuple[ModuleShape, ...]
    """Every module that can carry an adapter."""
    note: str | None = None
    """What must be said of its weights."""
    licence: str | None = None

    @property
    def transposed(self) -> frozenset[str]:
        """Modules whose weight is stored (d_in, d_out), as GPT-2's are."""
        return frozenset(m.name for m in self.modules if m.fan_in_fan_out)


def adapter_config(adapter: AdapterWeights, base: BaseFacts, short: bool = False) -> dict[str, Any]:
    """PEFT's `adapter_config.json`: what most modules have stands alone, what others have in patterns of full names.

    `short` names targets by the ends of their names where these mean the same modules.
    """
    modules = adapter.modules
    rank = Counter(m.rank for m in modules.values()).most_common(1)[0][0]
    alphas = {name: m.scaling * m.rank for name, m in modules.items()}
    alpha = Counter(alphas[name] for name, m in modules.items() if m.rank == rank).most_common(1)[0][0]
    names = sorted(modules)
    return {
        "base_model_name_or_path": base.named,
        "bias": "none",
        "fan_in_fan_out": any(name in base.transposed for name in names),
        "inference_mode": True,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {_key(name): modules[name].rank for name in names if modules[name].rank != rank},
        "alpha_pattern": {_key(name): alphas[name] for name in names if alphas[name] != alpha},
        "revision": base.revision,
        "target_modules": short_targets(names, [m.name for m in base.modules]) if short else names,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def write_peft(adapter: AdapterWeights, base: BaseFacts, folder: Path, short: bool = False) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`."""
    import safetensors.torch

    tensors = {}
    for name, update in adapter.modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = update.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = update.b.contiguous()
    config = adapter_config(adapter, base, short)
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))


def short_targets(chosen: Collection[str], available: Collection[str]) -> list[str]:
    """The shortest ends of names that mean exactly the `chosen` modules; full names where none do.

    >>> short_targets(["h.0.attn.c_proj", "h.1.attn.c_proj"], ["h.0.attn.c_proj", "h.1.attn.c_proj", "h.0.mlp.c_proj"])
    ['attn.c_proj']
    """
    wanted, found = set(chosen), set()
    for name in sorted(wanted):
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        found.add(next(end for end in ends if _meant(end, available) <= wanted or end == name))
    return sorted(found)


def _meant(end: str, available: Collection[str]) -> set[str]:
    return {name for name in available if name == end or name.endswith(f".{end}")}


def _key(name: str) -> str:
    # PEFT reads keys as regular expressions at dot boundaries: only a full name means one module.
    return f"^{re.escape(name)}"
