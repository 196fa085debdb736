"""`export`: an adapter in the form that a tool reads, checked; and onto the hub where that is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json
from adaptive_lora.errors import UsageError
from adaptive_lora.planning.outline import DType

if TYPE_CHECKING:
    from adaptive_lora.export.card import Exported
    from adaptive_lora.export.tools import Tool
    from adaptive_lora.publishing.exports import Request
    from adaptive_lora.publishing.hub import Target

Which = Literal["best", "median", "all"]
Source = Annotated[
    Path | None,
    typer.Argument(
        help="A study folder, a folder with an adapter in PEFT's format, or a plan; with --push alone also a folder "
        "that `export` wrote."
    ),
]
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
PushOption = Annotated[
    str | None,
    typer.Option(
        "--push",
        help="Then upload the folder to the Hugging Face hub, as OWNER/NAME, after asking. The token is that of `hf "
        "auth login` or HF_TOKEN.",
    ),
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
    push: PushOption = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everybody; else it is private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --push: upload without asking.")] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Print which tool reads which form, and nothing else.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write an adapter in the form that a tool reads right, check it by its logits, and say how to start.

    The same update in every form: many tools ignore ranks and alphas by module without a word. Of a plan: its adapter
    at step 0.
    """
    if listing:
        _list(as_json)
        return
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.export.checked_folder import is_checked_folder
    from adaptive_lora.publishing.exports import Request

    if source is None:
        raise UsageError("Name a study folder, an adapter's folder or a plan: adaptive-lora export STUDY --arm ARM "
                         "--for vllm")  # fmt: skip
    check_place(to, "folder")
    wanted = Request(source, to, form, tool, arm, budget, run, model, revision, dtype, tuple(prompt or ()), llama_cpp)
    lies_there = push is not None and form is None and tool is None and is_checked_folder(source)
    if not lies_there:
        wanted.check()  # a mistype is answered before the hub is asked
    elif arm or budget or to or model or revision or prompt:
        raise UsageError(f"{source} is an export, which is uploaded as it is: leave all but --push out.")
    target = _target(push, public, yes, run)
    told: list[dict[str, Any]] = []
    folder = source if lies_there else _exported(wanted, told, as_json)
    if target is not None:
        told = [{**one, **_push(folder, target, yes, as_json)} for one in told or [{}]]
    if as_json:
        print_json(told)


def _target(push: str | None, public: bool, yes: bool, run: Which) -> Target | None:
    """Where to upload to, before anything is exported: what is wrong there is better known early."""
    if push is None:
        if public or yes:
            raise UsageError("--public and --yes are about an upload: name its repository with --push OWNER/NAME.")
        return None
    if run == "all":
        raise UsageError("One repository holds one export: leave --push or `--run all` out.")
    if not yes and not sys.stdin.isatty():
        raise UsageError("--push asks before it uploads, and nobody can answer here: say --yes.")
    from adaptive_lora.publishing.hub import open_target

    return open_target(push, public)


def _exported(wanted: Request, told: list[dict[str, Any]], as_json: bool) -> Path:
    """The first folder that was written; what there is to say of all goes into `told`, or is shown.

    ExportError, after all is said, where one of them failed its check.
    """
    from adaptive_lora.publishing.exports import export as written_by

    def say(text: str) -> None:
        err.print(text, markup=False)

    def note(text: str) -> None:
        err.print(f"note: {text}", markup=False, soft_wrap=True)

    written, tool = written_by(wanted, say, note), wanted.known_tool
    told += [_json(own, tool) for own in written]
    if not as_json:
        for own in written:
            _show(own, tool, wanted.source)
    elif not all(own.check.passed for own in written):
        print_json(told)
    for own in written:
        own.check.require(own.folder)
    return Path(written[0].folder)


def _push(folder: Path, target: Target, yes: bool, as_json: bool) -> dict[str, Any]:
    """Says what goes where, asks, and uploads; an export whose upload failed stays, and says how to go on.

    Returns what there is to say as JSON values.
    """
    from adaptive_lora.errors import HubError
    from adaptive_lora.export.checked_folder import checked_folder
    from adaptive_lora.publishing import hub

    found = checked_folder(folder)
    for line in hub.listing(target, found):
        err.print(line, markup=False, soft_wrap=True)
    again = f"adaptive-lora export {folder} --push {target.repo}{' --public' if target.public else ''}"
    if not yes and not typer.confirm("Upload this?", err=True):
        err.print(f"nothing was uploaded; {folder} stays as it is. Later: {again}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    try:
        commit = hub.push(target, found, lambda text: err.print(text, markup=False))
    except HubError as error:
        raise HubError(f"{error}\n{folder} stays as it was. To try again: {again}") from None
    if not as_json:
        out.print(f"uploaded to {target.url}: {commit}", markup=False, soft_wrap=True)
    sizes = dict(found.files)
    return {
        "folder": str(folder), "repository": target.url, "public": target.public, "commit": commit, "uploaded": sizes,
    }  # fmt: skip


def _json(found: Exported, tool: Tool | None) -> dict[str, Any]:
    starts = {"tool": tool.name, "start": list(found.starts(tool, here=True))} if tool else {}
    return {"folder": found.folder, "form": found.form, "check": found.check.to_json(), **starts}


def _show(found: Exported, tool: Tool | None, source: object) -> None:
    """What was written, what it was checked with, and what to start."""
    from adaptive_lora.export.forms import DESCRIPTIONS, MERGED
    from adaptive_lora.models.locate import is_named

    out.print(f"{found.folder}: {found.form} ({DESCRIPTIONS[found.form]})", markup=False, soft_wrap=True)
    out.print(found.check.line, markup=False, soft_wrap=True)
    if found.untrained:
        base = found.base.named if is_named(found.base.named) else found.base.location
        out.print(
            f"to train it: adaptive-lora plan --model {base} --plan {source} --for TRAINER; where a trainer goes on "
            f"from an adapter, {found.folder}", markup=False, soft_wrap=True,
        )  # fmt: skip
    if tool is None:
        out.print(f"who reads it and how: {found.folder}/README.md", markup=False, soft_wrap=True)
        return
    if found.form in MERGED and found.transposed and not tool.conv1d:
        reason = f"{tool.title} {tool.conv1d_why.format(family=found.base.family)}"
        out.print(f"merged, as {reason}", markup=False, soft_wrap=True)
    out.print(f"\n{tool.title} ({tool.version}){', once it is trained' * found.untrained}:", markup=False)
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
