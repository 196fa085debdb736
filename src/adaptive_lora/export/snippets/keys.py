"""The keys of tools that are configured in YAML, for a plan that they can express."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adaptive_lora.export.snippets.one_rank import whole
from adaptive_lora.export.snippets.trainers import Trainer
from adaptive_lora.export.snippets.yaml_text import Name
from adaptive_lora.planning.modules import ModuleShape, matches, role_of
from adaptive_lora.planning.plan import RankPlan

Keys = dict[str, Any]
Modules = Sequence[ModuleShape] | None


def _axolotl(plan: RankPlan, trainer: Trainer, available: Modules) -> Keys:
    common = Counter(plan.ranks.values()).most_common(1)[0][0]
    keys: Keys = {
        "adapter": "lora",
        "lora_r": common,
        "lora_alpha": whole(plan.scaling.at(common) * common),
        "lora_dropout": 0.0,
        "peft_use_rslora": False,
        "lora_target_modules": [Name(m.name) for m in plan.modules],
        "lora_rank_pattern": {_pattern(m.name): plan.ranks[m.name] for m in plan.modules},
        "lora_alpha_pattern": {_pattern(m.name): whole(plan.alpha_of(m.name)) for m in plan.modules},
    }
    if any(m.fan_in_fan_out for m in plan.modules):
        keys["lora_fan_in_fan_out"] = True
    return keys


def _llama_factory(plan: RankPlan, trainer: Trainer, available: Modules) -> Keys:
    rank, alpha = _one(plan)
    return {
        "finetuning_type": "lora",
        "lora_rank": rank,
        "lora_alpha": whole(alpha),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "lora_target": Name(",".join(_shortest_names(plan, available))),
    }


def _torchtune(plan: RankPlan, trainer: Trainer, available: Modules) -> Keys:
    rank, alpha = _one(plan)
    parts = _parts(plan, trainer)
    return {
        "model": {
            "lora_attn_modules": [Name(part) for part in parts if part != "mlp"],
            "apply_lora_to_mlp": "mlp" in parts,
            "apply_lora_to_output": False,
            "lora_rank": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
        }
    }


def _litgpt(plan: RankPlan, trainer: Trainer, available: Modules) -> Keys:
    rank, alpha = _one(plan)
    parts = _parts(plan, trainer)
    return {
        "lora_r": rank,
        "lora_alpha": whole(alpha),
        "lora_dropout": 0.0,
        **{f"lora_{part}": part in parts for part in trainer.parts},
        "lora_head": False,
    }


def _mlx_lm(plan: RankPlan, trainer: Trainer, available: Modules) -> Keys:
    rank, alpha = _one(plan)
    roles = list(dict.fromkeys(role_of(m.name) for m in plan.modules))
    return {
        "fine_tune_type": "lora",
        "num_layers": -1,  # all
        "lora_parameters": {
            "rank": rank,
            "scale": alpha / rank,
            "dropout": 0.0,
            "keys": [Name(role) for role in roles],
        },
    }


_WRITERS: Mapping[str, Callable[[RankPlan, Trainer, Modules], Keys]] = {
    "axolotl": _axolotl,
    "llama-factory": _llama_factory,
    "torchtune": _torchtune,
    "litgpt": _litgpt,
    "mlx-lm": _mlx_lm,
}


def tool_keys(plan: RankPlan, trainer: Trainer, available: Modules = None) -> Keys:
    """The tool's keys for a plan as `one_rank.expressible` gives it; `available` are all modules of the model."""
    return _WRITERS[trainer.name](plan, trainer, available)


def rate_keys(trainer: Trainer, learning_rate: float | None) -> Keys:
    """The tool's keys for a learning rate, where one is known."""
    if learning_rate is None:
        return {}
    if trainer.name == "torchtune":
        return {"optimizer": {"lr": learning_rate}}
    if trainer.name == "litgpt":
        return {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": learning_rate}}}
    return {"learning_rate": learning_rate}


def adapter_keys(trainer: Trainer, adapter: str) -> Keys:
    """The tool's keys to train the adapter in the folder `adapter` on; its own configuration says the ranks."""
    kind = {"axolotl": "adapter", "llama-factory": "finetuning_type", "ms-swift": "tuner_type"}[trainer.name]
    assert trainer.continues is not None
    return {kind: "lora", trainer.continues: Name(adapter)}


def _pattern(name: str) -> Name:
    """A module's full name as the regular expression that PEFT matches with it alone."""
    return Name(f"^{re.escape(name)}")


def _one(plan: RankPlan) -> tuple[int, float]:
    """Rank and alpha of a plan that has the same in all modules."""
    (rank,) = set(plan.ranks.values())
    return rank, plan.scaling.at(rank) * rank


def _parts(plan: RankPlan, trainer: Trainer) -> list[str]:
    roles = {role_of(m.name) for m in plan.modules}
    return [part for part, named in trainer.parts.items() if roles & set(named)]


def _shortest_names(plan: RankPlan, available: Modules) -> list[str]:
    """The modules by what they are in a block where that names them and no others of the model, else in full."""
    roles = list(dict.fromkeys(role_of(m.name) for m in plan.modules))
    chosen = {m.name for m in available or () if any(matches(m, role) for role in roles)}
    return roles if chosen == set(plan.ranks) else [m.name for m in plan.modules]
