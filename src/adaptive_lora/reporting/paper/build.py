"""A folder with the manuscript: Markdown, LaTeX, references, figures, and the PDF where it can be made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from matplotlib.figure import Figure

from adaptive_lora.errors import PaperError
from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.figures.planted import recovery_heat_map, recovery_map_caption
from adaptive_lora.reporting.figures.theme import save, settle
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.paper.arxiv import archive, broken_rules, upload_of
from adaptive_lora.reporting.paper.bibliography import in_order, work
from adaptive_lora.reporting.paper.compiling import Compiled, compile_pdf
from adaptive_lora.reporting.paper.document import Block, cited, referred, words_of
from adaptive_lora.reporting.paper.figures import study_figures
from adaptive_lora.reporting.paper.forms import render_latex, render_markdown, render_references
from adaptive_lora.reporting.paper.manuscript import Manuscript, People, read_people
from adaptive_lora.reporting.paper.other_studies import ALONE, Beside, check_labels, label_of
from adaptive_lora.reporting.paper.own_text import own_text
from adaptive_lora.reporting.paper.planted import planted_context, planted_tables
from adaptive_lora.reporting.paper.prose import Account, write_blocks
from adaptive_lora.reporting.paper.study_facts import gather
from adaptive_lora.reporting.paper.tables import changes_of_training, conclusions, side_by_side, study_tables
from adaptive_lora.reporting.tables import Table, to_csv
from adaptive_lora.stats.variants import variants_of


@dataclass(frozen=True)
class Paper:
    """What was written."""

    folder: Path
    words: int
    """Of prose: without title, tables, captions, references."""
    figures: int
    compiled: Compiled
    archive: Path | None = None


def write_paper(
    found: Findings, folder: Path, beside: Beside = ALONE, arxiv: bool = False, text: Path | None = None
) -> Paper:
    """Writes the paper into a folder; the same findings give the same `paper.md`, `main.tex` and figures.

    `text` is the folder of a text that a person wrote (`own_text`), in place of the package's own.
    `authors.txt` in that folder is its authors' own: made once, read every time. PaperError, with nothing written, for
    a study by another metric than test loss; with `arxiv`, with every rule that the upload would break, after all else
    is written.
    """
    for study in (found, *beside.studies):
        if not study.metric.is_loss:
            raise PaperError(
                f"The paper speaks of test loss alone, and {study.facts['name']} is judged by {study.metric.title}. "
                "`adaptive-lora report` writes every table as LaTeX and every figure, with the metric's name."
            )
    if not (folder / "authors.txt").exists():
        template = resources.files(__package__).joinpath("text", "authors.txt")
        write_atomically(folder / "authors.txt", template.read_text(encoding="utf-8"))
    people = read_people((folder / "authors.txt").read_text(encoding="utf-8"))
    paper, drawn = manuscript(found, beside, people) if text is None else own_manuscript(found, beside, people, text)
    shown = dict.fromkeys(block.content for block in paper.blocks if block.kind == "figure")
    files = {
        "paper.md": render_markdown(paper).encode(),
        "main.tex": render_latex(paper).encode(),
        "main.bbl": render_references(paper.works).encode(),
        "references.bib": ("\n\n".join(work.entry for work in paper.works) + "\n").encode(),
        **_pictures({name: drawn[name] for name in shown}),
    }
    for name, table in paper.tables.items():  # whole ones, whether the text shows them or not
        write_atomically(folder / "tables" / f"{name}.csv", to_csv(table))
    for name, content in files.items():
        write_atomically(folder / name, content)
    compiled = compile_pdf({name: content for name, content in files.items() if not name.endswith((".svg", ".md"))})
    if compiled.pdf:
        write_atomically(folder / "main.pdf", compiled.pdf)
    sent = _send(files, people, folder) if arxiv else None
    return Paper(folder, words_of([*paper.abstract, *paper.blocks]), len(shown), compiled, sent)


def manuscript(found: Findings, beside: Beside, people: People) -> tuple[Manuscript, dict[str, Figure]]:
    """The manuscript and all figures that it may show."""
    check_labels(found, beside.studies)
    if len(beside.planted) > 1:
        raise PaperError(f"A paper takes one file of planted ranks, and {listed(list(beside.planted))} were given.")
    tables, drawn = study_tables(found), study_figures(found)
    own, others, planted = Account(found, gather(found), list(tables), list(drawn)), [], None
    for other in beside.studies:
        label = label_of(other)
        made = (conclusions(other), side_by_side(other, found), changes_of_training(other))
        more = [replace(table, name=f"{label}-{table.name}") for table in made if table is not None]
        # How training goes, if that was its question, or differences.
        shown = "stability" if variants_of(other.facts["spec"]) else "differences"
        figures = {f"{label}-{name}": drawing for name, drawing in study_figures(other).items() if name == shown}
        others.append(Account(other, gather(other), [table.name for table in more], list(figures)))
        tables |= {table.name: table for table in more}
        drawn |= figures
    if beside.recovered:
        planted = planted_context(beside.recovered)
        tables |= planted_tables(beside.recovered)
        drawn |= {"planted": (recovery_heat_map(beside.recovered), recovery_map_caption(beside.recovered))}
    return _bound(write_blocks(own, people.tools, others, planted), tables, drawn, people)


def own_manuscript(found: Findings, beside: Beside, people: People, text: Path) -> tuple[Manuscript, dict[str, Figure]]:
    """As `manuscript`, of a text that a person wrote."""
    check_labels(found, beside.studies)
    made = own_text(text, (found, *beside.studies), beside.planted, people.tools)
    tables, drawn = dict(made.tables), dict(made.figures)
    if beside.recovered:
        tables |= planted_tables(beside.recovered)
        drawn |= {"planted": (recovery_heat_map(beside.recovered), recovery_map_caption(beside.recovered))}
    return _bound(made.blocks, tables, drawn, people)


def _bound(
    blocks: Mapping[str, Sequence[Block]],
    tables: Mapping[str, Table],
    drawn: Mapping[str, tuple[Figure, str]],
    people: People,
) -> tuple[Manuscript, dict[str, Figure]]:
    keys = cited([*blocks["abstract"], *blocks["body"]])
    for kind, known in (("table", tables), ("figure", drawn)):
        if missing := [b.content for b in blocks["body"] if b.kind == kind and b.content not in known]:
            raise PaperError(f"The text shows the {kind} {', '.join(missing)}, which the results do not have.")
        shown = {block.content for block in blocks["body"] if block.kind == kind}
        if unseen := [name for name in referred([*blocks["abstract"], *blocks["body"]], kind) if name not in shown]:
            raise PaperError(
                f"The text refers to the {kind} {', '.join(unseen)} and does not show it; add a line "
                f"`::{kind} {unseen[0]}`."
            )
    paper = Manuscript(
        title=" ".join(span.content for block in blocks["title"] for item in block.items for span in item),
        abstract=tuple(blocks["abstract"]),
        blocks=tuple(blocks["body"]),
        tables=tables,
        figures={name: caption for name, (_, caption) in drawn.items()},
        works=in_order(map(work, keys)),
        people=people,
    )
    return paper, {name: figure for name, (figure, _) in drawn.items()}


def _pictures(drawn: Mapping[str, Figure]) -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for stem, figure in drawn.items():
            settle(figure)
            for path in save(figure, Path(name) / stem, ("pdf", "svg")):
                found[f"figures/{path.name}"] = path.read_bytes()
    return found


def _send(files: Mapping[str, bytes], people: People, folder: Path) -> Path:
    upload = upload_of(files)
    if problems := broken_rules(upload, people):
        raise PaperError("\n  - ".join(["The paper is not ready for arXiv:", *problems]))
    path = folder / "arxiv.tar.gz"
    write_atomically(path, archive(upload))
    return path
