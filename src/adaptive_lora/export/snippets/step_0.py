"""An adapter of a plan at step 0: what tools that take no ranks of single modules can still train on from."""

from __future__ import annotations

from pathlib import Path

from adaptive_lora.files import write_atomically
from adaptive_lora.planning.plan import RankPlan


def save(plan: RankPlan, folder: Path, model: str | None = None, seed: int = 0, revision: str | None = None) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, A as `initial_a` draws it and B zero.

    The adapted model is the base model, bit for bit, and training it on is training the plan from the start. `model`
    and `revision` are the base model's for the configuration. 210 modules of a 135M model take a second.
    """
    import torch

    from adaptive_lora.training.adapter import WEIGHTS_FILE, save_config, tensors_of
    from adaptive_lora.training.options import initial_a

    config = plan.to_lora_config()
    config.base_model_name_or_path, config.revision = model, revision
    save_config(config, folder)
    weights = {}
    for m in plan.modules:
        rank = plan.ranks[m.name]
        weights[m.name] = torch.from_numpy(initial_a(seed, m.name, rank, m.d_in)), torch.zeros(m.d_out, rank)
    write_atomically(folder / WEIGHTS_FILE, tensors_of(weights))
