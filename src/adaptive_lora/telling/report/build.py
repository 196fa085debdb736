"""From a ledger to a folder of figures and tables and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from adaptive_lora.files import write_atomically
from adaptive_lora.judging.arms import ArmSummary
from adaptive_lora.record.folder import StudyPaths
from adaptive_lora.record.ledger import Ledger
from adaptive_lora.record.results import curves_table, ranks_table
from adaptive_lora.telling.figures import study as figures
from adaptive_lora.telling.figures.theme import save, settle
from adaptive_lora.telling.report.findings import Findings, read_findings
from adaptive_lora.telling.report.page import Drawing, inline, made_tables, render
from adaptive_lora.telling.tables import files_of

Figures = dict[str, tuple[Figure, str]]
"""Name of the file -> figure and caption."""


def write_report(ledger: Ledger, folder: Path, found: Findings | None = None) -> Path:
    """Writes `report.html`, `figures/` and `tables/` into a study folder; the same ledger gives the same bytes."""
    found = found or read_findings(ledger)
    drawings = []
    drawn = draw(ledger, dict(found.facts), list(found.arms))
    for name in list(drawn):
        figure, caption = drawn.pop(name)  # what is written is not held: figures are large
        settle(figure)
        _, vector, _ = save(figure, folder / "figures" / name)
        svg = vector.read_text(encoding="utf-8")
        figure.clear()  # its parts refer to one another and would stay for long
        drawings.append(Drawing(name, inline(svg[svg.index("<svg") :], name, caption), caption))
    tables = made_tables(found)
    for name, content in files_of([table for own in tables.values() for table in own]).items():
        write_atomically(folder / "tables" / name, content)
    path = StudyPaths(folder).report
    write_atomically(path, render(found, tables, drawings))
    return path


def draw(ledger: Ledger, facts: dict[str, Any], arms: list[ArmSummary]) -> Figures:
    """All figures for which there are results."""
    names = list(dict.fromkeys(arm.arm for arm in arms))
    analysis = facts["spec"]["analysis"]
    ranks, curves = ranks_table(ledger), curves_table(ledger)
    legend = " Grey, –: left out, no adapter." if left_out(ranks) else ""
    margin = f"band: the margin of {analysis['margin']:g} within which differences do not matter."
    wanted: dict[str, tuple[Figure | None, str]] = {
        "overview": (
            figures.overview(ranks, arms, analysis["baseline"], analysis["margin"]) if arms else None,
            "One column an arm. Above: where the rank goes, mean over seeds. Below: what that "
            f"changed in test loss against {analysis['baseline']}, circles: seeds, diamond: mean, line: 95 % t "
            f"interval over seeds, {margin}{legend}",
        ),
        "differences": (
            figures.paired_differences(arms, analysis["baseline"], analysis["margin"]),
            f"Test loss of each arm minus {analysis['baseline']} at the same seed. Open circles: seeds; diamond and "
            f"line: their mean and 95 % t interval over seeds; {margin}",
        ),
    }
    for budget in facts["spec"]["budgets"]:
        suffix = budget.replace(":", "-")
        wanted[f"ranks-{suffix}"] = (
            figures.rank_heat_maps(ranks, names, budget),
            f"Where {budget} goes: rank per block and module, mean over seeds, one colour scale.{legend}",
        )
        wanted[f"curves-{suffix}"] = (
            figures.learning_curves(curves, names, budget),
            f"Training loss at {budget}, running mean over a tenth of the run; line: mean of the seeds, band: range.",
        )
    return {name: (figure, caption) for name, (figure, caption) in wanted.items() if figure is not None}


def left_out(ranks: pd.DataFrame) -> dict[str, str]:
    """Arm -> `6 of 12 modules`, for arms that leave target modules out."""
    modules = ranks.drop_duplicates(["arm", "module"])
    counts = {arm: (int((own["rank"] == 0).sum()), len(own)) for arm, own in modules.groupby("arm", sort=False)}
    return {str(arm): f"{none} of {every} modules" for arm, (none, every) in counts.items() if none}
