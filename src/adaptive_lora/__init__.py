"""Should a LoRA have the same rank everywhere, and if not, what rank where?

    import adaptive_lora

    plan = adaptive_lora.plan("demo", strategy="linear-decay", budget="rank:8")
    config = plan.to_lora_config()

    adaptive_lora.load_study("study.yaml").run("runs/study")
    adaptive_lora.load_results("runs/study").judge()

Names are loaded when they are used, so that reading results needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptive_lora.api import load_study, plan, train
    from adaptive_lora.planning.plan import RankPlan, Scaling
    from adaptive_lora.planning.strategies.base import StrategyOptions
    from adaptive_lora.planning.strategies.decorators import measure, strategy
    from adaptive_lora.publishing.exports import export_adapter
    from adaptive_lora.publishing.hub import push_to_hub
    from adaptive_lora.reporting.results import load_results, report
    from adaptive_lora.training.options import TrainingOptions

_PLACES = {
    "RankPlan": "adaptive_lora.planning.plan",
    "Scaling": "adaptive_lora.planning.plan",
    "StrategyOptions": "adaptive_lora.planning.strategies.base",
    "TrainingOptions": "adaptive_lora.training.options",
    "export_adapter": "adaptive_lora.publishing.exports",
    "load_results": "adaptive_lora.reporting.results",
    "load_study": "adaptive_lora.api",
    "measure": "adaptive_lora.planning.strategies.decorators",
    "plan": "adaptive_lora.api",
    "push_to_hub": "adaptive_lora.publishing.hub",
    "report": "adaptive_lora.reporting.results",
    "strategy": "adaptive_lora.planning.strategies.decorators",
    "train": "adaptive_lora.api",
}

__all__ = [
    "RankPlan", "Scaling", "StrategyOptions", "TrainingOptions", "export_adapter", "load_results", "load_study",
    "measure", "plan", "push_to_hub", "report", "strategy", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
