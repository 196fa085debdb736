"""A table as one value, written as HTML, CSV, Markdown and LaTeX.

A cell is a text, a number, an `Interval` or None, which is an empty cell everywhere. CSV has full precision, the others
what the column's form says.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jinja2
from markupsafe import Markup

from adaptive_lora.reporting.escaping import escape_latex, escape_markdown, visible
from adaptive_lora.reporting.formatting import formatted, interval_ends
from adaptive_lora.reporting.templating import environment
from adaptive_lora.stats.estimators import Interval

Cell = str | int | float | Interval | None
MOST_ROWS = 500
"""Rows that a page shows; the files have all."""
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Column:
    """The name, heading and format of a column."""

    name: str
    """An identifier: the heading in CSV, with `_low` and `_high` for the ends of an interval."""
    title: str = ""
    """The heading for people; the name where it is not given."""
    kind: Literal["text", "number", "interval", "ends"] = "number"
    """`ends`: of an interval whose mean stands elsewhere in the row."""
    form: str = ""
    """How a number is written, as in Python's `format`; `±` for the decimals that an interval's width allows."""
    unit: str = ""
    optional: bool = False
    """Left out where no row has a value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))


@dataclass(frozen=True)
class Row:
    """One cell a column, and the arm it is about, if it is about one."""

    cells: tuple[Cell, ...]
    arm: str | None = None
    marked: bool = False
    """Highlighted, as the baseline is."""


@dataclass(frozen=True)
class Table:
    """A named table; `name` is that of its files."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row.cells) != len(self.columns) for row in self.rows):
            raise ValueError(f"Table {self.name!r} has rows without one cell a column.")
        kept = [i for i, c in enumerate(self.columns) if not c.optional or any(_there(r.cells[i]) for r in self.rows)]
        if len(kept) < len(self.columns):
            rows = (replace(row, cells=tuple(row.cells[i] for i in kept)) for row in self.rows)
            object.__setattr__(self, "rows", tuple(rows))
            object.__setattr__(self, "columns", tuple(self.columns[i] for i in kept))


def to_csv(table: Table) -> str:
    """Comma-separated values in full precision, an interval as three columns.

    Texts that a spreadsheet would take for a formula get an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _csv_names(column)])
    writer.writerows([v for c, cell in zip(table.columns, row.cells, strict=True) for v in _csv_values(c, cell)]
                     for row in table.rows)  # fmt: skip
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    ends = {"interval": ("", "_low", "_high"), "ends": ("_low", "_high")}.get(column.kind, ("",))
    return [column.name + end for end in ends]


def _csv_values(column: Column, cell: Cell) -> list[str]:
    if column.kind in ("interval", "ends"):
        parts: list[Cell] = [cell.mean, cell.low, cell.high] if isinstance(cell, Interval) else [cell, None, None]
        parts = parts[1:] if column.kind == "ends" else parts
        return [str(part) if _there(part) else "" for part in parts]
    text = visible(cell) if isinstance(cell, str) else str(cell) if _there(cell) else ""
    return [f"'{text}" if isinstance(cell, str) and text.startswith(_FORMULA) else text]


def to_markdown(table: Table) -> str:
    """A pipe table, numbers to the right, the caption below."""
    marks = [":--" if column.kind == "text" else "--:" for column in table.columns]
    heads = [f"{column.title}, {column.unit}" if column.unit else column.title for column in table.columns]
    lines = [[escape_markdown(visible(head)) for head in heads], marks, *_body(table, escape_markdown)]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return body + (f"\n{escape_markdown(visible(table.caption, 2000))}\n" if table.caption else "")


def to_latex(table: Table) -> str:
    """A `table` with booktabs' rules, for pdfLaTeX; needs \\usepackage{booktabs} and nothing else."""
    marks = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    caption = escape_latex(visible(f"{table.title}. {table.caption}".strip(), 2000))
    heads = [[escape_latex(visible(column.title)) for column in table.columns]]
    if any(column.unit for column in table.columns):  # on a line of their own: pages are narrow
        heads.append([escape_latex(visible(f"({column.unit})" if column.unit else "")) for column in table.columns])
    head, body = ([f"{' & '.join(line)} \\\\" for line in part] for part in (heads, _body(table, escape_latex)))
    return "\n".join(
        [
            "% \\usepackage{booktabs}", "\\begin{table}", "\\centering", f"\\caption{{{caption}}}",
            f"\\label{{tab:{table.name}}}", f"\\begin{{tabular}}{{{marks}}}", "\\toprule", *head, "\\midrule", *body,
            "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
        ]
    )  # fmt: skip


def to_html(table: Table, most: int = MOST_ROWS) -> Markup:
    """A <table> with the first `most` rows, the value to sort by on every cell, the arm on every row that has one."""
    return Markup(_html_template().render(table=table, most=most))


@functools.cache
def _html_template() -> jinja2.Template:
    templates = environment("html", autoescape=True)
    templates.filters["visible"] = visible
    templates.tests["there"] = _there
    return templates.get_template("table.html")


def _body(table: Table, escaped: Callable[[str], str]) -> list[list[str]]:
    """The rows, every cell in the form of its column."""
    return [
        [escaped(_written(column, cell)) if _there(cell) else ""
         for column, cell in zip(table.columns, row.cells, strict=True)]
        for row in table.rows
    ]  # fmt: skip


def _written(column: Column, cell: Cell) -> str:
    if column.kind == "ends" and isinstance(cell, Interval):
        return interval_ends(cell, column.form)
    return formatted(visible(cell) if isinstance(cell, str) else cell, column.form)


def _there(cell: Cell) -> bool:
    """Whether there is a value; what is not a number is none."""
    if cell is None or cell == "":
        return False
    value = cell.mean if isinstance(cell, Interval) else cell
    return isinstance(value, str) or not math.isnan(value)


def files_of(tables: Sequence[Table]) -> dict[str, str]:
    """Name of the file -> content: every table as CSV, Markdown and LaTeX."""
    writers = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
    return {f"{table.name}.{kind}": write(table) for table in tables for kind, write in writers.items()}
