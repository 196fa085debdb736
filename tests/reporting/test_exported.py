"""An export tells what its ledger tells."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.reporting.exported import export_all, open_findings
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.reporting.html.page import made_tables
from adaptive_lora.reporting.tables import files_of, to_csv
from adaptive_lora.reporting.templating import render_all
from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.crossed import BOTH, SEEDS
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import load_results
from tests.reporting.ledgers import make_ledger

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_ledger(tmp_path_factory.mktemp("study") / "own", arms=4, seeds=9)
    with contextlib.closing(open_to_read(folder)) as ledger:
        export_all(ledger, folder / "text")
    return folder


def bare(study: Path, tmp_path: Path) -> Path:
    """The export without its archive: its tables alone."""
    folder = Path(shutil.copytree(study / "text", tmp_path / "bare"))
    StudyPaths(folder).archive.unlink()
    return folder


OVER_RECORDS = ("verdicts", "arms", "sizes", "power")
"""Tables whose numbers rest on losses by record, which an archive keeps to six digits and tables do not have."""


def told(folder: Path) -> tuple[dict[str, str], dict[str, str], list[list[str]], dict[str, str]]:
    """Tables that rest on losses by record, to six digits; all other files; sentences; what arms leave out."""
    with open_findings(folder) as found:
        tables = [table for own in made_tables(found).values() for table in own]
        rounded = {t.name: rounded_csv(to_csv(t)) for t in tables if t.name in OVER_RECORDS}
        said = [render_all(f"comparisons.{name}", found) for name in ("verdicts", "description", "reach")]
        return rounded, files_of([t for t in tables if t.name not in OVER_RECORDS]), said, dict(found.left_out)


def rounded_csv(text: str) -> str:
    """Six digits after the point; `sd` is of losses that a ledger adds up otherwise."""
    return str(pd.read_csv(io.StringIO(text)).drop(columns="sd", errors="ignore").round(6).to_csv())


def test_every_table_is_the_same_from_an_archive(study: Path) -> None:
    own, exported = told(study), told(study / "text")
    assert own == exported and set(OVER_RECORDS) <= own[0].keys() and "stability.csv" in own[1]
    pd.testing.assert_frame_equal(load_results(study / "text"), load_results(study), check_dtype=False)


def test_tables_alone_are_of_one_set_of_records_and_say_so(study: Path, tmp_path: Path) -> None:
    folder = bare(study, tmp_path)
    own, alone = told(study), told(folder)
    assert (own[1], own[3]) == (alone[1], alone[3])
    assert any("of the records that were tested" in text for text in alone[2][0]) and own[2] != alone[2]
    pd.testing.assert_frame_equal(load_results(folder), load_results(study), check_dtype=False)
    with open_findings(study) as whole, open_findings(folder) as found:
        assert (whole.resampled, found.resampled) == (BOTH, SEEDS)
        for comparison, judged in found.judged.items():
            assert judged.records is None and Caution.ONE_SET_OF_RECORDS in judged.cautions
            assert judged.mean == pytest.approx(whole.judged[comparison].mean, abs=1e-6)
        table = made_tables(found)["verdicts"][0]
        assert {"over_records", "cautions"} <= {c.name for c in table.columns}  # what `records.csv` has is still shown


def test_intervals_over_records_follow_from_an_exports_own_losses(study: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(study / "text", tmp_path / "text"))
    (folder / "records.csv").unlink()
    with open_findings(study) as own, open_findings(folder) as found:
        assert found.over_records.keys() == own.over_records.keys() and len(own.over_records) == 3
        for key, (interval, tokens) in own.over_records.items():
            theirs, counted = found.over_records[key]
            assert (theirs.low, theirs.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
            assert counted == tokens


def test_a_page_and_its_figures_are_the_same_from_an_export(study: Path, tmp_path: Path) -> None:
    for name, folder in (("own", study), ("exported", study / "text")):
        with open_findings(folder) as found:
            write_report(found, tmp_path / name)
    files = [path.relative_to(tmp_path / "own") for path in (tmp_path / "own").rglob("*.*") if path.suffix != ".png"]
    assert Path("report.html") in files and len(files) > 20
    for file in (Path(f"tables/{name}.csv") for name in OVER_RECORDS):
        assert rounded_csv((tmp_path / "own" / file).read_text()) == rounded_csv(
            (tmp_path / "exported" / file).read_text()
        )
    for file in {*files} - {Path(f"tables/{name}.csv") for name in OVER_RECORDS}:
        one, other = (
            re.sub(rb' data-sort="[^"]*"', b"", (tmp_path / n / file).read_bytes()) for n in ("own", "exported")
        )
        assert one == other, file


def test_findings_leave_out_what_is_not_there(study: Path, tmp_path: Path) -> None:
    folder = bare(study, tmp_path)
    for name in ("costs.csv", "stability.csv", "records.csv"):
        (folder / name).unlink()
    with open_findings(folder) as found:
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
