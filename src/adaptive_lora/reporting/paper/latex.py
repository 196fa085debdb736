"""A manuscript as LaTeX that arXiv's pdfLaTeX takes: article, booktabs, natbib, nothing of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adaptive_lora.reporting.escaping import escape_latex, visible
from adaptive_lora.reporting.paper.document import Block, Span
from adaptive_lora.reporting.paper.manuscript import AUTHORS_MISSING, TOOLS_MISSING, Manuscript
from adaptive_lora.reporting.paper.works import Work, work
from adaptive_lora.reporting.tables import Table, to_latex

ROWS_A_PAGE = 44
"""Rows that a table of small type may have on one page; longer ones are continued."""

_HEAD = r"""\documentclass[11pt,a4paper]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{mathptmx}
\usepackage[scaled=0.9]{helvet}
\usepackage{courier}
\usepackage[margin=25mm]{geometry}
\usepackage{amsmath}
\usepackage{graphicx}
\usepackage{booktabs}
\usepackage{xcolor}
\usepackage[round]{natbib}
\usepackage[hidelinks]{hyperref}
\emergencystretch=3em
% The same text, the same bytes.
\ifdefined\pdfinfoomitdate\pdfinfoomitdate=1\pdftrailerid{}\fi
\setlength{\belowcaptionskip}{6pt}
\renewcommand{\topfraction}{0.9}
\renewcommand{\floatpagefraction}{0.8}
\newcommand{\missing}[1]{\colorbox{red}{\parbox{0.8\linewidth}{\centering\color{white}\bfseries #1}}}
% No wider than the line, and never made larger.
\newcommand{\fitted}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}
"""


def render_latex(paper: Manuscript) -> str:
    """`main.tex`; its references are in `main.bbl`, its figures in `figures/`."""
    people = " \\and ".join(
        _words(a.name) + (f" \\\\ \\small {_words(a.affiliation)}" if a.affiliation else "")
        for a in paper.people.authors
    )
    parts = [
        _HEAD + f"\\title{{{_words(paper.title)}}}",
        f"\\author{{{people or _missing(AUTHORS_MISSING)}}}\n\\date{{}}",
        "\\begin{document}\n\\maketitle",
        "\\begin{abstract}\n" + "\n\n".join(_blocks(paper, paper.abstract)) + "\n\\end{abstract}",
        *_blocks(paper, paper.blocks),
        "\\clearpage\n\\bibliographystyle{plainnat}\n\\bibliography{references}",
        "\\end{document}",
    ]
    return "\n\n".join(parts) + "\n"


def _missing(text: str) -> str:
    return f"\\missing{{{escape_latex(text)}}}"


def render_references(works: Sequence[Work]) -> str:
    """`main.bbl`, as BibTeX would write it for natbib, so that nobody needs BibTeX."""
    entries = "\n\n".join(
        f"\\bibitem[{_label(w)}]{{{w.key}}}\n{_words(w.people)}.\n\\newblock {_words(w.title)}.\n"
        f"\\newblock \\emph{{{_words(w.place)}}}, {w.year}.{_link(w)}"
        for w in works
    )
    widest = max(len(works), 1)
    return f"\\begin{{thebibliography}}{{{widest}}}\n\n{entries}\n\n\\end{{thebibliography}}\n"


def _label(cited: Work) -> str:
    return f"{{{_words(cited.families).replace(' et al.', ' et~al.')}({cited.year})}}"


def _link(cited: Work) -> str:
    words, address = cited.link
    if not address:
        return ""
    shown = _words(words).replace("/", "/\\allowbreak ")
    return f"\n\\newblock \\href{{{address.replace('_', chr(92) + '_').replace('%', chr(92) + '%')}}}{{{shown}}}."


def _blocks(paper: Manuscript, blocks: Sequence[Block]) -> list[str]:
    texts: list[str] = []
    for before, block in zip((None, *blocks), blocks, strict=False):
        made = list(_block(paper, block))
        goes_on = before is not None and before.kind == "equation" and block.kind == "paragraph"
        if goes_on and made[0][:1].islower():
            made[0] = f"\\noindent {made[0]}"
        texts += made
    return texts


def _block(paper: Manuscript, block: Block) -> Iterator[str]:
    match block.kind:
        case "heading":
            yield f"\\section{{{_spans(block.items[0])}}}"
        case "subheading":
            yield f"\\subsection{{{_spans(block.items[0])}}}"
        case "list":
            items = "\n".join(f"\\item {_spans(item)}" for item in block.items)
            yield f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
        case "equation":
            yield f"\\begin{{equation*}}\n{block.content}\n\\end{{equation*}}"
        case "table":
            for number, part in enumerate(_parts(paper.tables[block.content])):
                text = to_latex(part).replace("% \\usepackage{booktabs}\n", "")
                text = text.replace("\\begin{table}\n", "\\begin{table}[tbp]\n\\small\n")
                text = text.replace("\\begin{tabular}", "\\fitted{\\begin{tabular}")
                text = text.replace("\\end{tabular}", "\\end{tabular}}").strip()
                if number:  # one label and one number are enough
                    text = text.replace(f"\\label{{tab:{part.name}}}\n", "")
                    text = text.replace("\\caption{", "\\addtocounter{table}{-1}\n\\caption{", 1)
                yield text
        case "figure":
            caption = escape_latex(visible(paper.figures[block.content], 2000))
            yield (
                "\\begin{figure}[tbp]\n\\centering\n"
                f"\\includegraphics[width=\\linewidth,height=0.7\\textheight,keepaspectratio]{{figures/{block.content}.pdf}}\n"
                f"\\caption{{{caption}}}\n\\label{{fig:{block.content}}}\n\\end{{figure}}"
            )
        case _:
            yield _spans(block.items[0])


def _parts(table: Table) -> Iterator[Table]:
    for start in range(0, max(len(table.rows), 1), ROWS_A_PAGE):
        rows = table.rows[start : start + ROWS_A_PAGE]
        if start:
            yield replace(table, rows=rows, title=f"{table.title}, continued", caption="")
        else:
            yield replace(table, rows=rows)


def _spans(spans: Sequence[Span]) -> str:
    return "".join(map(_span, spans))


def _span(span: Span) -> str:
    match span.kind:
        case "math":
            return f"${span.content}$"
        case "code":
            return f"\\texttt{{{_words(span.content)}}}"
        case "emphasis":
            return f"\\emph{{{_words(span.content)}}}"
        case "cite" | "cite-text":
            for key in span.content.split(","):
                work(key)
            return f"\\{'citep' if span.kind == 'cite' else 'citet'}{{{span.content}}}"
        case "table":
            return f"Table~\\ref{{tab:{span.content}}}"
        case "figure":
            return f"Figure~\\ref{{fig:{span.content}}}"
        case _:
            return _missing(span.content) if span.content == TOOLS_MISSING else _words(span.content)


def _words(text: str) -> str:
    return escape_latex(visible(text, 5000))
