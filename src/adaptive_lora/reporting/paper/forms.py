"""A manuscript as Markdown, as GitHub shows it, and as LaTeX that arXiv's pdfLaTeX takes: article, booktabs, natbib.

The forms are templates in `text`; what they print is escaped unless it is text of our own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jinja2
from markupsafe import Markup

from adaptive_lora.reporting.escaping import escape_latex, escape_markdown, visible
from adaptive_lora.reporting.paper.bibliography import Work, work
from adaptive_lora.reporting.paper.manuscript import Manuscript
from adaptive_lora.reporting.paper.text_environment import environment
from adaptive_lora.reporting.tables import Table, to_latex, to_markdown

LONGEST = 5000
"""Characters of a text that is shown."""
ROWS_A_PAGE = 44
"""Rows that a table of small type may have on one page; longer ones are continued."""


def render_markdown(paper: Manuscript) -> str:
    """The whole manuscript, its figures beside it in `figures/`."""
    known: dict[str, Any] = {f"{kind}s": _numbered(paper, kind) for kind in ("table", "figure")}
    known["table"] = lambda table: Markup(to_markdown(table).strip())
    return _escaping(escape_markdown).get_template("paper.md").render(paper=paper, **known).strip() + "\n"


def render_latex(paper: Manuscript) -> str:
    """`main.tex`; its references are in `main.bbl`, its figures in `figures/`."""
    return _escaping(escape_latex).get_template("main.tex").render(paper=paper, table=_latex_table) + "\n"


def render_references(works: Sequence[Work]) -> str:
    """`main.bbl`, as BibTeX would write it for natbib, so that nobody needs BibTeX."""
    return _escaping(escape_latex).get_template("main.bbl").render(works=works) + "\n"


@functools.cache
def _escaping(escape: Callable[[str], str]) -> jinja2.Environment:
    """Templates that escape what they print."""

    def escaped(value: Any) -> Any:
        known = isinstance(value, Markup | jinja2.Undefined)
        return value if known else Markup(escape(visible(str(value), LONGEST)))

    made = environment(finalize=escaped, autoescape=True)
    made.filters["cited"] = _cited
    made.filters["escaped"] = escaped
    return made


def _cited(keys: str, references: Sequence[Work] = ()) -> list[Work]:
    """Works by their keys, as the list of references names them: its letters tell works of one year apart."""
    named = {w.key: w for w in references}
    return [named.get(key) or work(key) for key in keys.split(",")]


def _numbered(paper: Manuscript, kind: str) -> dict[str, int]:
    names = [block.content for block in paper.blocks if block.kind == kind]
    return {name: i for i, name in enumerate(dict.fromkeys(names), start=1)}


def _latex_table(table: Table) -> Markup:
    """One a page, under one number and one label."""
    pages = []
    for start in range(0, max(len(table.rows), 1), ROWS_A_PAGE):
        part = replace(table, rows=table.rows[start : start + ROWS_A_PAGE])
        part = replace(part, title=f"{table.title}, continued", caption="") if start else part
        text = to_latex(part).replace("% \\usepackage{booktabs}\n", "")
        text = text.replace("\\begin{table}\n", "\\begin{table}[tbp]\n\\small\n")
        text = text.replace("\\begin{tabular}", "\\fitted{\\begin{tabular}")
        text = text.replace("\\end{tabular}", "\\end{tabular}}").strip()
        if start:
            text = text.replace(f"\\label{{tab:{part.name}}}\n", "")
            text = text.replace("\\caption{", "\\addtocounter{table}{-1}\n\\caption{", 1)
        pages.append(text)
    return Markup("\n\n".join(pages))
