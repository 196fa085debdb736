"""A folder with the manuscript: Markdown, LaTeX, references, figures, and the PDF where it can be made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adaptive_lora.errors import PaperError
from adaptive_lora.files import write_atomically
from adaptive_lora.telling.figures.theme import save, settle
from adaptive_lora.telling.findings import Findings
from adaptive_lora.telling.paper.arxiv import archive, broken_rules, complaint, upload_of
from adaptive_lora.telling.paper.compiling import Compiled, compile_pdf
from adaptive_lora.telling.paper.document import Block, cited, words_of
from adaptive_lora.telling.paper.exhibits import exhibits
from adaptive_lora.telling.paper.gather import gather
from adaptive_lora.telling.paper.latex import render_latex, render_references
from adaptive_lora.telling.paper.manuscript import PEOPLE_FILE, Manuscript, People, read_people
from adaptive_lora.telling.paper.markdown import render_markdown
from adaptive_lora.telling.paper.pictures import pictures
from adaptive_lora.telling.paper.prose import write_blocks
from adaptive_lora.telling.paper.works import entry_of, work


@dataclass(frozen=True)
class Paper:
    """What was written."""

    folder: Path
    words: int
    """Of prose: without title, tables, captions, references."""
    figures: int
    compiled: Compiled
    archive: Path | None = None


def write_paper(found: Findings, folder: Path, arxiv: bool = False) -> Paper:
    """Writes the paper into a folder; the same findings give the same `paper.md`, `main.tex` and figures.

    `authors.txt` in that folder is its authors' own: made once, read every time. With `arxiv`, PaperError with every
    rule that the upload would break, after all else is written.
    """
    facts, tables = gather(found), exhibits(found)
    people = _people(folder)
    drawn = pictures(found)
    blocks = write_blocks(found, facts, (list(tables), list(drawn)), people.tools)
    body = blocks["body"]
    keys = cited([*blocks["abstract"], *body])
    works = sorted((work(key) for key in keys), key=lambda w: (w.families.lower(), w.year, w.title))
    paper = Manuscript(
        title=_plain(blocks["title"]),
        abstract=tuple(blocks["abstract"]),
        blocks=tuple(body),
        tables=tables,
        figures={name: caption for name, (_, caption) in drawn.items()},
        works=works,
        people=people,
    )
    shown = [block.content for block in body if block.kind == "figure"]
    files = {
        "paper.md": render_markdown(paper).encode(),
        "main.tex": render_latex(paper).encode(),
        "main.bbl": render_references(works).encode(),
        "references.bib": ("\n\n".join(entry_of(w.key) for w in works) + "\n").encode(),
        **_pictures({name: drawn[name][0] for name in shown}.items()),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    compiled = compile_pdf({name: content for name, content in files.items() if not name.endswith((".svg", ".md"))})
    if compiled.pdf:
        write_atomically(folder / "main.pdf", compiled.pdf)
    sent = _send(files, people, folder) if arxiv else None
    return Paper(folder, words_of([*blocks["abstract"], *body]), len(set(shown)), compiled, sent)


def _plain(title: list[Block]) -> str:
    return " ".join(span.content for block in title for item in block.items for span in item)


def _people(folder: Path) -> People:
    path = folder / "authors.txt"
    if not path.exists():
        write_atomically(path, PEOPLE_FILE)
    return read_people(path.read_text(encoding="utf-8"))


def _pictures(drawn: Iterable[tuple[str, object]]) -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for stem, figure in drawn:
            settle(figure)  # type: ignore[arg-type]
            for path in save(figure, Path(name) / stem, ("pdf", "svg")):  # type: ignore[arg-type]
                found[f"figures/{path.name}"] = path.read_bytes()
    return found


def _send(files: dict[str, bytes], people: People, folder: Path) -> Path:
    upload = upload_of(files)
    if problems := broken_rules(upload, people):
        raise PaperError(complaint(problems))
    path = folder / "arxiv.tar.gz"
    write_atomically(path, archive(upload))
    return path
