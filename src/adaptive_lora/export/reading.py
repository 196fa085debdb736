"""Adapters from elsewhere, read as data: nothing in a folder is executed, and no path that it names is followed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.export.patterns import first_key

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<letter>[AB])(?:\.default)?\.weight$")


def read_adapter(folder: Path) -> AdapterWeights:
    """The updates of the LoRA adapter that PEFT (or another tool, in PEFT's format) saved in `folder`.

    Ranks are those of the tensors; scalings are resolved from alpha, its pattern and rsLoRA's flag as PEFT does when it
    loads the folder. Raises AdapterError with all that is wrong.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    pairs, complaints = _pairs(folder)
    modules = {}
    for name, pair in sorted(pairs.items()):
        if len(pair) != 2:
            complaints.append(f"{name} has a lora_A or a lora_B alone.")
            continue
        a, b = pair["A"], pair["B"]
        r, alpha = resolved(config, name)
        if a.shape[0] != b.shape[1] or a.shape[0] != r:
            complaints.append(
                f"{name}: A is {tuple(a.shape)}, B {tuple(b.shape)}, and the configuration says rank {r}."
            )
            continue
        modules[name] = LowRank(a, b, alpha / (math.sqrt(r) if config.get("use_rslora") else r))
    if complaints:
        raise AdapterError(str(folder), complaints)
    return AdapterWeights(modules, config.get("base_model_name_or_path"), config.get("revision"))


def resolved(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Rank and alpha of a module by a configuration, as PEFT resolves them."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank_key, alpha_key = first_key(list(ranks), name), first_key(list(alphas), name)
    rank = config.get("r", 8) if rank_key is None else ranks[rank_key]
    return rank, config.get("lora_alpha", 8) if alpha_key is None else alphas[alpha_key]


def _pairs(folder: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    from safetensors.torch import load_file

    pairs: dict[str, dict[str, Tensor]] = {}
    complaints = []
    for key, tensor in load_file(folder / WEIGHTS_FILE).items():
        if found := _TENSOR.match(key):
            pairs.setdefault(found["module"], {})[found["letter"]] = tensor
        else:
            complaints.append(f"{key} is no tensor of a plain LoRA.")
    return pairs, complaints
