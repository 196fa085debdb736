"""`recommend`: which rank, where, at which rate, by a study that fits the time."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json, working
from adaptive_lora.cli.shared import remember
from adaptive_lora.cli.snippets import TOOLS, check_tool
from adaptive_lora.errors import ScoringError, TrainingError, UsageError
from adaptive_lora.planning.outline import DType
from adaptive_lora.study.folder import StudyPaths

if TYPE_CHECKING:
    from adaptive_lora.recommend.running import Recommendation, Request
    from adaptive_lora.recommend.study_text import Question

_DEMO_DATA = "demo:fine-tuning"
_LONGEST = 512
"""Tokens of a text, where nobody says."""
_LABEL, _WIDEST = 10, 100
"""Columns of a label, and of a line with it."""
LONGEST_PASTED = 14
"""Lines of a tool's text that are shown; of a longer one its file is named."""


@app.command()
@explained
def recommend(
    model: Annotated[
        str, typer.Option(help="`demo`, `smollm2` (see `fetch`), a folder, a .gguf file, or a hub name owner/name.")
    ],
    data: Annotated[str | None, typer.Option(help="File, folder or hub data set; of `demo` its own tasks.")] = None,
    minutes: Annotated[
        float, typer.Option(help="Time for everything; 0: nothing is trained, by shape and committed studies alone.")
    ] = 30.0,
    memory: Annotated[str | None, typer.Option(help="Of the card that the real run is for, such as 24GB.")] = None,
    tool: Annotated[
        str | None, typer.Option("--for", help=f"Also what is pasted into a training tool: {TOOLS}.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="The middle of the three uniform ranks; default 8, less in tiny models.")
    ] = None,
    targets: Annotated[
        str, typer.Option(help="`all-linear`, `attention`, `mlp`, or module names with commas.")
    ] = "all-linear",
    max_length: Annotated[
        int | None, typer.Option(help="Longest text in tokens; default 512, or as many as the model takes.")
    ] = None,
    template: Annotated[str, typer.Option(help="How a record becomes text: auto, chat, alpaca, ...")] = "auto",
    dtype: Annotated[DType, typer.Option(help="Of the base model's weights while the study trains.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the accelerator where there is one.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Study folder; the same command again goes on where it stopped.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """How much rank, where, at which learning rate: a study that fits the time, and what to paste.

    Ctrl-C saves a checkpoint; the same command goes on, with as much time again."""
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.recommend.running import Request
    from adaptive_lora.recommend.study_text import Question, slug

    began = time.monotonic()
    limit = _checked(minutes, memory)
    check_place(to, "folder")
    if tool is not None:
        check_tool(tool, None)
    if data is None and model != "demo":
        raise UsageError("`recommend` needs records to train on: give `--data` a file or a hub data set.")
    asked = Question(model, data or _DEMO_DATA, targets, rank or 0, max_length or 0, template, dtype)
    question = _filled_in(asked)
    request = Request(question, minutes, limit, tool, device, began)
    names = (Path(model).stem if Path(model).exists() else model, Path(question.data).stem)
    folder = to or Path("runs") / slug(f"recommend-{'-'.join(names)}")
    found = _answer(request, folder)
    if as_json:
        print_json(to_json(found))
    else:
        show(found, minutes)


def _checked(minutes: float, memory: str | None) -> float | None:
    """Bytes of the named memory; UsageError for times that cannot be."""
    from adaptive_lora.recommend.real_run import parse_memory

    if not 0 <= minutes <= 60 * 24 * 30:
        raise UsageError(f"`--minutes` is a time from 0 to a month, got {minutes:g}.")
    return None if memory is None else parse_memory(memory)


def _filled_in(asked: Question) -> Question:
    """With the rank and the length that suit the model, where they are 0."""
    from adaptive_lora.data.templates import as_template
    from adaptive_lora.recommend.material import middle_rank
    from adaptive_lora.study.prepare import open_outline
    from adaptive_lora.study.targets import targets_of

    template, outline, targets = as_template(asked.template), open_outline(asked.model), asked.targets
    rank = asked.rank or middle_rank(targets_of(outline, targets.split(",") if "," in targets else targets))
    return replace(asked, rank=rank, max_length=asked.max_length or outline.within(_LONGEST), template=template)


def _answer(request: Request, folder: Path) -> Recommendation:
    """With progress; the page and the memory bank stay behind."""
    from adaptive_lora.cli.progress import BarProgress, progress_for
    from adaptive_lora.recommend.running import STUDY, Basis, recommend

    listener, study = progress_for(err), folder / STUDY
    with listener if isinstance(listener, BarProgress) else contextlib.nullcontext():
        try:
            found = recommend(request, folder, listener)
        except (KeyboardInterrupt, ScoringError, TrainingError):
            if StudyPaths(study).ledger.is_file():
                remember(study)
            raise
    if found.basis is Basis.STUDY and not _page_is_of(StudyPaths(study)):
        from adaptive_lora.reporting.exported import open_findings
        from adaptive_lora.reporting.html.build import write_report

        with open_findings(study) as read:
            with working("drawing figures"):
                write_report(read, study)
            remember(study, read)
    return found


def _page_is_of(paths: StudyPaths) -> bool:
    """Whether a study's page is no older than what the ledger has."""
    ledger = [path for path in paths.folder.glob(f"{paths.ledger.name}*") if not path.name.endswith("-shm")]
    return paths.report.is_file() and all(p.stat().st_mtime_ns <= paths.report.stat().st_mtime_ns for p in ledger)


def to_json(found: Recommendation) -> dict[str, Any]:
    """All of it as JSON values."""
    from adaptive_lora.recommend.snippet import snippet

    advice, real = found.advice, found.real
    return {
        "basis": found.basis.value,
        "strategy": advice.strategy,
        "rank": advice.rank,
        "learning_rate": found.rate,
        "tuned": advice.rate is not None,
        "trainable_parameters": found.plan.trainable_parameters,
        "question": asdict(found.question),
        "how_much": [
            {"budget": n.budget, "reading": n.reading.value, "minus_middle": n.minus_middle and asdict(n.minus_middle)}
            for n in advice.neighbours
        ],
        "where": [
            {"arm": arm, "verdict": str(j.verdict), "interval": j.interval and asdict(j.interval), "seeds": j.n}
            for arm, j in (advice.where or {}).items()
        ],
        "margin": advice.margin,
        "loss": advice.loss and asdict(advice.loss),
        "frozen_loss": advice.frozen_loss,
        "real_run": {
            "records": real.records, "epochs": real.epochs, "steps": real.steps, "seconds": real.seconds,
            "bytes": real.memory.total,
            "card": real.fit and {**asdict(real.fit), "bytes": real.fit.memory.total, "fits": real.fit.fits},
        },
        "study": found.size and asdict(found.size),
        "snippet": snippet(found.plan, found.material.outline.modules, found.folder / "peft"),
        "for": found.pasted and {**asdict(found.pasted), "file": found.pasted.file and str(found.pasted.file)},
        "folder": str(found.folder),
        "at_deadline": found.at_deadline,
        "seconds": found.seconds,
    }  # fmt: skip


def show(found: Recommendation, minutes: float) -> None:
    """The screen: what to take and what to paste come first."""
    from adaptive_lora.cli.terminal import plain
    from adaptive_lora.recommend.snippet import snippet
    from adaptive_lora.reporting.templating import render

    out.print(Text(render("recommend.headline", found), "bold"))
    out.print()
    pasted = found.pasted
    if pasted and not pasted.own:
        short = pasted.text.count("\n") <= LONGEST_PASTED
        out.print(pasted.text.rstrip() if short else render("recommend.pasted", pasted), markup=False, soft_wrap=True)
    else:
        code = snippet(found.plan, found.material.outline.modules, found.folder / "peft")
        out.print(code, markup=False, soft_wrap=True)
    out.print(render("recommend.training", found), markup=False, soft_wrap=True)
    out.print()
    for label, text in rows(found, minutes):
        width = min(out.width, _WIDEST) - _LABEL
        lines = textwrap.wrap(plain(text).plain, width, break_long_words=False, break_on_hyphens=False)
        for index, line in enumerate(lines):
            out.print(Text.assemble((("" if index else label).ljust(_LABEL), "bold"), line), soft_wrap=True)


def rows(found: Recommendation, minutes: float) -> Iterator[tuple[str, str]]:
    """(label, text) of the lines below what is pasted; labels of lines that go together are blank."""
    from adaptive_lora.recommend.evidence import counts
    from adaptive_lora.recommend.running import PEFT, PLAN, STUDY, Basis
    from adaptive_lora.reporting.templating import render

    advice, studied = found.advice, found.basis is Basis.STUDY
    yield "why", render("recommend.why", found, counts())
    for macro, neighbour in zip(("half", "twice"), advice.neighbours if studied else (), strict=False):
        yield "how much" if macro == "half" else "", render(f"recommend.{macro}", neighbour)
    for index, (arm, judged) in enumerate((advice.where or {}).items() if studied else ()):
        yield "" if index else "where", render("recommend.where", arm, judged, advice.margin)
    if studied and not advice.where:
        yield "where", "Not tried: the time was too short for a verdict."
    yield "rate", render("recommend.rate_line", found)
    yield "gain", render("recommend.gain", found)
    yield "real run", render("recommend.real", found)
    if found.real.fit is not None:
        yield "memory", render("recommend.card", found.real.fit)
    if found.pasted:
        yield "tool", f"{found.pasted.title}: {'; '.join(note.rstrip('.') for note in found.pasted.notes)}."
    yield "rests on", render("recommend.basis", found, minutes)
    for warning in found.material.warnings:
        yield "warning", warning
    page, text = StudyPaths(found.folder / STUDY).report, found.pasted and found.pasted.file
    files = [found.folder / PLAN, found.folder / PEFT, text, page if page.is_file() else None]
    yield "files", ", ".join(str(path) for path in files if path)
