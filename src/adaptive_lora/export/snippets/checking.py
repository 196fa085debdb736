"""A pasted text read back as its tool reads it, built on the model, and loaded with the tool where it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from adaptive_lora.errors import PlanError
from adaptive_lora.export.snippets.fragment import Snippet
from adaptive_lora.export.snippets.reading import by_own_layers, peft_arguments
from adaptive_lora.planning.modules import ModuleShape

_HERE = ("peft", "trl")
"""Tools whose texts need PEFT alone, which is imported here anyway."""
_LONGEST_LOAD = 300
"""Seconds that a tool may take to be imported."""


def check(snippet: Snippet, opened: Callable[[], Any], available: Sequence[ModuleShape]) -> list[str]:
    """What was checked, in sentences; PlanError where the tool would train another plan than `snippet.plan`.

    `opened` gives the model, with its weights or on the meta device, for tools that train with PEFT; it is afterwards
    as it was. `available` are its modules.
    """
    arguments = peft_arguments(snippet)
    if arguments is None:
        return [_by_counting(snippet, available), load(snippet)]
    if not all(importlib.util.find_spec(name) for name in ("torch", "peft")):
        return ["not checked here: torch and PEFT are not installed (pip install 'adaptive-lora[train]')"]
    return [_by_building(snippet, opened(), arguments), load(snippet)]


def _by_building(snippet: Snippet, model: Any, arguments: dict[str, Any]) -> str:
    import peft

    from adaptive_lora.training.peft_check import built_otherwise

    config = peft.PeftConfig.from_peft_type(peft_type="LORA", task_type="CAUSAL_LM", **arguments)
    if problem := built_otherwise(model, snippet.plan, config):
        raise PlanError(f"{snippet.trainer.title} would not train this plan: {problem}")
    return (
        f"checked: read back, PEFT {peft.__version__} builds it on the model with these ranks and scalings in "
        f"{len(snippet.plan.modules)} modules"
    )


def _by_counting(snippet: Snippet, available: Sequence[ModuleShape]) -> str:
    found = by_own_layers(snippet, available)
    wanted = {m.name: (snippet.plan.ranks[m.name], snippet.plan.scaling_of(m.name)) for m in snippet.plan.modules}
    if odd := [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]:
        raise PlanError(
            f"{snippet.trainer.title} would give {odd[0]} (rank, scaling) {found.get(odd[0])}, the plan says "
            f"{wanted.get(odd[0])} ({len(odd)} modules in all)."
        )
    return f"checked: read back, it names the plan's {len(wanted)} modules with its rank and scaling"


def load(snippet: Snippet) -> str:
    """Loads the text with the tool in a process of its own: what was done, or why not; PlanError where it is refused.

    Most tools change other libraries when they are imported, so they are not imported here.
    """
    trainer = snippet.trainer
    if (version := trainer.installed) is None:
        return f"not loaded with {trainer.title}: it is not installed"
    if trainer.package in _HERE:
        exec(compile(snippet.text, "snippet.py", "exec"), {})
        return f"loaded with PEFT {importlib.metadata.version('peft')}"
    told = json.dumps({"tool": trainer.name, "text": snippet.text, "adapter": snippet.adapter is not None})
    command = [sys.executable, "-W", "ignore", "-m", "adaptive_lora.export.snippets.loading"]
    try:
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=False, timeout=_LONGEST_LOAD)
    except subprocess.TimeoutExpired:
        return f"not loaded with {trainer.title} {version}: it took more than {_LONGEST_LOAD} s to start"
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == 3:
        raise PlanError(f"{trainer.title} {version} refuses the text: {last}")
    if done.returncode != 0:
        return f"not loaded with {trainer.title} {version}: it cannot be imported here ({last})"
    return f"loaded with {trainer.title} {version}"
