"""A study in shards, put together again: the same tables and the same exported text as of one run."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import StudyFolderError, UsageError
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.merge import go_on_from, merge
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import export, load_results
from adaptive_lora.study.runner import Limits, run_study
from adaptive_lora.study.shards import Shard, banks_of
from adaptive_lora.study.study_file import Study, load_study
from tests.study.executors.small import small_study

TIMES = re.compile(r"seconds|started|finished|^kernels$|^engine$")
ONE_UPDATE = ("steps: 6", "steps: 1"), ("controls: none", "controls: [twin]")


def same_text(one: Path, other: Path) -> None:
    """Exports are the same but for times, and for the size of the bank."""
    for folder in (one, other):
        with contextlib.closing(open_to_read(folder)) as ledger:
            export(ledger, folder / "export")
    tables = [
        {name: pd.read_csv(folder / "export" / f"{name}.csv") for name in ("runs", "ranks", "curves")}
        for folder in (one, other)
    ]
    for name in tables[0]:
        columns = [column for column in tables[0][name] if not TIMES.search(column)]
        pd.testing.assert_frame_equal(tables[0][name][columns], tables[1][name][columns], check_exact=True)
    facts = [json.loads((folder / "export" / "facts.json").read_text()) for folder in (one, other)]
    for own in facts:
        own["lock"] = {key: value for key, value in own["lock"].items() if key not in ("locked", "digest")}
        own.pop("planning", None)
    assert facts[0] == facts[1]
    for name in ("study.yaml", "splits.csv"):
        assert (one / "export" / name).read_text() == (other / "export" / name).read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> tuple[Study, Path]:
    """A study without tuning, and a folder with its three shards."""
    folder = tmp_path_factory.mktemp("shards")
    study = small_study(folder, model_folders["gpt2"], *ONE_UPDATE)
    for i in range(3):
        assert not run_study(study, folder / f"shard{i}", limits=Limits(shard=Shard(i, 3))).finished
    return study, folder


@pytest.fixture
def shards(made: tuple[Study, Path], tmp_path: Path) -> tuple[Study, list[Path]]:
    """The study, and copies of its shards."""
    study, folder = made
    folders = [tmp_path / f"shard{i}" for i in range(3)]
    for own in folders:
        shutil.copytree(folder / own.name, own)
    return study, folders


def test_three_shards_and_a_merge_equal_one_run(shards: tuple[Study, list[Path]], tmp_path: Path) -> None:
    study, folders = shards
    run_study(study, tmp_path / "whole")
    assert [len(load_results(folder)["test_loss"].dropna()) for folder in folders] == [2, 2, 1]
    (tmp_path / "merged").mkdir()
    create_or_open(tmp_path / "merged").close()  # as a merge that was killed at its start leaves it
    found = merge(folders, tmp_path / "merged")
    assert (found.taken, found.finished, found.left) == (5, 5, 0)
    assert merge(folders[::-1], tmp_path / "merged").taken == 0  # again changes nothing
    before = load_results(tmp_path / "merged")
    assert run_study(study, tmp_path / "merged").finished
    pd.testing.assert_frame_equal(load_results(tmp_path / "merged"), before)  # nothing is left to train
    same_text(tmp_path / "whole", tmp_path / "merged")
    assert len(list((tmp_path / "merged" / "adapters").iterdir())) == 5
    locks = [
        json.loads(StudyPaths(folder).decisions.read_text())["locked"] for folder in (*folders, tmp_path / "merged")
    ]
    assert min(locks[:3]) == locks[3]


def test_a_merge_of_folders_that_disagree_or_are_of_other_studies_is_refused(
    shards: tuple[Study, list[Path]], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    _, (first, second, _) = shards
    shutil.copytree(first, tmp_path / "copy")
    with contextlib.closing(create_or_open(tmp_path / "copy")) as ledger:
        ledger._db.execute("UPDATE evaluations SET nll = nll + 1e-9 WHERE run_id != 'base'")
        ledger._db.commit()
    with pytest.raises(StudyFolderError, match=r"disagree.*\n.*evaluation uniform rank:2 seed 0.*other results"):
        merge([first, tmp_path / "copy"], tmp_path / "merged")
    other = small_study(tmp_path, model_folders["gpt2"], *ONE_UPDATE, ("batch_size: 4", "batch_size: 2"))
    run_study(other, tmp_path / "other", limits=Limits(shard=Shard(0, 3)))
    lock = StudyPaths(second).decisions
    lock.write_text(lock.read_text().replace('"primary": []', '"primary": [{"arm": "random", "budget": "rank:2"}]'))
    with pytest.raises(
        StudyFolderError, match=r"(?s)other is not of the same study.*batch_size: 4 in.*shard1 is not.*primary"
    ):
        merge([first, tmp_path / "other", second], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(StudyFolderError, match=r"is not empty and holds no study"):
        merge([first], other.path.parent)


def test_shards_of_a_study_that_tunes_go_on_from_what_was_merged(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    tuned = (("learning_rate: 1e-2", "learning_rate: [1e-2, 3e-3]"), ("evaluation: 2", "evaluation: 2, tuning: 1"))
    study = small_study(tmp_path, model_folders["gpt2"], *ONE_UPDATE, *tuned)
    run_study(study, tmp_path / "whole")
    one, other, both = tmp_path / "one", tmp_path / "other", tmp_path / "both"
    for taken in (None, 2):
        for i, folder in enumerate((one, other)):
            if taken is not None:
                assert go_on_from(both, folder, Shard(i, 2)) == taken
            assert not run_study(study, folder, limits=Limits(shard=Shard(i, 2))).finished
        merge([one, other], both)
    assert run_study(study, both).finished
    same_text(tmp_path / "whole", both)


def test_a_folder_belongs_to_one_shard(shards: tuple[Study, list[Path]]) -> None:
    study, folders = shards
    with pytest.raises(StudyFolderError, match=r"that of shard 0/3, got --shard 1/3"):
        run_study(study, folders[0], limits=Limits(shard=Shard(1, 3)))


@pytest.mark.parametrize("text", ["3/3", "1", "-1/2", "a/b", "0/0"])
def test_a_shard_is_one_of_n(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as 0/3, 1/3 and 2/3; got"):
        Shard.parse(text)


def test_shares_are_disjoint_whole_and_keep_twins_together(study_file: Callable[..., Path]) -> None:
    matrix = load_study(study_file(ONE_UPDATE[1], ("evaluation: 2", "evaluation: 7"))).matrix
    runs = {str(i): run for i, run in enumerate(matrix.evaluation_runs(dict.fromkeys(matrix.by_key, 1e-2)))}
    assert len(runs) == 29
    for size in (None, 1, 2, 4, 64):
        shares = [Shard(i, 3).share(runs, size) for i in range(3)]
        assert sorted(key for share in shares for key in share) == sorted(runs)
        twin = next(key for key, run in runs.items() if run.replica)
        if size != 1:
            assert any({twin, str(int(twin) - 1)} <= set(share) for share in shares)
    assert max(map(len, banks_of(list(runs.items()), 4))) == 4


def test_the_command_line_says_what_comes_next(shards: tuple[Study, list[Path]], tmp_path: Path) -> None:
    study, folders = shards
    again = CliRunner().invoke(app, ["run", str(study.path), "--out", str(folders[0]), "--shard", "0/3"])
    assert (
        again.exit_code == 0
        and "2 of 5 runs are here. When all 3 shards have ended: adaptive-lora merge" in again.stderr
    )
    found = CliRunner().invoke(app, ["merge", *map(str, folders[:2]), "--out", str(tmp_path / "merged"), "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["left"] == 1
    refused = CliRunner().invoke(
        app, ["run", str(study.path), "--out", str(tmp_path / "merged"), "--merged", str(folders[0])]
    )
    assert refused.exit_code == 2 and "--merged is for shards" in refused.stderr
