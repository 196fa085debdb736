"""Should a LoRA have the same rank everywhere, and if not, what rank where?

    from adaptive_lora import PlanRequest, plan
    config = plan(PlanRequest(model="demo", strategy="linear-decay", budget="rank:8")).to_lora_config()

Names are loaded when they are used, so that reading results needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptive_lora.api import PlanRequest, plan, train
    from adaptive_lora.planning.plan import RankPlan, Scaling
    from adaptive_lora.study.results import load_results
    from adaptive_lora.study.runner import run_study
    from adaptive_lora.study.study_file import load_study
    from adaptive_lora.training.options import TrainingOptions

_PLACES = {
    "PlanRequest": ("adaptive_lora.api", "PlanRequest"),
    "RankPlan": ("adaptive_lora.planning.plan", "RankPlan"),
    "Scaling": ("adaptive_lora.planning.plan", "Scaling"),
    "TrainingOptions": ("adaptive_lora.training.options", "TrainingOptions"),
    "load_results": ("adaptive_lora.study.results", "load_results"),
    "load_study": ("adaptive_lora.study.study_file", "load_study"),
    "plan": ("adaptive_lora.api", "plan"),
    "run_study": ("adaptive_lora.study.runner", "run_study"),
    "train": ("adaptive_lora.api", "train"),
}

__all__ = [
    "PlanRequest", "RankPlan", "Scaling", "TrainingOptions", "load_results", "load_study", "plan", "run_study", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
