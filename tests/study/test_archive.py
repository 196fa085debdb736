"""A ledger in one file: the same numbers back, and a study that goes on from it."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import StudyFolderError
from adaptive_lora.reporting.exported import export_study
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.archive import continue_from, open_recorded, read_archive, write_archive
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import StepRecord
from tests.conftest import REFERENCE
from tests.reporting.ledgers import make_ledger

WriteStudy = Callable[..., Path]
SMALL = (("[uniform, linear-decay, empirical, random]", "[uniform, random]"), REFERENCE)
RESULTS = ["run_id", "status", "validation_loss", "test_loss", "trainable_parameters"]


class Counting(Silent):
    """How many steps were taken."""

    steps = 0

    def step(self, record: StepRecord) -> None:
        self.steps += 1


def final(folder: Path) -> pd.DataFrame:
    return load_results(folder)[RESULTS].sort_values("run_id", ignore_index=True)


def test_an_archive_gives_the_ledger_back(tmp_path: Path) -> None:
    folder = make_ledger(tmp_path / "study")
    paths = [tmp_path / name for name in ("one.npz", "two.npz")]
    with contextlib.closing(open_to_read(folder)) as ledger:
        for path in paths:
            write_archive(ledger, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        with contextlib.closing(read_archive(paths[0])) as other:
            assert other.facts() == ledger.facts() and other.runs(every=True) == ledger.runs(every=True)
            assert other.totals() == ledger.totals() and list(other.plans()) == list(ledger.plans())
            for (run_id, split), total in ledger.totals().items():
                own, theirs = (opened.by_record(run_id, split) for opened in (ledger, other))
                assert own is not None and theirs is not None and len(own.nll) == total["records"]
                np.testing.assert_allclose(theirs.nll, own.nll, rtol=1e-7)
                assert np.array_equal(theirs.tokens, own.tokens) and np.array_equal(theirs.exact, own.exact)
            for phase in Phase:
                for (run, curve), (same, kept) in zip(ledger.curves(phase), other.curves(phase), strict=True):
                    assert run == same and curve.keys() == kept.keys()
                    assert np.array_equal(list(kept.values()), list(curve.values()), equal_nan=True)
    with np.load(paths[0]) as file:  # numpy alone reads it
        assert file["evaluations.nll_by_record"].dtype == np.float32


def test_a_corrupt_archive_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.npz"
    with contextlib.closing(open_to_read(make_ledger(tmp_path / "study"))) as ledger:
        write_archive(ledger, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        arrays = {name: file.read(name) for name in file.namelist() if name != "curves.points.npy"}
    for torn in (whole[: len(whole) // 2], b"", whole[:300] + b"x" + whole[301:]):
        path.write_bytes(torn)
        with pytest.raises(StudyFolderError, match=r"ledger\.npz is corrupt: .*Export the study again"):
            read_archive(path)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in arrays.items():
            file.writestr(name, content)
    with pytest.raises(StudyFolderError, match=r"curves\.points"):
        read_archive(path)


@pytest.fixture
def exported(study_file: WriteStudy, tmp_path: Path) -> Path:
    """The export of a study of two seeds, whose folder is gone."""
    run_study(load_study(study_file(*SMALL)), tmp_path / "first")
    export_study(tmp_path / "first", tmp_path / "export")
    (tmp_path / "first").rename(tmp_path / "gone")
    return tmp_path / "export"


def test_a_study_goes_on_from_its_export(exported: Path, study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(*SMALL, ("evaluation: 2", "evaluation: 3"), name="more.yaml"))
    with pytest.raises(StudyFolderError, match=r"another version of this study: .*seeds.*--deviation REASON"):
        continue_from(exported, study, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    rows = StudyPaths(exported).splits.read_bytes()
    assert rows.count(b",test,") == 20 and rows == StudyPaths(tmp_path / "gone").splits.read_bytes()
    assert "splits" not in StudyPaths(exported).facts.read_text()

    assert continue_from(exported, study, tmp_path / "second", "more seeds") == 4
    assert continue_from(exported, study, tmp_path / "second", "more seeds") == 0  # it is there
    watcher = Counting()
    outcome = run_study(study, tmp_path / "second", watcher, deviation="more seeds")
    assert outcome.finished and outcome.completed == 6
    assert watcher.steps == 2 * 6  # the third seed's alone
    run_study(study, tmp_path / "undisturbed")
    pd.testing.assert_frame_equal(final(tmp_path / "second"), final(tmp_path / "undisturbed"))


def test_runs_that_are_missing_in_an_export_are_trained_and_others_set_aside(
    exported: Path, study_file: WriteStudy, tmp_path: Path
) -> None:
    study = load_study(study_file(*SMALL))
    assert continue_from(exported, study, tmp_path / "same") == 4
    with contextlib.closing(open_to_read(tmp_path / "same")) as ledger:
        lost = ledger.runs()[0]["run_id"]
    with contextlib.closing(create_or_open(tmp_path / "same")) as ledger:
        ledger.fail(lost, Status.FAILED, "lost")
    watcher = Counting()
    assert run_study(study, tmp_path / "same", watcher).finished and watcher.steps == 6
    pd.testing.assert_frame_equal(final(tmp_path / "same"), final(tmp_path / "gone"))

    fewer = load_study(study_file((SMALL[0][0], "[uniform]"), REFERENCE, name="fewer.yaml"))
    continue_from(exported, fewer, tmp_path / "fewer", "one arm is enough")
    assert run_study(fewer, tmp_path / "fewer", deviation="one arm is enough").completed == 2
    with contextlib.closing(open_to_read(tmp_path / "fewer")) as ledger:
        assert len(ledger.runs()) == 2 and len(ledger.runs(every=True)) == 4


def test_an_export_of_another_study_is_not_gone_on_with(exported: Path, study_file: WriteStudy, tmp_path: Path) -> None:
    other = load_study(study_file(*SMALL, ("train: 24", "train: 25"), name="other.yaml"))
    with pytest.raises(StudyFolderError, match=r"another data than .*: data\.train: 24 there, 25 here"):
        continue_from(exported, other, tmp_path / "other", "why not")
    StudyPaths(exported).archive.unlink()
    assert open_recorded(exported) is None
    with pytest.raises(StudyFolderError, match=r"cannot be continued: it has no ledger\.npz"):
        continue_from(exported, load_study(study_file(*SMALL)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_a_kill_leaves_of_taking_over_is_done_again(
    exported: Path, study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(study_file(*SMALL))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            continue_from(exported, study, tmp_path / "out")
    assert continue_from(exported, study, tmp_path / "out") == 4
    assert run_study(study, tmp_path / "out", watcher := Counting()).finished and watcher.steps == 0


def test_the_verb_run_takes_an_export_over(exported: Path, study_file: WriteStudy, tmp_path: Path) -> None:
    command = ["run", str(study_file(*SMALL)), "--out", str(tmp_path / "out"), "--continue-from", str(exported)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "4 finished runs taken over" in result.stderr, result.stderr
    assert "4 of 4 runs completed" in result.stderr and not (tmp_path / "out" / "adapters").exists()
    pd.testing.assert_frame_equal(final(tmp_path / "out"), final(tmp_path / "gone"))
    wrong = CliRunner().invoke(app, [*command[:3], str(tmp_path / "none"), command[4], str(tmp_path / "gone")])
    assert wrong.exit_code == 2 and "cannot be continued: it has no ledger.npz" in wrong.stderr
