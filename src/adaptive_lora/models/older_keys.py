"""A saved configuration that older readers understand too.

transformers 5 writes `rope_parameters` and `dtype`, where everything before, and many a server today, looks for
`rope_theta`, `rope_scaling` and `torch_dtype`, and no longer GPT-2's `n_ctx` or Gemma 3's `sliding_window_pattern`.
mlx-lm 0.32 takes a Llama without `rope_theta` for one with 10,000, without a word; llama.cpp's converter stops at a
GPT-2 without `n_ctx`. Both say the same; transformers 5 reads either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptive_lora.files import write_atomically


def add_older_keys(folder: Path) -> None:
    """Adds the older names of what a model folder's config.json says; what is there already stays."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path, json.dumps({**older_keys(config), **config}, indent=2, sort_keys=True) + "\n")


def lacking_keys(folder: Path) -> list[str]:
    """The older names that readers of today count on and a model folder's config.json does not have; they guess.

    `n_ctx` and `torch_dtype` are not among them: readers that want these stop, or need them for nothing.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return sorted(older_keys(config).keys() - config.keys() - {"n_ctx", "torch_dtype"})


def older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The older names of what a configuration says.

    >>> older_keys({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, "dtype": "float32"})
    {'rope_theta': 100000.0, 'torch_dtype': 'float32'}
    """
    found: dict[str, Any] = {}
    rope = config.get("rope_parameters") or {}
    if isinstance(whole := rope.get("full_attention"), dict):  # one kind for each kind of layer, as Gemma 3 has them
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            found["rope_local_base_freq"] = local["rope_theta"]
        rope = whole
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    kinds = list(config.get("layer_types") or ())
    if {*kinds} == {"sliding_attention", "full_attention"}:
        every = kinds.index("full_attention") + 1
        if all((kind == "full_attention") == (i % every == every - 1) for i, kind in enumerate(kinds)):
            found["sliding_window_pattern"] = every
    if "n_positions" in config:
        found["n_ctx"] = config["n_positions"]
    if "dtype" in config:
        found["torch_dtype"] = config["dtype"]
    return found
