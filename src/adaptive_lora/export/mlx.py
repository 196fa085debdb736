"""The adapter as mlx-lm loads it: one rank, its own names, A and B transposed.

mlx-lm computes W x + scale · (x A') B' with A' (d_in, rank) and B' (rank, d_out), and wants one rank and one `scale`
for all, so the form is the padded one. `keys` name modules within a block, and a block that lacks one gets zeros.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_lora.errors import ModelError, UsageError
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.files import write_atomically
from adaptive_lora.models.cache import provenance_of
from adaptive_lora.models.older_keys import lacking_keys

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapters.safetensors"
_IN_BLOCK = re.compile(r"^(?P<path>.*?)\.(?P<block>\d+)\.(?P<key>.+)$")


def check_base(folder: Path) -> None:
    """ModelError where mlx-lm would read the base model in a folder otherwise than it is, without a word."""
    if not (folder / "config.json").is_file() or not (lacking := lacking_keys(folder)):
        return
    if provenance_of(folder) is not None:
        remedy = f"It was converted by an older version: remove that folder ({folder}), and fetch or convert it again."
    else:
        remedy = f"Add to its config.json what {' and '.join(lacking)} must be."
    raise ModelError(
        f"{folder}: config.json says {' and '.join(lacking)} under newer names only, which mlx-lm does not know: it "
        f"would take its own defaults without a word, and the adapter would sit on another model. {remedy} Or take the "
        "form merged, which has both names."
    )


def write_mlx(adapter: AdapterWeights, blocks: int, folder: Path) -> None:
    """Writes a padded adapter of a model of so many blocks.

    UsageError for a module outside of the blocks, which mlx-lm's `keys` cannot name.
    """
    import safetensors.torch

    tensors, keys = {}, set()
    for name, update in adapter.modules.items():
        found = _IN_BLOCK.match(name)
        if found is None:
            raise UsageError(f"mlx-lm adapts modules of blocks, and {name} is in none; export it merged.")
        keys.add(found["key"])
        # A transposed view would be stored in memory order.
        tensors[f"{mlx_name(name)}.lora_a"] = update.a.t().contiguous()
        tensors[f"{mlx_name(name)}.lora_b"] = (update.b * update.scaling).t().contiguous()
    rank = next(iter(adapter.ranks.values()))
    config = {
        "fine_tune_type": "lora",
        "num_layers": blocks,  # counted from the last one
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)},
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "mlx"}))


def read_mlx(folder: Path) -> dict[str, LowRank]:
    """The updates by mlx-lm's rule, by mlx-lm's names: scale · (B' A')ᵀ."""
    import safetensors.torch

    scale = float(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["lora_parameters"]["scale"])
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    names = sorted({name.rpartition(".")[0] for name in tensors})
    return {n: LowRank(tensors[f"{n}.lora_a"].t(), tensors[f"{n}.lora_b"].t(), scale) for n in names}


def mlx_name(name: str) -> str:
    """A module's name in mlx-lm, where GPT-2's blocks are under `model`.

    >>> mlx_name("transformer.h.0.attn.c_attn"), mlx_name("model.layers.0.mlp.up_proj")
    ('model.h.0.attn.c_attn', 'model.layers.0.mlp.up_proj')
    """
    return re.sub(r"^transformer\.", "model.", name)


def is_installed() -> bool:
    """Whether mlx-lm can be asked itself."""
    return importlib.util.find_spec("mlx_lm") is not None


def version() -> str:
    """mlx-lm's."""
    return importlib.metadata.version("mlx-lm")


def logits_by_mlx(base: Path, adapter: Path | None, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of every text by mlx-lm itself, (tokens, vocabulary)."""
    import mlx.core
    import mlx_lm.utils
    import numpy
    import torch

    model, _ = mlx_lm.utils.load_model(base)
    if adapter is not None:
        model = mlx_lm.utils.load_adapters(model, str(adapter))
        model.eval()
    found = [model(mlx.core.array([list(ids)]))[0].astype(mlx.core.float32) for ids in texts]
    return [torch.from_numpy(numpy.array(own)) for own in found]
