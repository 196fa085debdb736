"""A study that goes on as another version of itself: what counts is what it asks for now, and each seed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.errors import StudyFileError, StudyFolderError
from adaptive_lora.reporting.findings import Findings, read_findings
from adaptive_lora.reporting.html.sections import verdicts
from adaptive_lora.reporting.memory.memory_bank import memory_texts
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import read_lock
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import costs_table, curves_table, load_results, ranks_table
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.status import StudyStatus, study_status
from adaptive_lora.study.study_file import load_study

WriteStudy = Callable[..., Path]
ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]")
SHORT = (ARMS, ("steps: 6", "steps: 2"), ("dropout: 0.1", "dropout: 0"))
JUDGED = (*SHORT, ("evaluation: 2", "evaluation: 6"), ("primary: []", "primary: [linear-decay]"))
TUNED = (
    *SHORT,
    ("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]"),
    ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"),
)


def go_on(write: WriteStudy, out: Path, *changes: tuple[str, str]) -> StudyStatus:
    return run_study(load_study(write(*changes, name="b.yaml")), out, deviation="it seemed better")


@contextlib.contextmanager
def opened(out: Path) -> Iterator[Ledger]:
    with contextlib.closing(open_to_read(out)) as ledger:
        yield ledger


def decision_log(out: Path) -> str:
    with opened(out) as ledger:
        return memory_texts(read_findings(ledger))["decisionLog"]


def findings(out: Path) -> Findings:
    with opened(out) as ledger:
        return read_findings(ledger)


def test_after_another_rate_every_seed_counts_once(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(study_file(*JUDGED)), out)
    before = load_results(out)
    outcome = go_on(study_file, out, *JUDGED, ("learning_rate: 1e-2", "learning_rate: 5e-3"))
    assert outcome.finished and outcome.expected == 12
    now, found = load_results(out), findings(out)
    assert set(now["learning_rate"]) == {5e-3} and not set(now["run_id"]) & set(before["run_id"])
    (judgement,) = found.judged.values()
    assert judgement.n == 6 and [arm.learning_rate for arm in found.arms] == [5e-3, 5e-3]
    with opened(out) as ledger:
        assert len(ledger.runs(every=True)) == 24  # nothing is thrown away
        assert set(costs_table(ledger)["run_id"]) == set(ranks_table(ledger)["run_id"]) == set(now["run_id"])
        assert set(curves_table(ledger)["run_id"]) == set(now["run_id"])
    assert study_status(out).left == 0

    assert go_on(study_file, out, *JUDGED).finished  # and back: the first runs count again, and none is trained
    pd.testing.assert_frame_equal(load_results(out), before)


def test_a_rate_is_chosen_from_the_runs_of_the_arm_as_it_is_now(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(study_file(*TUNED)), out)
    changed = (ARMS[1], "[uniform, {strategy: linear-decay, options: {slope: 0.5}}]")
    assert go_on(study_file, out, *TUNED, changed).finished
    runs = load_results(out).query("arm == 'linear-decay'")
    assert len(runs) == 6 and findings(out).judged == {}
    with opened(out) as ledger:
        old = [run["run_id"] for run in ledger.runs(every=True)][:12]
    assert not set(runs["run_id"]) & set(old)


def test_a_grid_that_grows_takes_back_runs_of_the_grid_before(study_file: WriteStudy, tmp_path: Path) -> None:
    out, wide = tmp_path / "out", ("learning_rate: 1e-2", "learning_rate: [1e-3, 3e-3, 1e-2]")
    tuned = (TUNED[0], TUNED[1], TUNED[2], TUNED[4])
    run_study(load_study(study_file(*tuned, wide)), out)
    grown = ("learning_rate: 1e-2", "learning_rate: [3e-4, 1e-3, auto]")  # on to what was tried, and beyond
    once = go_on(study_file, out, *tuned, grown)
    again = go_on(study_file, out, *tuned, grown)
    assert once == again and once.finished
    assert {3e-4, 1e-3, 3e-3, 1e-2} < set(load_results(out)["learning_rate"])


def test_a_twin_is_held_against_the_run_of_its_own_version(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    twin = ("controls: none", "controls: [twin]")
    run_study(load_study(study_file(*SHORT, twin)), out)
    assert go_on(study_file, out, *SHORT, twin, ("engine: bank", "engine: bank\nscaling: {reference: 1.0}")).finished


def test_an_arm_that_is_renamed_takes_its_runs_along(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(study_file(*SHORT)), out)
    before = load_results(out)
    renamed = (ARMS[1], "[uniform, {strategy: linear-decay, name: falling}]")
    assert go_on(study_file, out, *SHORT, renamed).finished
    now = load_results(out)
    assert set(now["run_id"]) == set(before["run_id"]) and set(now["arm"]) == {"uniform", "falling"}


def test_arms_that_come_to_the_same_are_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    same = (ARMS[0], "[uniform, {strategy: uniform, name: again, scaling: {rule: constant, reference: 2.0}}]")
    with pytest.raises(StudyFileError, match=r"line \d+, arms\[1\]: 'again' at rank:2 is the same run as 'uniform'"):
        run_study(load_study(study_file(same)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_kill_between_lock_and_ledger_is_made_good(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_study(load_study(study_file(*SHORT)), out)
    changed = (*SHORT, ("evaluation: 2", "evaluation: 3"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_facts", killed)
        with pytest.raises(KeyboardInterrupt):
            go_on(study_file, out, *changed)
    with pytest.raises(StudyFolderError, match=r"seeds\.evaluation.*--deviation REASON"):
        run_study(load_study(study_file(*SHORT)), out)  # the lock is the new version's already
    assert go_on(study_file, out, *changed).finished
    found, lock = findings(out), read_lock(out)
    assert len(found.facts["spec"]["seeds"]["evaluation"]) == 3 and len(load_results(out)) == 6
    assert "Verdicts rest" not in decision_log(out)  # there are none
    assert lock is not None and [d["reason"] for d in lock["deviations"]] == ["it seemed better"]


@pytest.mark.parametrize(
    ("change", "as_locked"),
    [(("margin: 0.01", "margin: 0.05"), False), (("evaluation: 6", "evaluation: 7"), False), (("1e-2", "5e-3"), True)],
)
def test_what_was_locked_first_is_told_from_what_was_changed(
    study_file: WriteStudy, tmp_path: Path, change: tuple[str, str], as_locked: bool
) -> None:
    out = tmp_path / "out"
    with_margin = (*JUDGED[:-1], ("primary: []", "primary: [linear-decay], margin: 0.01"))
    run_study(load_study(study_file(*with_margin)), out)
    assert findings(out).locked_first
    go_on(study_file, out, *with_margin, change)
    with opened(out) as ledger:  # the table of verdicts reads curves too
        found = read_findings(ledger)
        table = verdicts(found)
    assert found.locked_first is as_locked and found.lock["deviations"][0]["results"] == 12
    assert found.facts["lock"]["first"]["analysis"]["margin"] == 0.01
    told = decision_log(out)
    assert "locked before the first step: 1 comparison, baseline uniform, margin 0.01, alpha 0.05, 6 evaluation" in told
    assert ("Verdicts rest on what was changed since" not in told) is as_locked and "lock after 12 results" in told
    assert table is not None and table.caption.startswith("Locked" if as_locked else "Changed when there were results")


def test_what_changed_before_any_result_counts_as_locked_first(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = load_study(study_file(*JUDGED))
    run_study(study, out)
    with contextlib.closing(create_or_open(out)) as ledger:
        ledger._db.execute("UPDATE runs SET status = 'pending'")
        ledger._db.commit()
    go_on(study_file, out, *JUDGED, ("evaluation: 6", "evaluation: 7"))
    assert findings(out).locked_first
