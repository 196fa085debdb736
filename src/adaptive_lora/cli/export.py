"""`export`: an adapter in the form that a tool reads, checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json
from adaptive_lora.errors import UsageError
from adaptive_lora.planning.outline import DType

if TYPE_CHECKING:
    from adaptive_lora.export.card import Exported, Story
    from adaptive_lora.export.exporting import Order
    from adaptive_lora.export.low_rank import AdapterWeights
    from adaptive_lora.export.tools import Tool
    from adaptive_lora.training.base import FrozenBase

Which = Literal["best", "median", "all"]


@dataclasses.dataclass(frozen=True)
class _Item:
    """An adapter to export: what to call it, where it goes, and what a study knows of it."""

    adapter: AdapterWeights
    name: str
    place: Path
    story: Story | None = None
    model: str | None = None
    revision: str | None = None


Source = Annotated[Path | None, typer.Argument(help="A study folder, or a folder with an adapter in PEFT's format.")]
RunOption = Annotated[
    Which, typer.Option(help="Of the arm's runs the one with the best or the median validation loss, or all.")
]
FormOption = Annotated[
    str | None,
    typer.Option(
        help="peft, padded, single-alpha, unit, merged, gguf, gguf-merged, mlx or onnx-adapter; what they are and who "
        "reads them: `adaptive-lora export --list`."
    ),
]
ToolOption = Annotated[
    str | None,
    typer.Option("--for", help="Choose the form for a tool, and print what to start it with: vllm, llama.cpp, ..."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder to write; for a study default `adapters/best/ARM-BUDGET` in it.")
]
LlamaOption = Annotated[
    Path | None, typer.Option("--llama-cpp", help="A checkout of llama.cpp, for GGUF; default $LLAMA_CPP.")
]


@app.command()
@explained
def export(
    source: Source = None,
    arm: Annotated[str | None, typer.Option(help="Of a study: whose adapter.")] = None,
    budget: Annotated[str | None, typer.Option(help="Of a study with several: at which budget.")] = None,
    run: RunOption = "best",
    form: FormOption = None,
    tool: ToolOption = None,
    to: OutOption = None,
    model: Annotated[str | None, typer.Option(help="The base model, where it is not the one that is recorded.")] = None,
    revision: Annotated[str | None, typer.Option(help="The base model's hub commit, tag or branch.")] = None,
    dtype: Annotated[DType, typer.Option(help="Of the base model, and so of merged weights.")] = "float32",
    prompt: Annotated[list[str] | None, typer.Option(help="Check with this prompt too; may be repeated.")] = None,
    llama_cpp: LlamaOption = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Print which tool reads which form, and nothing else.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write an adapter in the form that a tool reads right, check it by its logits, and say how to start.

    The same update in every form: many tools ignore ranks and alphas by module without a word.
    """
    if listing:
        _list(as_json)
        return
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.export.checking import PROMPTS
    from adaptive_lora.export.exporting import Order, check_free
    from adaptive_lora.export.tools import find_tool

    if source is None:
        raise UsageError("Name a study folder or an adapter's folder: adaptive-lora export STUDY --arm ARM --for vllm")
    known = find_tool(tool) if tool else None
    wanted = _form(form, known)
    check_place(to, "folder")
    found = _sources(source, arm, budget, run, to, tool or form)
    for item in found:
        check_free(item.place)
    from adaptive_lora.export.base_facts import open_base_of

    first = found[0]
    err.print("loading the base model", markup=False)
    base = open_base_of(first.adapter, model or first.model, revision or first.revision, dtype)
    order = Order(wanted or "peft", known, (*PROMPTS, *(prompt or ())), llama_cpp)
    written = [_one(base, item, order, wanted, revision or first.revision) for item in found]
    if as_json:
        print_json([_json(own, known) for own in written])
    else:
        for own in written:
            _show(own, known)
    for own in written:
        own.check.require(own.folder)


def _form(form: str | None, tool: Tool | None) -> Any:
    """The form that was named; None where the tool is to choose it."""
    from adaptive_lora.errors import nearest_hint
    from adaptive_lora.export.forms import FORMS
    from adaptive_lora.export.tools import not_read

    if form is None and tool is None:
        raise UsageError("Say which form with --form, or which tool it is for with --for; --list prints both.")
    if form is not None and form not in FORMS:
        raise UsageError(f"There is no form {form!r}{nearest_hint(form, FORMS)}. There is: {', '.join(FORMS)}.")
    if form is not None and tool is not None and form not in tool.accepts:
        why, takes = not_read(tool, form), ", ".join(tool.accepts)
        raise UsageError(f"{tool.title} does not read the form {form} ({why}). It takes {takes}.")
    return form


def _sources(
    source: Path, arm: str | None, budget: str | None, which: Which, to: Path | None, suffix: str | None
) -> list[_Item]:
    from adaptive_lora.export.reading import read_adapter
    from adaptive_lora.export.study_runs import is_study, runs_of
    from adaptive_lora.models.locate import portable_name

    if not is_study(source):
        if arm or budget:
            raise UsageError(f"--arm and --budget are of a study, and {source} is none.")
        if to is None:
            raise UsageError("Name a folder for the export with --out.")
        return [_Item(read_adapter(source), source.resolve().name, to)]
    from adaptive_lora.reporting.arm_story import story_of

    found = []
    for run in runs_of(source, arm, budget, which):
        name = run.name if suffix in (None, "peft") else f"{run.name}-{suffix}"
        place = to or source / "adapters" / "best" / name
        adapter = read_adapter(run.folder)
        story = story_of(source, run, portable_name(run.model or adapter.base_name or "its base model"))
        own = place / f"seed-{run.seed}" if which == "all" else place
        found.append(_Item(adapter, run.name, own, story, run.model, run.revision))
    return found


def _one(base: FrozenBase, own: _Item, order: Order, wanted: Any, revision: str | None) -> Exported:
    from adaptive_lora.export.base_facts import facts_of
    from adaptive_lora.export.card import Story
    from adaptive_lora.export.exporting import export_adapter
    from adaptive_lora.export.fitting import fitted_weights
    from adaptive_lora.export.gguf import find_converter
    from adaptive_lora.export.tools import form_for

    facts = facts_of(base, revision)
    adapter = fitted_weights(own.adapter, facts.modules, own.name)
    if wanted is None:
        assert order.tool is not None  # else a form was named
        transposed = bool(facts.transposed & adapter.modules.keys())
        form = form_for(order.tool, transposed, find_converter(order.llama_cpp) is not None)
        order = dataclasses.replace(order, form=form)
    story = own.story or Story(own.name, f"{own.name}, on {facts.named}")
    for note in adapter.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    return export_adapter(adapter, base, facts, own.place, story, order, lambda text: err.print(text, markup=False))


def _json(found: Exported, tool: Tool | None) -> dict[str, Any]:
    starts = {"tool": tool.name, "start": list(found.starts(tool, here=True))} if tool else {}
    return {"folder": found.folder, "form": found.form, "check": found.check.to_json(), **starts}


def _show(found: Exported, tool: Tool | None) -> None:
    """What was written, what it was checked with, and what to start."""
    from adaptive_lora.export.forms import DESCRIPTIONS, MERGED

    check = found.check
    out.print(f"{found.folder}: {found.form} ({DESCRIPTIONS[found.form]})", markup=False, soft_wrap=True)
    out.print(
        f"read back by {check.by}: logits of {check.prompts} prompts differ by at most {check.largest:.2g}, where the "
        f"adapter changes them by up to {check.effect:.2g}", markup=False, soft_wrap=True,
    )  # fmt: skip
    if tool is None:
        out.print(f"who reads it and how: {found.folder}/README.md", markup=False, soft_wrap=True)
        return
    if found.form in MERGED and found.transposed and not tool.conv1d:
        reason = f"{tool.title} reads no adapters on the transposed weights of {found.base.family} right"
        out.print(f"merged, as {reason}", markup=False, soft_wrap=True)
    out.print(f"\n{tool.title} ({tool.version}):", markup=False)
    for line in found.starts(tool, here=True):
        out.print(f"  {line}", markup=False, soft_wrap=True)
    for remark in found.remarks(tool):
        out.print(f"  - {remark}", markup=False, soft_wrap=True)


def _list(as_json: bool) -> None:
    from adaptive_lora.cli.tools_table import tools_view
    from adaptive_lora.export.forms import DESCRIPTIONS
    from adaptive_lora.export.tools import TOOLS, table_json

    if as_json:
        print_json(table_json())
        return
    out.print(tools_view(DESCRIPTIONS, TOOLS))
