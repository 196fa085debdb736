"""Verbs that read what is recorded: `status`, `report`, `memory`, `paper`, `results`. None needs torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json, working
from adaptive_lora.cli.checks import check_place
from adaptive_lora.cli.shared import remember, tell_report, tell_status
from adaptive_lora.errors import UsageError
from adaptive_lora.study.folder import StudyPaths, is_in_use

ReadingArgument = Annotated[Path, typer.Argument(help="Study folder, or one that `results --out` wrote.")]


@app.command()
@explained
def status(folder: ReadingArgument, as_json: JsonFlag = False) -> None:
    """What is done, running, failed and left."""
    tell_status(folder, as_json)


@app.command()
@explained
def report(
    folder: ReadingArgument,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for page, figures and tables; default the study folder itself.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the HTML report and the figures again from what is recorded."""
    check_place(to, "folder")
    tell_report(folder, as_json, to)


@app.command()
@explained
def memory(
    folder: ReadingArgument,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for `memory-bank`; default the study folder itself.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring the memory bank up to date and show where the study stands, what it found and what to do next.

    That of an export is shown, and written where --out says.
    """
    from adaptive_lora.reporting.exported import open_findings
    from adaptive_lora.reporting.memory.memory_bank import SHOWN, TITLES, memory_texts, write_memory_bank

    check_place(to, "folder")
    with open_findings(folder) as found:
        texts = memory_texts(found, is_in_use(folder))
    place, changed = StudyPaths(to or folder).memory_bank, []
    if to is None and StudyPaths(folder).is_export:
        err.print(f"{folder} is an export, which stays as it is; name a folder with --out", markup=False)
    elif to or os.access(folder, os.W_OK):
        changed = [path.name for path in write_memory_bank(texts, to or folder)]
        err.print(f"{place}: {', '.join(changed) or 'nothing'} changed", markup=False, soft_wrap=True)
    else:  # a mounted archive can be read all the same
        err.print(f"warning: {folder} cannot be written, so that its memory bank stays as it is", markup=False)
    if as_json:
        print_json({"memory_bank": str(place), "changed": changed, "texts": texts})
        return
    sys.stdout.write("\n\n".join(f"# {TITLES[name]}\n\n{texts[name]}" for name in SHOWN) + "\n")


@app.command()
@explained
def paper(
    folder: ReadingArgument,
    to: Annotated[Path | None, typer.Option("--out", help="Folder to write; default `paper` in the study's.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Another study to tell beside it, or a .json of planted ranks; may be repeated."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Folder of a text of your own around named facts.", exists=True)
    ] = None,
    arxiv: Annotated[bool, typer.Option("--arxiv", help="Check arXiv's rules and write the archive.")] = False,
    facts: Annotated[
        bool, typer.Option("--facts", help="Print what --text can tell of each study; write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a manuscript from what is recorded: Markdown, LaTeX, figures, and a PDF where latexmk or tectonic is."""
    if facts:
        _print_facts([folder, *(path for path in beside or [] if path.suffix != ".json")], as_json)
        return
    from adaptive_lora.reporting.exported import open_findings
    from adaptive_lora.reporting.paper.build import write_paper
    from adaptive_lora.reporting.paper.other_studies import open_beside

    check_place(to, "folder")
    with open_findings(folder) as found, open_beside(beside or []) as others, working("writing the manuscript"):
        written = write_paper(found, to or folder / "paper", others, arxiv, text)
    if StudyPaths(folder).ledger.exists():
        remember(folder)
    for complaint in written.compiled.complaints:
        err.print(f"note: {complaint}", markup=False, soft_wrap=True)
    if as_json:
        told = {"words": written.words, "figures": written.figures, "complaints": list(written.compiled.complaints)}
        pdf = str(written.folder / "main.pdf") if written.compiled.pdf else None
        sent = str(written.archive) if written.archive else None
        print_json({"paper": str(written.folder / "paper.md"), "pdf": pdf, "archive": sent, **told})
        return
    names = ["paper.md", "main.tex", *(["main.pdf"] if written.compiled.pdf else [])]
    names += [written.archive.name] if written.archive else []
    out.print(f"{written.words:,} words, {written.figures} figures: {written.folder}: {', '.join(names)}", markup=False)


@app.command()
@explained
def results(
    folder: ReadingArgument,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV (the default).")] = False,
    as_json: JsonFlag = False,
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Export the study: files to commit, to read with every verb, to go on from."),
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers/--no-answers", help="With --out: the answers of the page, which quote the data.")
    ] = True,
) -> None:
    """One row a run: losses, parameters, times. Losses in nats per completion token."""
    from adaptive_lora.reporting.exported import export_study
    from adaptive_lora.study.results import load_results

    if csv and as_json:
        raise UsageError("Choose one of --csv and --json.")
    check_place(to, "folder")
    if to is None:
        table = load_results(folder)
        text = table.to_json(orient="records", indent=2, double_precision=15) if as_json else table.to_csv(index=False)
        sys.stdout.write(text.rstrip("\n") + "\n")
        return
    if StudyPaths(folder).is_export:
        raise UsageError(f"{folder} is an export already; copy the folder.")
    remember(folder)
    for path in export_study(folder, to, answers):
        err.print(f"wrote {path}", markup=False)


def _print_facts(folders: list[Path], as_json: bool) -> None:
    """Label of each study -> name of every fact -> as it is written."""
    from adaptive_lora.reporting.exported import open_findings
    from adaptive_lora.reporting.paper.other_studies import label_of
    from adaptive_lora.reporting.paper.own_text import shown_of
    from adaptive_lora.reporting.paper.study_facts import gather

    told: dict[str, dict[str, Any]] = {}
    for folder in folders:
        with open_findings(folder) as found:
            known = {name: fact.text for name, fact in gather(found).items()}
            told[label_of(found)] = {"facts": known, **shown_of(found)}
    if as_json:
        print_json(told)
        return
    for label, one in told.items():
        lines = [f'study("{label}")', *(f'  n("{name}")  {text}' for name, text in one["facts"].items())]
        lines += [f"  ::table {label}-{name}" for name in one["tables"]]
        lines += [f"  ::figure {label}-{name}" for name in one["figures"]]
        sys.stdout.write("\n".join(lines) + "\n")
