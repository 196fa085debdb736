"""A folder with the manuscript: Markdown, LaTeX, references, figures, and the PDF where it can be made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from adaptive_lora.errors import PaperError
from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.figures.theme import save, settle
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.paper.arxiv import archive, broken_rules, complaint, upload_of
from adaptive_lora.reporting.paper.beside import NOTHING, Beside, check_labels, label_of
from adaptive_lora.reporting.paper.compiling import Compiled, compile_pdf
from adaptive_lora.reporting.paper.document import Block, cited, words_of
from adaptive_lora.reporting.paper.exhibits import beside_exhibits, exhibits
from adaptive_lora.reporting.paper.gather import gather
from adaptive_lora.reporting.paper.latex import render_latex, render_references
from adaptive_lora.reporting.paper.manuscript import PEOPLE_FILE, Manuscript, People, read_people
from adaptive_lora.reporting.paper.markdown import render_markdown
from adaptive_lora.reporting.paper.pictures import beside_pictures, pictures
from adaptive_lora.reporting.paper.planted import planted_context, planted_picture, planted_tables
from adaptive_lora.reporting.paper.prose import Account, write_blocks
from adaptive_lora.reporting.paper.works import entry_of, work
from adaptive_lora.reporting.tables import Table


@dataclass(frozen=True)
class Paper:
    """What was written."""

    folder: Path
    words: int
    """Of prose: without title, tables, captions, references."""
    figures: int
    compiled: Compiled
    archive: Path | None = None


def write_paper(found: Findings, folder: Path, beside: Beside = NOTHING, arxiv: bool = False) -> Paper:
    """Writes the paper into a folder; the same findings give the same `paper.md`, `main.tex` and figures.

    `authors.txt` in that folder is its authors' own: made once, read every time. With `arxiv`, PaperError with every
    rule that the upload would break, after all else is written.
    """
    people = _people(folder)
    paper, drawn = manuscript(found, beside, people)
    shown = [block.content for block in paper.blocks if block.kind == "figure"]
    files = {
        "paper.md": render_markdown(paper).encode(),
        "main.tex": render_latex(paper).encode(),
        "main.bbl": render_references(paper.works).encode(),
        "references.bib": ("\n\n".join(entry_of(w.key) for w in paper.works) + "\n").encode(),
        **_pictures({name: drawn[name] for name in shown}.items()),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    compiled = compile_pdf({name: content for name, content in files.items() if not name.endswith((".svg", ".md"))})
    if compiled.pdf:
        write_atomically(folder / "main.pdf", compiled.pdf)
    sent = _send(files, people, folder) if arxiv else None
    return Paper(folder, words_of([*paper.abstract, *paper.blocks]), len(set(shown)), compiled, sent)


def manuscript(found: Findings, beside: Beside, people: People) -> tuple[Manuscript, dict[str, Figure]]:
    """The manuscript and all figures that it may show."""
    check_labels(found, beside.studies)
    tables, drawn = exhibits(found), pictures(found)
    own = Account(found, gather(found), list(tables), list(drawn))
    others = []
    for other in beside.studies:
        its_tables, its_figures = _labelled(beside_exhibits(other, found), other), beside_pictures(other)
        its_figures = {f"{label_of(other)}-{name}": picture for name, picture in its_figures.items()}
        others.append(Account(other, gather(other), list(its_tables), list(its_figures)))
        tables, drawn = tables | its_tables, drawn | its_figures
    planted = None
    if beside.recovered:
        planted = planted_context(beside.recovered)
        tables |= planted_tables(beside.recovered)
        drawn |= {"planted": planted_picture(beside.recovered)}
    blocks = write_blocks(own, people.tools, others, planted)
    keys = cited([*blocks["abstract"], *blocks["body"]])
    paper = Manuscript(
        title=_plain(blocks["title"]),
        abstract=tuple(blocks["abstract"]),
        blocks=tuple(blocks["body"]),
        tables=tables,
        figures={name: caption for name, (_, caption) in drawn.items()},
        works=sorted((work(key) for key in keys), key=lambda w: (w.families.lower(), w.year, w.title)),
        people=people,
    )
    return paper, {name: figure for name, (figure, _) in drawn.items()}


def _labelled(tables: Mapping[str, Table], found: Findings) -> dict[str, Table]:
    named = {f"{label_of(found)}-{name}": table for name, table in tables.items()}
    return {name: replace(table, name=name) for name, table in named.items()}


def _plain(title: list[Block]) -> str:
    return " ".join(span.content for block in title for item in block.items for span in item)


def _people(folder: Path) -> People:
    path = folder / "authors.txt"
    if not path.exists():
        write_atomically(path, PEOPLE_FILE)
    return read_people(path.read_text(encoding="utf-8"))


def _pictures(drawn: Iterable[tuple[str, Figure]]) -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for stem, figure in drawn:
            settle(figure)
            for path in save(figure, Path(name) / stem, ("pdf", "svg")):
                found[f"figures/{path.name}"] = path.read_bytes()
    return found


def _send(files: dict[str, bytes], people: People, folder: Path) -> Path:
    upload = upload_of(files)
    if problems := broken_rules(upload, people):
        raise PaperError(complaint(problems))
    path = folder / "arxiv.tar.gz"
    write_atomically(path, archive(upload))
    return path
