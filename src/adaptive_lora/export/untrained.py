"""The export of a plan that nobody has trained: an adapter at step 0, which changes nothing yet.

B is zero, so in every form that is served it would be the base model. What makes sense is an adapter to train on, in
the one form that keeps ranks and scalings for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from adaptive_lora.errors import ExportError, PlanError, TrainingError, UsageError
from adaptive_lora.export.card import Exported, Story
from adaptive_lora.export.checking import Built
from adaptive_lora.export.exporting import appearing, check_free, write_beside
from adaptive_lora.export.forms import Form
from adaptive_lora.export.peft_folder import BaseFacts
from adaptive_lora.export.reading import read_adapter
from adaptive_lora.export.snippets import step_0
from adaptive_lora.export.tools import TOOLS, Tool
from adaptive_lora.models.known import KNOWN
from adaptive_lora.models.locate import locate_model, model_note, portable_name
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.prepare import open_outline

FORM: Form = "peft"
"""The one form of an untrained plan."""


def check_plan_order(form: Form | None, tool: Tool | None, prompts: bool, named: str) -> None:
    """UsageError, with the way to what was asked for, where it needs trained weights; `named` is the plan's file."""
    train = (
        f"Train it first (`adaptive-lora plan --model MODEL --plan {named} --for TRAINER` prints what a training tool "
        "takes, for TRAINER peft, trl, axolotl and others), then export the trained folder."
    )
    if form is not None and form != FORM:
        raise UsageError(
            f"{named} is a plan that nobody has trained: its B is zero, and as {form} it would be the base model. Take "
            f"the form {FORM}, an adapter to train on; the others are for what was trained. {train}"
        )
    if tool is not None and FORM not in tool.accepts:
        able = ", ".join(own.name for own in TOOLS if FORM in own.accepts)
        raise UsageError(
            f"{named} is a plan that nobody has trained, and {tool.title} does not read the one form that it has, "
            f"{FORM} ({able} do). {train}"
        )
    if prompts:
        raise UsageError(
            f"{named} is a plan that nobody has trained: to any --prompt it says what its base says. {train}"
        )


def export_plan(
    plan: RankPlan,
    model: tuple[str, str | None],
    folder: Path,
    tool: Tool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Writes the plan's adapter at step 0 in PEFT's form, and its card and `compat.json`; no weights are loaded.

    `model` is name and revision. Raises PlanError where the plan is another model's, ModelError where PEFT builds
    something else of it, with nothing written.
    """
    check_free(folder)
    say("building the plan with PEFT")
    facts = _facts(plan, *model)
    seed = int(plan.provenance.get("seed") or 0)
    if tool is not None and facts.transposed & plan.ranks.keys() and not tool.conv1d:
        raise UsageError(f"{tool.title} {tool.conv1d_why.format(family=facts.family)}: train the plan, then merge it.")
    with appearing(folder) as partial:
        step_0.save(plan, partial, facts.named, seed, facts.revision)
        check = _read_back(plan, partial)
        found = Exported(FORM, str(folder), _story(plan, facts, seed), read_adapter(partial), facts, check, ())
        write_beside(partial, found, tool)
    return found


def _facts(plan: RankPlan, name: str, revision: str | None) -> BaseFacts:
    """Of the base model, by its configuration; PlanError or ModelError unless PEFT builds the plan on it."""
    from adaptive_lora.training import peft_check
    from adaptive_lora.training.base import meta_model

    location, outline = locate_model(name, revision), open_outline(name, revision)
    check_fits(plan, outline.modules, name)
    built = meta_model(name, location, revision)
    peft_check.check_with_peft(built, plan, outline.modules, name)
    known = KNOWN.get(name)
    return BaseFacts(
        named=portable_name(name),
        location=str(location),
        revision=revision,
        family=str(built.config.model_type),
        modules=outline.modules,
        note=model_note(name),
        licence=known.licence if known else None,
    )


def check_fits(plan: RankPlan, modules: Sequence[ModuleShape], name: str) -> None:
    """PlanError where the plan has modules that are none of the model's."""
    known = set(modules)
    if missing := [m for m in plan.modules if m not in known]:
        raise PlanError(
            f"It is a plan of another model: {name} has no module {missing[0].name} of size {missing[0].d_in} × "
            f"{missing[0].d_out} ({len(missing)} modules in all). Name its own with --model."
        )


def _read_back(plan: RankPlan, folder: Path) -> Built:
    import peft

    from adaptive_lora.training.peft_check import read_back

    try:
        read_back(folder, plan)
    except TrainingError as error:
        raise ExportError(str(error)) from None
    return Built(f"PEFT {peft.__version__}", len(plan.modules), plan.trainable_parameters)


def _story(plan: RankPlan, facts: BaseFacts, seed: int) -> Story:
    budget = str(plan.provenance.get("budget") or f"{plan.budget:,} parameters")
    data = Path(plan.provenance["data"]) if plan.provenance.get("data") else None
    rows = (
        ("training", "none: an adapter at step 0, to be trained on"),
        ("plan", f"{plan.strategy} at {budget}, {plan.trainable_parameters:,} of {plan.budget:,} parameters"),
        ("scaling", f"{plan.scaling.rule}, {plan.scaling.reference_scaling:g} at rank {plan.scaling.reference_rank:g}"),
        ("initial values", f"A from the seed {seed}, B zero"),
        ("measured on", "" if data is None else data.name if data.exists() else str(plan.provenance["data"])),
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{plan.strategy}-{budget}").strip("-")
    title = f"{plan.strategy} at {budget}, untrained, on {facts.named}"
    return Story(name, title, tuple((label, text) for label, text in rows if text))
