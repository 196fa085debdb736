"""One table, four forms: the same cells, nothing where nothing is, nothing foreign that acts."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.reporting.tables import Column, Row, Table, files_of, to_csv, to_html, to_latex, to_markdown
from adaptive_lora.stats.estimators import Interval

NASTY = '=a|b_c & 50% #1 $x$ ~^\\{} <b>\x1b[0m\u202e -- `*[x](http://y) "q" 日é'
TABLE = Table(
    "things",
    "Things",
    (
        Column("arm", "arm", "text"),
        Column("loss", "loss", "interval", "+.3f", "nats"),
        Column("n", "n", form=",d"),
        Column("never", "never", optional=True),
    ),
    (
        Row(("a", Interval(-1 / 3, -0.5, 0.25, 4, 0.95), 12345, None), arm="a", marked=True),
        Row((NASTY, Interval(np.float64(0.5), None, None, 1, 0.95), None, None), arm="b"),
        Row(("c", None, float("nan"), None)),
    ),
    "What it says; 5 % of it.",
)


def test_csv_is_exact_and_leaves_missing_empty() -> None:
    head, first, second, third = csv.reader(io.StringIO(to_csv(TABLE)))
    assert head == ["arm", "loss", "loss_low", "loss_high", "n"]
    assert first == ["a", "-0.3333333333333333", "-0.5", "0.25", "12345"]
    assert second[0].startswith("'=a|b_c") and second[1:] == ["0.5", "", "", ""]
    assert third == ["c", "", "", "", ""]
    assert "\x1b" not in to_csv(TABLE) and "\u202e" not in to_csv(TABLE)


def test_markdown_has_as_many_cells_in_every_row() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[:3] == [
        "| arm | loss, nats | n |",
        "| :-- | --: | --: |",
        "| a | −0.333 \\[−0.500, +0.250\\] | 12,345 |",
    ]
    assert [line.replace("\\|", "").count("|") for line in lines[:5]] == [4] * 5
    assert lines[4] == "| c |  |  |" and "<b>" not in to_markdown(TABLE) and "http://" not in to_markdown(TABLE)


def test_latex_has_nothing_active_and_a_true_minus() -> None:
    text = to_latex(TABLE)
    assert "\\begin{tabular}{lrr}\n\\toprule\narm & loss & n \\\\\n & (nats) &  \\\\\n\\midrule\n" in text
    assert "a & $-$0.333 {[}$-$0.500, +0.250{]} & 12,345 \\\\" in text and "\nc &  &  \\\\\n\\bottomrule" in text
    row = next(line for line in text.splitlines() if line.startswith("=a"))
    assert r"\textbar{}b\_c \& 50\% \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}" in row
    assert row.count(" & ") == 2 and "{[}U+65E5{]}é" in row and "-{}-" in row and row.isprintable()
    assert text.isascii() or set(text) - set(map(chr, range(128))) == {"é"}


def test_html_has_keys_to_sort_by_and_escapes() -> None:
    text = to_html(TABLE)
    assert '<tr data-arm="a" class="marked"><th scope="row" class="text"><bdi>a</bdi></th>' in text
    assert '<td data-sort="-0.3333333333333333">−0.333<span class="range">[−0.500, +0.250]</span></td>' in text
    assert text.endswith("<td></td><td></td></tr>\n</tbody></table>") and "<b>" not in text and "never" not in text


def test_a_long_table_is_cut_on_the_page_alone() -> None:
    many = Table("many", "Many", (Column("i", "i"),), tuple(Row((i,)) for i in range(7)), "All.")
    text = to_html(many, most=5)
    assert text.count("<tr") == 6 and "The first 5 of 7 rows; all are in tables/many.csv." in text
    assert to_csv(many).count("\n") == 8


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'things' has rows without one cell a column"):
        Table("things", "Things", (Column("a", "a"),), (Row((1, 2)),))


def test_every_table_has_three_files() -> None:
    assert set(files_of([TABLE])) == {"things.csv", "things.md", "things.tex"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on PATH")
def test_pdflatex_takes_it(tmp_path: Path) -> None:
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    body = f"{head}{to_latex(TABLE)}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(body, encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
