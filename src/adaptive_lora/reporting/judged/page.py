"""Verdicts on results made elsewhere as a folder: one page, its table as CSV, Markdown and LaTeX, its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptive_lora.files import write_atomically
from adaptive_lora.foreign.judging import Outcome
from adaptive_lora.reporting.figures.theme import save, settle
from adaptive_lora.reporting.html.page import inline, page_assets, page_templates
from adaptive_lora.reporting.judged.figure import differences
from adaptive_lora.reporting.judged.tables import verdict_table
from adaptive_lora.reporting.tables import files_of
from adaptive_lora.reporting.templating import render, render_all


def write_verdicts(
    outcomes: Sequence[Outcome], baseline: str, others: Sequence[str], sources: Sequence[str], folder: Path
) -> Path:
    """Writes `verdicts.html`, `figures/` and `tables/` into a folder; the same results give the same bytes."""
    table = verdict_table(outcomes, baseline)
    for name, content in files_of([table]).items():
        write_atomically(folder / "tables" / name, content)
    drawn = differences(outcomes, baseline)
    settle(drawn)
    svg = save(drawn, folder / "figures" / "differences")[1].read_text("utf-8")
    metrics = ", ".join(dict.fromkeys(o.paired.question.metric for o in outcomes))
    figure = inline(svg, "differences", f"{metrics}: each arm minus {baseline}, every seed, the mean and its interval.")
    path = folder / "verdicts.html"
    page = page_templates().get_template("judged.html").render(
        baseline=baseline, arms=list(dict.fromkeys(o.paired.arm for o in outcomes)), sources=sources,
        verdicts=[render("judge.verdict", o, baseline) for o in outcomes], table=table, figure=figure,
        remarks=render_all("judge.remarks", outcomes, others), **page_assets(),
    )  # fmt: skip
    write_atomically(path, page)
    return path
