"""Study folders: held by one process, named where they cannot be, and moved."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import StudyFolderError
from adaptive_lora.study.folder import StudyPaths, exclusive, is_in_use, make_folder
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study, parse_study, portable_text
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
SMALL = (("[uniform, linear-decay, empirical, random]", "[uniform, {ranks: ranks.json}]"), REFERENCE)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with exclusive(tmp_path):
        assert is_in_use(tmp_path)
    without_locks(monkeypatch)
    assert not is_in_use(tmp_path)
    refused = pytest.raises(StudyFolderError, match=r"\.lock cannot be locked \(.*No locks available.*on a local disk")
    with refused, exclusive(tmp_path):
        pass


def test_run_ends_with_2_where_there_are_no_locks(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    result = CliRunner().invoke(app, ["run", str(study_file()), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "cannot be locked" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path))

    monkeypatch.setattr(Path, "open", refused)
    because = rf"cannot be written: {os.strerror(code)}\. Name another study folder"
    with pytest.raises(StudyFolderError, match=because), exclusive(tmp_path):
        pass


def test_a_place_where_no_folder_can_be_is_named(study_file: WriteStudy) -> None:
    with pytest.raises(StudyFolderError, match=r"/proc/none cannot be made: .*Name another one with --out"):
        make_folder(Path("/proc/none"))
    result = CliRunner().invoke(app, ["run", str(study_file()), "--out", "/proc/none"])
    assert (
        result.exit_code == 2
        and "error: /proc/none cannot be written, as /proc is read-only; name another folder" in result.stderr
    )


@pytest.fixture
def place(study_file: WriteStudy, model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a study file whose paths are all relative to it: model, records and ranks lie beside it."""
    folder = tmp_path / "place"
    (folder / "studies").mkdir(parents=True)
    shutil.copytree(model_folders["gpt2"], folder / "model")
    rows = [{"instruction": f"say {i}", "output": f"{i} {i % 7}"} for i in range(80)]
    (folder / "records.json").write_text(json.dumps(rows))
    (folder / "studies" / "ranks.json").write_text('{"c_attn": 3, "c_proj": 1, "c_fc": 1}')
    text = study_file(*SMALL).read_text().replace(str(model_folders["gpt2"]), "../model  # beside")
    text = text.replace('"demo:fine-tuning"', "../records.json").replace("  # beside}", "}  # beside")
    (folder / "studies" / "study.yaml").write_text(text)
    return folder


def test_a_study_goes_on_from_its_own_copy_wherever_folder_and_file_went(place: Path, tmp_path: Path) -> None:
    run_study(load_study(place / "studies" / "study.yaml"), place / "out")
    before = load_results(place / "out")
    copy = StudyPaths(place / "out").study_file
    assert str(place / "model") in copy.read_text() and "# beside" in copy.read_text()
    assert not any(str(tmp_path) in path.read_text() for path in (StudyPaths(place / "out").decisions,))

    moved = (place / "out").rename(tmp_path / "moved")
    (place / "studies" / "study.yaml").unlink()
    (place / "studies" / "ranks.json").rename(place / "studies" / "ranks.json.kept")
    with pytest.raises(Exception, match="does not exist"):
        load_study(StudyPaths(moved).study_file)
    (place / "studies" / "ranks.json.kept").rename(place / "studies" / "ranks.json")
    study = load_study(StudyPaths(moved).study_file)
    assert run_study(study, moved).finished
    assert load_results(moved).equals(before)


def test_the_original_file_and_its_material_may_move_together(place: Path, tmp_path: Path) -> None:
    run_study(load_study(place / "studies" / "study.yaml"), tmp_path / "out")
    before = load_results(tmp_path / "out")
    elsewhere = place.rename(tmp_path / "elsewhere")
    assert run_study(load_study(elsewhere / "studies" / "study.yaml"), tmp_path / "out").finished
    assert load_results(tmp_path / "out").equals(before)


def test_what_lies_nowhere_in_particular_stays_as_it_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", str(place))
    (place / "studies" / "demo").mkdir()
    text = (place / "studies" / "study.yaml").read_text()
    text = text.replace("../model", "demo").replace("../records.json", '"${SOMEWHERE}/records.json"')
    study = parse_study(text, place / "studies" / "study.yaml")
    assert portable_text(study) == text.replace("ranks.json", f'"{place / "studies" / "ranks.json"}"')
