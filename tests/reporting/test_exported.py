"""An export tells what its ledger tells."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.reporting.exported import export_all, open_findings
from adaptive_lora.reporting.html.page import made_tables
from adaptive_lora.reporting.tables import files_of
from adaptive_lora.reporting.templating import render_all
from adaptive_lora.study.ledger import open_to_read
from tests.reporting.ledgers import make_ledger

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_ledger(tmp_path_factory.mktemp("study") / "own", arms=4, seeds=9)
    with contextlib.closing(open_to_read(folder)) as ledger:
        export_all(ledger, folder / "text")
    return folder


def test_every_table_is_the_same_from_both(study: Path) -> None:
    told = []
    for folder in (study, study / "text"):
        with open_findings(folder) as found:
            tables = files_of([table for own in made_tables(found).values() for table in own])
            said = [render_all(f"comparisons.{name}", found) for name in ("verdicts", "description")]
            told.append((tables, said, dict(found.left_out)))
    assert told[0] == told[1]
    assert {"sizes.csv", "stability.csv", "verdicts.csv", "power.csv"} <= told[0][0].keys()


def test_findings_of_earlier_exports_leave_out_what_is_not_there(study: Path, tmp_path: Path) -> None:
    earlier = Path(shutil.copytree(study / "text", tmp_path / "earlier"))
    for name in ("costs.csv", "stability.csv", "records.csv"):
        (earlier / name).unlink()
    with open_findings(earlier) as found:
        names = {table.name for own in made_tables(found).values() for table in own}
    assert {"arms", "verdicts", "power"} <= names and "stability" not in names


def test_committed_results_are_whole_exports() -> None:
    with open_findings(RESULTS / "demo") as found:
        names = {table.name for own in made_tables(found).values() for table in own}
    assert {"arms", "sizes", "worth", "stability", "power"} <= names


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFolderError, match="no study folder"), open_findings(tmp_path):
        pass
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(StudyFolderError, match="no whole export"), open_findings(tmp_path):
        pass
