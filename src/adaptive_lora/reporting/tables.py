"""A table as one value, written as HTML, CSV, Markdown and LaTeX.

A cell is a text, a number, an `Interval`, or nothing; nothing is an empty cell everywhere. CSV has full precision,
the others what the column's form says.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from markupsafe import Markup, escape

from adaptive_lora.reporting.escaping import escape_latex, escape_markdown, visible
from adaptive_lora.reporting.formatting import formatted
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
    kind: Literal["text", "number", "interval"] = "number"
    form: str = ""
    """How a number is written, as in Python's `format`."""
    unit: str = ""
    optional: bool = False
    """Left out where no row has a value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Row:
    """One cell a column, and the arm it is about, if it is about one."""

    cells: tuple[Cell, ...]
    arm: str | None = None
    marked: bool = False
    """Set apart, as the baseline is."""


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
    ends = ("", "_low", "_high") if column.kind == "interval" else ("",)
    return [column.name + end for end in ends]


def _csv_values(column: Column, cell: Cell) -> list[str]:
    if column.kind == "interval":
        parts = (cell.mean, cell.low, cell.high) if isinstance(cell, Interval) else (cell, None, None)
        return [str(part) if _there(part) else "" for part in parts]
    if not _there(cell):
        return [""]
    if not isinstance(cell, str):
        return [str(cell)]
    text = visible(cell)
    return [f"'{text}" if text.startswith(_FORMULA) else text]


def to_markdown(table: Table) -> str:
    """A pipe table, numbers to the right, the caption below."""
    marks = [":--" if column.kind == "text" else "--:" for column in table.columns]
    lines = [[escape_markdown(visible(column.heading)) for column in table.columns], marks]
    lines += [[_text_of(c, cell, escape_markdown) for c, cell in zip(table.columns, row.cells, strict=True)]
              for row in table.rows]  # fmt: skip
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return body + (f"\n{escape_markdown(visible(table.caption, 2000))}\n" if table.caption else "")


def to_latex(table: Table) -> str:
    """A `table` with booktabs' rules, for pdfLaTeX; needs \\usepackage{booktabs} and nothing else."""
    marks = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    caption = escape_latex(visible(f"{table.title}. {table.caption}".strip(), 2000))
    heads = [[escape_latex(visible(column.title)) for column in table.columns]]
    if any(column.unit for column in table.columns):  # on a line of their own: pages are narrow
        heads.append([escape_latex(visible(f"({column.unit})" if column.unit else "")) for column in table.columns])
    lines = [[_text_of(c, cell, escape_latex) for c, cell in zip(table.columns, row.cells, strict=True)]
              for row in table.rows]  # fmt: skip
    head, body = ([f"{' & '.join(line)} \\\\" for line in part] for part in (heads, lines))
    return "\n".join(
        [
            "% \\usepackage{booktabs}", "\\begin{table}", "\\centering", f"\\caption{{{caption}}}",
            f"\\label{{tab:{table.name}}}", f"\\begin{{tabular}}{{{marks}}}", "\\toprule", *head, "\\midrule", *body,
            "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
        ]
    )  # fmt: skip


def to_html(table: Table, most: int = MOST_ROWS) -> Markup:
    """A <table> with the first `most` rows, the value to sort by on every cell, the arm on every row that has one."""
    parts = [Markup("<table>"), Markup("<caption><span>{}</span></caption>").format(_caption(table, most))]
    heads = [
        Markup('<th scope="col" data-kind="{}"><span class="name">{}</span>{}</th>').format(
            column.kind,
            visible(column.title),
            Markup('<span class="unit">{}</span>').format(visible(column.unit)) if column.unit else "",
        )
        for column in table.columns
    ]
    parts.append(Markup("<thead><tr>{}</tr></thead>\n<tbody>\n").format(Markup("").join(heads)))
    for row in table.rows[:most]:
        arm = Markup(' data-arm="{}"').format(visible(row.arm)) if row.arm is not None else ""
        cells = [_html_cell(i, c, cell) for i, (c, cell) in enumerate(zip(table.columns, row.cells, strict=True))]
        parts.append(
            Markup("<tr{}{}>{}</tr>\n").format(
                arm, Markup(' class="marked"') if row.marked else "", Markup("").join(cells)
            )
        )
    return Markup("").join([*parts, Markup("</tbody></table>")])


def _caption(table: Table, most: int) -> str:
    cut = len(table.rows) > most
    note = f" The first {most:,} of {len(table.rows):,} rows; all are in tables/{table.name}.csv." if cut else ""
    return (visible(table.caption, 2000) or table.title) + note


def _html_cell(index: int, column: Column, cell: Cell) -> Markup:
    tag = Markup('th scope="row"') if index == 0 else Markup("td")
    key, content = "", escape("")
    if isinstance(cell, str):
        content = Markup("<bdi>{}</bdi>").format(visible(cell))
    elif _there(cell):
        value = cell.mean if isinstance(cell, Interval) else cell
        key, content = str(value), escape(formatted(value, column.form))
        if isinstance(cell, Interval) and (ends := _ends(cell, column.form)):
            content += Markup('<span class="range">{}</span>').format(ends)
    kind = Markup(' class="text"') if column.kind == "text" else ""
    sort = Markup(' data-sort="{}"').format(key) if key else ""
    return Markup("<{}{}{}>{}</{}>").format(tag, kind, sort, content, "th" if index == 0 else "td")


def _text_of(column: Column, cell: Cell, escaped: Callable[[str], str]) -> str:
    return escaped(written(visible(cell) if isinstance(cell, str) else cell, column.form)) if _there(cell) else ""


def written(cell: Cell, form: str = "") -> str:
    """A value in a line, with a true minus.

    >>> written(Interval(-0.012, -0.02, 0.001, 9, 0.95), "+.3f"), written(0.25, ".0%"), written(None)
    ('−0.012 [−0.020, +0.001]', '25 %', '')
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Interval):
        return f"{formatted(cell.mean, form)} {_ends(cell, form)}".strip()
    return formatted(cell, form)


def _ends(interval: Interval, form: str) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"[{formatted(interval.low, form)}, {formatted(interval.high, form)}]"


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
