"""A manuscript as Markdown, as GitHub shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptive_lora.reporting.escaping import escape_markdown, visible
from adaptive_lora.reporting.paper.document import Block, Span
from adaptive_lora.reporting.paper.manuscript import AUTHORS_MISSING, TOOLS_MISSING, Manuscript
from adaptive_lora.reporting.paper.works import Work, work
from adaptive_lora.reporting.tables import to_markdown


def render_markdown(paper: Manuscript) -> str:
    """The whole manuscript, its figures beside it in `figures/`."""
    writer = _Writer(paper, *(_numbered(paper, kind) for kind in ("table", "figure")))
    authors = ", ".join(
        _words(f"{a.name} ({a.affiliation})" if a.affiliation else a.name) for a in paper.people.authors
    )
    parts = [f"# {_words(paper.title)}", authors or f"**{AUTHORS_MISSING}**", "## Abstract"]
    parts += [writer.block(block) for block in (*paper.abstract, *paper.blocks)]
    parts += ["## References", *(f'<a id="{w.key}"></a>{reference(w)}' for w in paper.works)]
    return "\n\n".join(part for part in parts if part) + "\n"


def reference(cited: Work) -> str:
    """One line of the list of references."""
    words, address = cited.link
    link = f" [{words}]({address})." if address else ""
    return f"{_words(cited.people)}. {_words(cited.title)}. {_words(cited.place)}, {cited.year}.{link}"


def _numbered(paper: Manuscript, kind: str) -> dict[str, int]:
    names = [block.content for block in paper.blocks if block.kind == kind]
    return {name: i for i, name in enumerate(dict.fromkeys(names), start=1)}


@dataclass(frozen=True)
class _Writer:
    paper: Manuscript
    tables: Mapping[str, int]
    figures: Mapping[str, int]

    def block(self, block: Block) -> str:
        match block.kind:
            case "heading":
                return f"## {self.spans(block.items[0])}"
            case "subheading":
                return f"### {self.spans(block.items[0])}"
            case "list":
                return "\n".join(f"- {self.spans(item)}" for item in block.items)
            case "equation":
                return f"$$\n{block.content}\n$$"
            case "table":
                table = self.paper.tables[block.content]
                head = f"**Table {self.tables[block.content]}.** {_words(table.title)}."
                return f"{head}\n\n{to_markdown(table).strip()}"
            case "figure":
                name, caption = block.content, _words(self.paper.figures[block.content], 2000)
                number = self.figures[name]
                return f"![Figure {number}](figures/{name}.svg)\n\n**Figure {number}.** {caption}"
            case _:
                return self.spans(block.items[0])

    def spans(self, spans: tuple[Span, ...]) -> str:
        return "".join(map(self.span, spans))

    def span(self, span: Span) -> str:
        match span.kind:
            case "math":
                return f"${span.content}$"
            case "code":
                return f"`{span.content.replace('`', '')}`"
            case "emphasis":
                return f"*{_words(span.content)}*"
            case "cite":
                cited = [work(key) for key in span.content.split(",")]
                return f"({'; '.join(f'[{_words(w.families)}, {w.year}](#{w.key})' for w in cited)})"
            case "cite-text":
                one = work(span.content)
                return f"[{_words(one.families)} ({one.year})](#{one.key})"
            case "table":
                return f"Table {self.tables[span.content]}"
            case "figure":
                return f"Figure {self.figures[span.content]}"
            case _:
                return f"**{TOOLS_MISSING}**" if span.content == TOOLS_MISSING else _words(span.content)


def _words(text: str, longest: int = 5000) -> str:
    return escape_markdown(visible(text, longest))
