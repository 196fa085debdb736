"""`plan --for`: what is pasted into a training tool, checked before it is printed."""

from __future__ import annotations

import contextlib
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


def rate_of(path: Path) -> float | None:
    """The learning rate that the plan of a study's run was trained with; None for a plan that lies elsewhere."""
    from adaptive_lora.study.folder import StudyPaths
    from adaptive_lora.study.open_ledger import open_to_read

    run = path.absolute().parent
    adapters = run.parent
    if adapters.name != "adapters" or not StudyPaths(adapters.parent).ledger.is_file():
        return None
    with contextlib.closing(open_to_read(adapters.parent)) as ledger:
        return next((float(found["learning_rate"]) for found in ledger.runs() if found["run_id"] == run.name), None)


def save_step_0(plan: RankPlan, folder: Path, model: tuple[str, str | None]) -> None:
    """The plan's adapter at step 0, which names the model as other tools find it."""
    from adaptive_lora.export.snippets import step_0
    from adaptive_lora.models.locate import locate_model

    step_0.save(plan, folder, str(locate_model(*model)), int(plan.provenance.get("seed") or 0))


def paste(
    plan: RankPlan,
    tool: str,
    model: tuple[str, str | None],
    adapter: Path | None,
    where: tuple[Path | None, bool],
    rate: float | None = None,
) -> None:
    """Prints the text for `tool`; nothing where the tool would train another plan.

    `model` is its name and revision, `where` a file to write it into and whether to print JSON. What was checked, and
    what the tool cannot express, is said on stderr.
    """
    from adaptive_lora.study.prepare import open_outline

    to, as_json = where
    at = None if adapter is None else str(adapter)
    made = snippet(plan, tool, learning_rate=rate, adapter=at, available=open_outline(*model).modules)
    with working(f"reading the text back as {made.trainer.title} does"):
        checked = _checked(made, model)
    if made.concession:
        err.print(f"note: {made.concession_sentence}", markup=False, soft_wrap=True)
    for line in checked:
        err.print(line, markup=False, soft_wrap=True)
    if to is not None:
        write_atomically(to, made.text, named=True)
        err.print(f"wrote {to}", markup=False)
    if as_json:
        print_json(_as_json(made, checked))
    elif to is None:
        sys.stdout.write(made.text)


def _checked(made: Snippet, model: tuple[str, str | None]) -> list[str]:
    from adaptive_lora.export.snippets.checking import check
    from adaptive_lora.models.locate import locate_model
    from adaptive_lora.study.prepare import open_outline

    name, revision = model

    def opened() -> Any:
        from adaptive_lora.training.base import meta_model

        return meta_model(name, locate_model(name, revision), revision)

    return check(made, opened, open_outline(name, revision).modules)


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
