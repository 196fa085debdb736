"""From a ledger to a folder of figures and tables and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.figures.making import drawing
from adaptive_lora.reporting.findings import Findings, read_findings
from adaptive_lora.reporting.html.page import inline, made_tables, render_page
from adaptive_lora.reporting.tables import files_of
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger


def write_report(source: Ledger | Findings, folder: Path) -> Path:
    """Writes `report.html`, `figures/` and `tables/` into a folder; the same ledger gives the same bytes."""
    found = source if isinstance(source, Findings) else read_findings(source)
    with drawing(found, folder) as finish:
        tables = made_tables(found)
        for name, content in files_of([table for own in tables.values() for table in own]).items():
            write_atomically(folder / "tables" / name, content)
        figures = folder / "figures"
        drawings = [inline((figures / f"{w.name}.svg").read_text("utf-8"), w.name, w.caption) for w in finish()]
    path = StudyPaths(folder).report
    write_atomically(path, render_page(found, tables, drawings))
    return path
