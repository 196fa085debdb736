"""One request for an export: what it is of, the form that is chosen, and all that is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_lora.errors import ModelError, UsageError, nearest_hint
from adaptive_lora.export import exporting
from adaptive_lora.export.card import Exported, Story
from adaptive_lora.export.checking import PROMPTS
from adaptive_lora.export.exporting import Order, check_free
from adaptive_lora.export.fitting import fitted_weights
from adaptive_lora.export.folder_files import CONFIG_FILE
from adaptive_lora.export.forms import FORMS, Form
from adaptive_lora.export.gguf import find_converter
from adaptive_lora.export.low_rank import AdapterWeights
from adaptive_lora.export.reading import read_adapter
from adaptive_lora.export.study_runs import Which, is_study, runs_of
from adaptive_lora.export.tools import Tool, find_tool, form_for, not_read
from adaptive_lora.export.untrained import check_plan_order, export_plan
from adaptive_lora.models.locate import portable_name
from adaptive_lora.planning.outline import DType
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.reporting.arm_story import story_of
from adaptive_lora.study.adapter_files import check_adapter

if TYPE_CHECKING:
    from adaptive_lora.training.base import FrozenBase

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export, and as what."""

    source: Path | RankPlan
    """A study folder, a folder with an adapter in PEFT's format, a plan or its file."""
    out: Path | None = None
    """The folder to write; of a study by default `adapters/best/ARM-BUDGET-TOOL` in its folder."""
    form: str | None = None
    tool: str | None = None
    arm: str | None = None
    budget: str | None = None
    run: Which = "best"
    model: str | None = None
    """The base model, where it is not the one that is recorded."""
    revision: str | None = None
    dtype: DType = "float32"
    prompts: tuple[str, ...] = ()
    """To check with, beside those that every export is checked with."""
    llama_cpp: Path | None = None

    @property
    def known_tool(self) -> Tool | None:
        """The row of the table; UsageError where there is none of this name."""
        return find_tool(self.tool) if self.tool else None

    @property
    def known_form(self) -> Form | None:
        """The form that was named, None where the tool is to choose it; UsageError where they do not fit."""
        tool, form = self.known_tool, self.form
        if form is None and tool is None:
            raise UsageError("Say which form with --form, or which tool it is for with --for; --list prints both.")
        found = next((known for known in FORMS if known == form), None)
        if form is not None and found is None:
            raise UsageError(f"There is no form {form!r}{nearest_hint(form, FORMS)}. There is: {', '.join(FORMS)}.")
        if found is not None and tool is not None and found not in tool.accepts:
            why, takes = not_read(tool, found), ", ".join(tool.accepts)
            raise UsageError(f"{tool.title} does not read the form {form} ({why}). It takes {takes}.")
        return found

    def check(self) -> None:
        """UsageError where form and tool are not known, or do not fit."""
        _ = self.known_form

    @property
    def place(self) -> Path:
        """`out`; UsageError where it has to be named and was not."""
        if self.out is None:
            raise UsageError("Name a folder for the export with --out.")
        return self.out


@dataclasses.dataclass(frozen=True)
class _Item:
    """An adapter to export: what to call it, where it goes, and what a study knows of it."""

    adapter: AdapterWeights
    name: str
    place: Path
    story: Story | None = None
    model: str | None = None
    revision: str | None = None


def export(request: Request, say: Say = lambda _: None, note: Say = lambda _: None) -> list[Exported]:
    """Everything that a request asks for, written and read back; one by one, ask `check.require` of each.

    `say` is told each step, `note` what a user should know. Raises UsageError with the remedy.
    """
    form, tool = request.known_form, request.known_tool
    if isinstance(request.source, RankPlan) or request.source.is_file():
        return [_of_plan(request, form, tool, say)]
    found = _adapters(request, request.source)
    for item in found:
        check_free(item.place)
    from adaptive_lora.export.base_facts import open_base_of

    first = found[0]
    say("loading the base model")
    own = dataclasses.replace(request, revision=request.revision or first.revision)
    base = open_base_of(first.adapter, request.model or first.model, own.revision, request.dtype)
    return [_one(base, item, own, say, note) for item in found]


def export_adapter(
    source: str | Path | RankPlan,
    out: str | Path | None = None,
    *,
    form: str | None = None,
    tool: str | None = None,
    arm: str | None = None,
    budget: str | None = None,
    run: Which = "best",
    model: str | Path | None = None,
    revision: str | None = None,
    dtype: DType = "float32",
    prompts: Sequence[str] = (),
    llama_cpp: str | Path | None = None,
) -> list[Exported]:
    """Writes an adapter in the form that a tool reads right, reads it back, and compares logits; one entry a run.

    `source` is a study folder (then with `arm`, and `budget` where it has several; `run` is `best`, `median` or `all`),
    a folder with an adapter in PEFT's format, or a plan or its file, of which an adapter at step 0 is written. `form`
    is one of `adaptive-lora export --list`, or `tool` chooses it. `out` may be left out for a study. `model` names
    the base model where it is not the one that is recorded; `prompts` are checked beside four that always are.

    An entry's `folder` is what was written, its `check` how far it is from the weights, `starts(find_tool(...))` the
    commands to start with. Raises UsageError with the remedy, and ExportError where what was written is not the
    adapter; its files stay for a look.
    """
    request = Request(
        source=source if isinstance(source, RankPlan) else Path(source), out=None if out is None else Path(out),
        form=form, tool=tool, arm=arm, budget=budget, run=run, model=None if model is None else str(model),
        revision=revision, dtype=dtype, prompts=tuple(prompts),
        llama_cpp=None if llama_cpp is None else Path(llama_cpp),
    )  # fmt: skip
    written = export(request)
    for own in written:
        own.check.require(own.folder)
    return written


def _of_plan(request: Request, form: Form | None, tool: Tool | None, say: Say) -> Exported:
    source = request.source
    named = "The plan" if isinstance(source, RankPlan) else str(source)
    if isinstance(source, Path) and (source.absolute().parent / CONFIG_FILE).is_file():
        raise UsageError(
            f"{source} is the plan of an adapter that was trained from it and lies beside it: export that folder, "
            f"{source.parent}. An untrained one is made of a copy of the plan elsewhere."
        )
    plan = source if isinstance(source, RankPlan) else RankPlan.load(source)
    if request.arm or request.budget:
        raise UsageError(f"--arm and --budget are of a study, and {named} is none.")
    check_plan_order(form, tool, bool(request.prompts), named)
    model = request.model or plan.provenance.get("model")
    if not model:
        raise ModelError(f"{named} does not say which model it is of: name it with --model.")
    return export_plan(plan, (str(model), request.revision), request.place, tool, say)


def _adapters(request: Request, source: Path) -> list[_Item]:
    if not is_study(source):
        if request.arm or request.budget:
            raise UsageError(f"--arm and --budget are of a study, and {source} is none.")
        place = request.place
        check_adapter(source)
        return [_Item(read_adapter(source), source.resolve().name, place)]
    suffix, found = request.tool or request.form, []
    for run in runs_of(source, request.arm, request.budget, request.run):
        name = run.name if suffix in (None, "peft") else f"{run.name}-{suffix}"
        place = request.out or source / "adapters" / "best" / name
        adapter = read_adapter(run.folder)
        story = story_of(source, run, portable_name(run.model or adapter.base_name or "its base model"))
        own = place / f"seed-{run.seed}" if request.run == "all" else place
        found.append(_Item(adapter, run.name, own, story, run.model, run.revision))
    return found


def _one(base: FrozenBase, own: _Item, request: Request, say: Say, note: Say) -> Exported:
    from adaptive_lora.export.base_facts import facts_of

    facts = facts_of(base, request.revision)
    adapter = fitted_weights(own.adapter, facts.modules, own.name)
    tool, form = request.known_tool, request.known_form
    if form is None:
        assert tool is not None  # as `known_form` says
        transposed = bool(facts.transposed & adapter.modules.keys())
        form = form_for(tool, transposed, find_converter(request.llama_cpp) is not None)
    story = own.story or Story(own.name, f"{own.name}, on {facts.named}")
    for line in adapter.notes:
        note(line)
    order = Order(form, tool, (*PROMPTS, *request.prompts), request.llama_cpp)
    return exporting.export_adapter(adapter, base, facts, own.place, story, order, say)
