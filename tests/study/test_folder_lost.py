"""A study folder that is removed, moved or replaced while its study runs: noticed, said, and nothing else harmed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli import progress
from adaptive_lora.cli.main import app
from adaptive_lora.errors import FolderLostError
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import StepRecord, write_checkpoint

WriteStudy = Callable[..., Path]


@pytest.mark.parametrize("engine", ["bank", "reference"])
def test_a_run_whose_folder_is_removed_ends_with_1(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    out = tmp_path / "out"

    class Removing(progress.PlainProgress):
        def step(self, record: StepRecord) -> None:
            shutil.rmtree(out, ignore_errors=True)

    monkeypatch.setattr(progress, "progress_for", Removing)
    arms = ("[uniform, linear-decay, empirical, random]", "[uniform]")
    result = CliRunner().invoke(
        app, ["run", str(study_file(arms, ("engine: bank", f"engine: {engine}"))), "--out", str(out)]
    )
    assert result.exit_code == 1 and "Traceback" not in result.stderr and "runs completed" not in result.stderr
    assert f"The study folder {out} was removed while the study ran" in result.stderr
    assert not out.exists()  # nothing was written at its path since


def test_what_was_being_written_when_the_folder_was_removed_does_not_keep_the_study_from_beginning_anew(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, study = tmp_path / "out", load_study(study_file(("[uniform, linear-decay, empirical, random]", "[uniform]")))

    def remove_and_write(path: Path, *rest: Any) -> None:
        shutil.rmtree(out, ignore_errors=True)
        write_checkpoint(path, *rest)

    with monkeypatch.context() as patched, pytest.raises(FolderLostError):
        patched.setattr("adaptive_lora.study.engines.resume.write_checkpoint", remove_and_write)
        run_study(study, out, checkpoint_seconds=0)
    assert [path.name for path in out.iterdir()] == ["checkpoints"]
    assert run_study(study, out).finished


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study"


def begun(folder: Path) -> None:
    folder.mkdir()
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger.set_facts({"name": "another"})


def test_a_folder_that_was_moved_is_found(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger.set_facts({"kept": 1})
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(FolderLostError) as lost:
            ledger.set_facts({"kept": 2})
    if Path("/proc/self/fd").is_dir():
        assert f"was moved to {tmp_path / 'elsewhere'} " in str(lost.value)
    with contextlib.closing(open_to_read(tmp_path / "elsewhere")) as ledger:
        assert ledger.facts() == {"kept": 1}


def test_a_folder_that_was_replaced_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    """SQLite deletes the log beside the path that it opened, and this one would be another study's."""
    folder.mkdir()
    ledger = create_or_open(folder)
    ledger.set_facts({"name": "ours"})
    shutil.rmtree(folder)
    begun(folder)
    log = folder / "study.db-wal"
    log.write_bytes(b"results of the other that a kill left in its log")
    with pytest.raises(FolderLostError, match="replaced by another file"):
        ledger.check_place()
    ledger.close()
    del ledger
    assert log.exists()


def test_a_path_that_cannot_be_asked_for_now_is_no_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    with contextlib.closing(create_or_open(folder)) as ledger:

        def refused(path: Path) -> os.stat_result:
            raise PermissionError(13, "Permission denied", str(path))

        with monkeypatch.context() as patched:
            patched.setattr(Path, "stat", refused)
            ledger.check_place()
