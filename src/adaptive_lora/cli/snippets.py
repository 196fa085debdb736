"""`plan --for`: what is pasted into a training tool, checked before it is printed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.cli.app import err, print_json, working
from adaptive_lora.errors import PlanError
from adaptive_lora.export.snippets.fragment import check_continues, snippet
from adaptive_lora.export.snippets.trainers import TRAINERS, find_trainer
from adaptive_lora.files import write_atomically

if TYPE_CHECKING:
    from adaptive_lora.export.snippets.fragment import Snippet
    from adaptive_lora.planning.plan import RankPlan

TOOLS = ", ".join(TRAINERS)
"""Their names, for the help."""


def check_tool(tool: str, adapter: Path | None) -> None:
    """UsageError for a tool that is not known, or that takes no adapter to train on."""
    trainer = find_trainer(tool)
    if adapter is not None:
        check_continues(trainer)


def saved_plan(path: Path, model: tuple[str, str | None]) -> RankPlan:
    """A plan from its file; PlanError where it is another model's."""
    from adaptive_lora.planning.plan import RankPlan
    from adaptive_lora.study.prepare import open_outline

    plan, known = RankPlan.load(path), set(open_outline(*model).modules)
    if missing := [m for m in plan.modules if m not in known]:
        raise PlanError(
            f"{path} is a plan of another model: {model[0]} has no module {missing[0].name} of size "
            f"{missing[0].d_in} × {missing[0].d_out} ({len(missing)} modules in all). Name its own with `--model`."
        )
    return plan if "model" in plan.provenance else replace(plan, provenance={**plan.provenance, "model": model[0]})


def save_step_0(plan: RankPlan, folder: Path, model: tuple[str, str | None]) -> None:
    """The plan's adapter at step 0, which names the model as other tools find it."""
    from adaptive_lora.export.snippets import step_0
    from adaptive_lora.models.locate import locate_model

    step_0.save(plan, folder, str(locate_model(*model)), int(plan.provenance.get("seed") or 0))


def paste(
    plan: RankPlan, tool: str, model: tuple[str, str | None], adapter: Path | None, to: Path | None, as_json: bool
) -> None:
    """Prints the text for `tool`, or writes it into `to`; nothing where the tool would train another plan.

    `model` is its name and revision. What was checked, and what the tool cannot express, is said on stderr.
    """
    from adaptive_lora.study.prepare import open_outline

    available = open_outline(*model).modules
    made = snippet(plan, tool, adapter=None if adapter is None else str(adapter), available=available)
    with working(f"reading the text back as {made.trainer.title} does"):
        checked = _checked(made, model)
    if made.concession:
        err.print(f"note: {made.concession_sentence}", markup=False, soft_wrap=True)
    for line in checked:
        err.print(line, markup=False, soft_wrap=True)
    if to is not None:
        write_atomically(to, made.text)
        err.print(f"wrote {to}", markup=False)
    if as_json:
        print_json(_as_json(made, checked))
    elif to is None:
        sys.stdout.write(made.text)


def _checked(made: Snippet, model: tuple[str, str | None]) -> list[str]:
    from adaptive_lora.export.snippets.checking import check
    from adaptive_lora.models.locate import locate_model
    from adaptive_lora.study.prepare import open_outline

    if importlib.util.find_spec("peft") is None or importlib.util.find_spec("torch") is None:
        return ["not checked here: torch and PEFT are not installed (pip install 'adaptive-lora[train]')"]
    from adaptive_lora.training.base import meta_model

    name, revision = model
    return check(made, meta_model(name, locate_model(name, revision), revision), open_outline(name, revision).modules)


def _as_json(made: Snippet, checked: list[str]) -> dict[str, Any]:
    plan = made.plan
    return {
        "tool": made.trainer.name,
        "read_in_version": made.trainer.version,
        "installed_version": made.trainer.installed,
        "text": made.text,
        "instead": made.concession,
        "strategy": plan.strategy,
        "budget_parameters": plan.budget,
        "trainable_parameters": plan.trainable_parameters,
        "ranks": dict(plan.ranks),
        "scalings": {name: plan.scaling_of(name) for name in plan.ranks},
        "checked": checked,
    }
