"""`read_adapter` against PEFT itself: the same update of every module, for every form that a folder can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lora.export.reading import read_adapter
from tests.export.conftest import Saver, peft_deltas


def assert_as_peft(folder: Path, kind: str = "llama") -> None:
    """Same modules, and ΔW to the bit where both compute in float32."""
    found, wanted = read_adapter(folder).modules, peft_deltas(folder, kind)
    assert found.keys() == wanted.keys()
    for name, update in found.items():
        torch.testing.assert_close(update.delta(), wanted[name].float(), rtol=1e-6, atol=1e-6, msg=name)


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("llama", {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"r": 4, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}}),
    "leaf keys": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, "mlp.up_proj": 5},
            "alpha_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 16},
        },
    ),
    "conv1d": (
        "gpt2",
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "alpha_pattern": {r"^transformer\.h\.0": 3}},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_updates_are_those_of_peft(form: str, saved: Saver) -> None:
    kind, fields = FORMS[form]
    assert_as_peft(saved(kind, **fields), kind)


def test_overlapping_keys_count_by_their_order_in_the_file(saved: Saver) -> None:
    """PEFT sorts keys when it saves, so the same configuration can mean another scale after loading."""
    folder = saved(
        target_modules=["q_proj", "k_proj"], r=2, lora_alpha=2,
        alpha_pattern={"self_attn.q_proj": 16, "layers.0.self_attn.q_proj": 2},
    )  # fmt: skip
    assert_as_peft(folder)
    assert read_adapter(folder).modules["model.layers.0.self_attn.q_proj"].scaling == 1
