"""What is sound of a damaged ledger comes back, the damaged one stays, and `run` trains what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import LedgerDamaged, StudyFolderError
from adaptive_lora.recovery.recovering import KNOWN_BY, recover
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.folder import StudyPaths, exclusive
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import StepRecord
from tests.study.test_sealed import changed, fill, flipped, read_all

WriteStudy = Callable[..., Path]
LOSSES = ["run_id", "arm", "seed", "status", "validation_loss", "test_loss"]


def known(folder: Path) -> Path:
    """The ledger of `fill`, with all that a study is known by."""
    path = fill(folder)
    with contextlib.closing(create_or_open(folder)) as ledger:
        lock = {"locked": "then", "hypotheses": [], "primary": [], "controls": {}, "deviations": []}
        facts: dict[str, Any] = {name: {} for name in KNOWN_BY} | {
            "name": "s",
            "expected_runs": {"evaluation": 8},
            "lock": lock,
        }
        ledger.set_facts({**facts, "chosen_rates": []})
    return path


def zeroed(path: Path, *pages: int) -> None:
    content = bytearray(path.read_bytes())
    for page in pages:
        content[page * 4096 : (page + 1) * 4096] = bytes(4096)
    path.write_bytes(content)


def test_a_sound_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    path = known(tmp_path)
    content = path.read_bytes()
    found = recover(tmp_path)
    assert (found.damaged, found.runs, found.lost, found.facts_kept, found.proven) == (None, 7, (), True, True)
    assert path.read_bytes() == content and {p.name for p in tmp_path.iterdir()} == {"study.db", ".lock"}


def test_one_run_that_is_damaged_is_lost_and_all_others_are_what_they_were(tmp_path: Path) -> None:
    path = known(tmp_path)
    lost = f"{4:016x}"
    with contextlib.closing(open_to_read(tmp_path)) as ledger:
        before = {run["run_id"]: run for run in ledger.runs()}
        totals, plans = ledger.totals(), dict(ledger.plans())
    changed(path, f"UPDATE evaluations SET nll = nll + 1 WHERE run_id = '{lost}' AND split = 'test'")
    damaged = path.read_bytes()
    found = recover(tmp_path)
    assert found.damaged == tmp_path / "study.db.damaged" and found.damaged.read_bytes() == damaged
    assert not path.with_name("study.db-wal").exists()
    [run] = found.lost
    assert (run.run_id, run.label, run.what) == (lost, "uniform at rank:4, seed 4", ("its losses (test)",))
    assert found.runs == 6
    with contextlib.closing(open_to_read(tmp_path)) as ledger:
        after = {run["run_id"]: run for run in ledger.runs()}
        assert after.pop(lost)["status"] == "pending" and before.pop(lost)
        assert list(after.items()) == list(before.items())
        assert ledger.totals() == {key: value for key, value in totals.items() if key[0] != lost}
        assert ledger.planning.plan(lost) == (plans[lost], 0.5) and ledger.curve(lost) is None
    assert recover(tmp_path).damaged is None


def test_whatever_is_damaged_what_is_recovered_is_sound(tmp_path: Path) -> None:
    """Flipped bits and zeroed pages: what can be read afterwards is a part of what was written."""
    path = known(tmp_path)
    whole, random = path.read_bytes(), numpy_stream(3, "flips")
    with contextlib.closing(open_to_read(tmp_path)) as ledger:
        runs, totals, facts = {r["run_id"]: r for r in ledger.runs(every=True)}, ledger.totals(), ledger.facts()
        plans, curves = dict(ledger.plans()), {run_id: ledger.curve(run_id) for run_id in runs}
    versions = [flipped(whole, random) for _ in range(8)]
    versions += [whole[:page] + bytes(4096) + whole[page + 4096 :] for page in range(0, len(whole), 3 * 4096)]
    recovered = []
    for version in versions:
        for old in tmp_path.iterdir():
            old.unlink()
        path.write_bytes(version)
        found = recover(tmp_path)
        recovered.append(found.runs)
        with contextlib.closing(open_to_read(tmp_path, begun=False)) as ledger:
            assert found.facts_kept == bool(ledger.facts()) and ledger.facts().items() <= facts.items()
            own = [run for run in ledger.runs(every=True) if run["status"] in ("completed", "diverged")]
            assert len(own) == found.runs and all(run == runs[run["run_id"]] for run in own)
            assert ledger.totals().items() <= totals.items() and dict(ledger.plans()).items() <= plans.items()
            assert all(ledger.curve(run["run_id"]) == curves[run["run_id"]] for run in own)
    assert sum(recovered) > 0.8 * 7 * len(versions)


def test_without_its_first_page_a_ledger_comes_back_whole(tmp_path: Path) -> None:
    path = known(tmp_path)
    told = read_all(tmp_path)
    zeroed(path, 0)
    with pytest.raises(StudyFolderError):
        read_all(tmp_path)
    found = recover(tmp_path)
    assert found.runs == 7 and not found.lost and found.proven
    assert read_all(tmp_path) == told
    changed(path, "PRAGMA user_version = 4099")  # one flipped bit
    with pytest.raises(StudyFolderError, match=r"unsupported ledger version 4099.*adaptive-lora recover"):
        read_all(tmp_path)
    assert recover(tmp_path).damaged and read_all(tmp_path) == told


def test_facts_that_are_lost_are_written_again_by_run(tmp_path: Path) -> None:
    path = known(tmp_path)
    changed(path, "UPDATE study SET value = '[1]' WHERE key = 'chosen_rates'")
    found = recover(tmp_path)
    assert found.facts_lost == ("chosen_rates",) and found.facts_kept
    changed(path, "UPDATE study SET value = '[1]' WHERE key = 'material'")
    found = recover(tmp_path)
    assert found.facts_lost == ("material",) and not found.facts_kept and found.runs == 7
    assert found.damaged == tmp_path / "study.db.damaged-2"
    with pytest.raises(StudyFolderError, match="never began; run it again"):
        open_to_read(tmp_path)


def test_a_log_belongs_to_the_damaged_ledger(tmp_path: Path) -> None:
    """A process was killed, and its last results are in the log alone."""
    known(tmp_path / "first")
    with contextlib.closing(create_or_open(tmp_path / "first")) as ledger:
        ledger.set_facts({"name": "newest"})
        (tmp_path / "killed").mkdir()
        for name in ("study.db", "study.db-wal"):
            (tmp_path / "killed" / name).write_bytes((tmp_path / "first" / name).read_bytes())
    folder = tmp_path / "killed"
    zeroed(folder / "study.db", 0)
    found = recover(folder)
    assert found.damaged == folder / "study.db.damaged" and found.runs == 7
    assert {p.name for p in folder.iterdir()} == {"study.db", "study.db.damaged", "study.db.damaged-wal", ".lock"}
    with contextlib.closing(open_to_read(folder)) as ledger:
        assert ledger.facts()["name"] == "newest"


def test_a_kill_before_the_new_ledger_stands_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = known(tmp_path)
    changed(path, f"UPDATE curves SET points = x'00' WHERE run_id = '{4:016x}'")
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            recover(tmp_path)
    with pytest.raises(LedgerDamaged):
        read_all(tmp_path)
    assert recover(tmp_path).runs == 6
    assert sorted(p.name for p in tmp_path.glob("study.db*")) == ["study.db", "study.db.damaged"]


def test_no_links_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = known(tmp_path)
    changed(path, f"UPDATE curves SET points = x'00' WHERE run_id = '{4:016x}'")

    def none(*arguments: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", none)
    assert recover(tmp_path).runs == 6 and (tmp_path / "study.db.damaged").exists()


def test_what_cannot_be_recovered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFolderError, match="nothing to recover"):
        recover(tmp_path)
    path = StudyPaths(tmp_path).ledger
    path.write_bytes(b"\1" * 20_000)
    with pytest.raises(StudyFolderError, match=r"Nothing of .* can be read any more"):
        recover(tmp_path)
    assert path.read_bytes() == b"\1" * 20_000
    with exclusive(tmp_path), pytest.raises(StudyFolderError, match="in use"):
        recover(tmp_path)
    with pytest.raises(StudyFolderError, match="is there already"):
        recover(tmp_path, tmp_path)


def test_a_ledger_of_before_is_recovered_by_what_sqlite_reads(tmp_path: Path) -> None:
    path = known(tmp_path)
    gone = f"UPDATE curves SET points = x'00' WHERE run_id = '{4:016x}'"
    changed(path, "DROP TABLE digests", "PRAGMA user_version = 2", gone)
    found = recover(tmp_path)
    assert (found.runs, found.proven, [run.run_id for run in found.lost]) == (6, False, [f"{4:016x}"])
    with contextlib.closing(open_to_read(tmp_path)) as ledger:
        assert len(list(ledger.plans())) == 5


class Counting(Silent):
    """How many updates are made."""

    steps = 0

    def step(self, record: StepRecord) -> None:
        self.steps += 1


def final(folder: Path) -> pd.DataFrame:
    return load_results(folder)[LOSSES].sort_values("run_id", ignore_index=True)


def test_run_trains_what_is_missing_and_the_lock_comes_back(study_file: WriteStudy, tmp_path: Path) -> None:
    judged = ("analysis: {primary: []}", "analysis: {primary: [random]}"), ("evaluation: 2", "evaluation: 4")
    arms = ("[uniform, linear-decay, empirical, random]", "[uniform, random]"), ("steps: 6", "steps: 2")
    study, folder = load_study(study_file(*judged, *arms)), tmp_path / "out"
    run_study(study, folder)
    whole, lost = final(folder), load_results(folder)["run_id"][1]
    with contextlib.closing(sqlite3.connect(StudyPaths(folder).ledger)) as db, db:
        db.execute("UPDATE evaluations SET nll = nll * 1.01 WHERE run_id = ?", (lost,))
    told = CliRunner().invoke(app, ["results", str(folder)])
    assert told.exit_code == 2 and f"run {lost} (random at rank:2, seed 0)" in told.stderr

    told = CliRunner().invoke(app, ["recover", str(folder), "--out", str(tmp_path / "other"), "--json"])
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["runs"] == 7 and [run["run_id"] for run in found["lost"]] == [lost]
    assert load_results(tmp_path / "other")["status"].tolist().count("completed") == 7
    told = CliRunner().invoke(app, ["recover", str(folder)])
    assert told.exit_code == 0 and f"lost: run {lost} (random at rank:2, seed 0): its losses (test)" in told.stdout
    assert "recovered 7 finished runs" in told.stdout and "next: adaptive-lora run STUDY.yaml --out" in told.stdout
    listener = Counting()
    assert run_study(study, folder, listener).finished
    assert listener.steps == 2  # of one run
    pd.testing.assert_frame_equal(final(folder), whole, rtol=1e-6)

    path = StudyPaths(folder).decisions
    lock = json.loads(path.read_text())
    forged = {**lock, "locked": "2020-01-01T00:00:00+00:00", "hypotheses": ["random is worse"]}
    path.write_text(json.dumps(forged))
    with pytest.raises(StudyFolderError, match=r"study\.lock\.json is not the lock") as error:
        run_study(study, folder)
    assert "locked: '2020" in str(error.value) and "hypotheses[0]: 'random is worse' in the lock" in str(error.value)
    told = CliRunner().invoke(app, ["results", str(folder), "--out", str(tmp_path / "export")])
    assert told.exit_code == 2 and "is not the lock" in told.stderr
    for content in (None, json.dumps({**lock, "spec": {**lock["spec"], "budgets": ["rank:9"]}}), "{torn"):
        if content is not None:
            path.write_text(content)
        assert recover(folder).lock == path and json.loads(path.read_text()) == lock
    assert len(list(folder.glob("study.lock.json.damaged*"))) == 3 and recover(folder).lock is None
