"""What PEFT makes of a plan, tried before anything is written or trained, and what it reads from a saved adapter.

PEFT has rules of its own on top of `target_modules`: beside fused experts it moves targets by the ends of their names
(huggingface/peft#3711), and for Mamba's relatives it refuses some. So every plan is built, its adapters' weights on the
meta device, and read back.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adaptive_lora.errors import ModelError, TrainingError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.modules import ModuleShape, select_targets
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.training.adapter import WEIGHTS_FILE, detach, lora_layers, tensor_name, verify

if TYPE_CHECKING:
    from peft import LoraConfig


def check_with_peft(model: Any, plan: RankPlan, available: Sequence[ModuleShape], name: str) -> None:
    """ModelError unless PEFT builds `plan` on `model` as it is written: modules, ranks, scalings, names of tensors.

    `model` has its weights or is on the meta device (`base.meta_model`); it is afterwards as it was. `available` are
    all modules that a user could target and `name` is what to call the model: the error names targets that were built
    as planned. 210 modules take half a second.
    """
    if problem := built_otherwise(model, plan):
        import peft

        raise ModelError(
            f"PEFT {peft.__version__} does not build this plan on {name} as it is written: "
            f"{problem.removeprefix('PEFT did not build the plan: ')} {remedy(model, available)}"
        )


def built_otherwise(model: Any, plan: RankPlan, config: LoraConfig | None = None) -> str | None:
    """What PEFT does instead of building `plan`; None where it builds the plan as it is written.

    `config` is what PEFT is given, by default the plan's own.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        # Its warnings are not needed, as the result is read back; its initial values are not, as they have no memory.
        with torch.random.fork_rng(devices=[]), quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = get_peft_model(model, config or plan.to_lora_config(), low_cpu_mem_usage=True)
            verify(lora_layers(built), plan)
            found = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(built).items()}
        return _difference(found, plan)
    except (TrainingError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        return str(error).strip()
    finally:
        detach(model)


def remedy(model: Any, available: Sequence[ModuleShape]) -> str:
    """A sentence with the targets that PEFT builds as planned, each of them tried on `model`."""
    leaves = list(dict.fromkeys(m.name.rpartition(".")[2] for m in available))
    kept = [leaf for leaf in leaves if _builds(model, available, [leaf])]
    candidates = _candidates(available, kept)
    built = [targets for targets in candidates if _builds(model, available, targets)]
    if not built:
        return "No other targets on this model were built as planned either; take another model."
    odd = ", ".join(leaf for leaf in leaves if leaf not in kept)
    said = " or ".join(
        f"{_written(targets)} ({len(select_targets(available, targets))} of {len(available)} modules)"
        for targets in built
    )
    why = f"PEFT refuses {odd} here, or moves what is meant for them to other layers. " if odd else ""
    return f"{why}Set {said}; tried just now, and built as planned."


def uniform_plan(modules: Iterable[ModuleShape]) -> RankPlan:
    """Rank 1 everywhere: enough to see which modules PEFT adapts."""
    modules = tuple(modules)
    budget = sum(m.params_per_rank for m in modules)
    return RankPlan("uniform", budget, modules, {m.name: 1 for m in modules}, Scaling())


def _candidates(available: Sequence[ModuleShape], kept: list[str]) -> list[str | list[str]]:
    """First all modules of the names that PEFT builds by themselves, then attention alone where that is less."""
    chosen = set(select_targets(available, kept)) if kept else set()
    attention = {m for m in available if m.kind == "attention"}
    found: list[str | list[str]] = []
    if chosen and chosen != attention:
        found.append("all-linear" if chosen == set(available) else kept)
    return [*found, "attention"] if attention else found


def _builds(model: Any, available: Sequence[ModuleShape], targets: str | list[str]) -> bool:
    return built_otherwise(model, uniform_plan(select_targets(available, targets))) is None


def _written(targets: str | list[str]) -> str:
    """As a study file and, where that is another, a command say it."""
    if isinstance(targets, str):
        return f"`targets: {targets}`"
    return f"`targets: [{', '.join(targets)}]`, in a command `--targets {','.join(targets)}`"


def read_back(folder: Path, plan: RankPlan) -> None:
    """TrainingError unless PEFT reads `plan` from the adapter saved in `folder`.

    Which modules, ranks and scalings the configuration says, and names and shapes of all tensors; no model is needed,
    and no values are read.
    """
    from peft import LoraConfig
    from safetensors import safe_open

    config, wanted = LoraConfig.from_pretrained(str(folder)), plan.to_lora_config()
    wrong = [
        f"{key} is {getattr(config, key)!r:.80}"
        for key in ("target_modules", "rank_pattern", "alpha_pattern", "r", "lora_alpha", "use_rslora")
        if getattr(config, key) != getattr(wanted, key)
    ]
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if problem := "; ".join(wrong) or _difference(found, plan):
        raise TrainingError(f"The adapter in {folder} is not the plan that was trained: {problem}.")


def _difference(found: dict[str, tuple[int, ...]], plan: RankPlan) -> str | None:
    """How the tensors of an adapter, by name, differ from those of a plan."""
    wanted = {}
    for m in plan.modules:
        wanted[tensor_name(m.name, "A")] = (plan.ranks[m.name], m.d_in)
        wanted[tensor_name(m.name, "B")] = (m.d_out, plan.ranks[m.name])
    odd = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if not odd:
        return None
    first = odd[0]
    name = re.sub(r"^base_model\.model\.", "", first)
    return (
        f"the tensor {name} is {found.get(first, 'missing')}, the plan says {wanted.get(first, 'nothing of it')} "
        f"({len(odd)} tensors in all)"
    )
