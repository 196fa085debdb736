"""The ledger: what is committed stays, what is torn never shows, one writer at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.stats.run_table import RUN_COLUMNS, Phase, Status
from adaptive_lora.study.folder import StudyPaths, exclusive, is_in_use
from adaptive_lora.study.ledger import SplitResult
from adaptive_lora.study.matrix import Cell, Role, Run, matrix_of
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import curves_table, export, ranks_table, runs_table
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.study.schema_training import TrainPart
from adaptive_lora.study.status import study_status
from adaptive_lora.study.study_file import parse_study

UNIFORM = ArmPart(name="uniform", strategy="uniform")


def cell(arm: ArmPart = UNIFORM, budget: str = "rank:4", rule: str = "constant") -> Cell:
    training = TrainPart(steps=3, learning_rate=[1e-3])
    return Cell(arm, budget, Role.ARM, ScalingPart(rule=rule), training, 3)  # type: ignore[arg-type]


RUN = Run(Phase.EVALUATION, cell(), 1e-3, 0)
RESULT = SplitResult(np.array([1.5, 2.5, 6.0]), np.array([1, 2, 5]), np.array([True, False, True]))
PLAN = {
    "trainable_parameters": 96, "scores": None, "ranks": {"h.0.attn": 4}, "scalings": {"h.0.attn": 2.0},
    "modules": [{"name": "h.0.attn", "kind": "attention", "depth": 0, "d_in": 8, "d_out": 16}],
}  # fmt: skip
CURVE = {
    "step": [0.0, 1.0],
    "loss": [3.0, 2.0],
    "gradient_norm": [1.0, 1.0],
    "learning_rate": [1.0, 0.5],
    "tokens": [4.0, 4.0],
}


def test_a_reason_is_recorded_without_tokens(tmp_path: Path) -> None:
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.register({"a": RUN})
        ledger.fail("a", Status.FAILED, f"401 with hf_{'aB3' * 11}")
        (found,) = ledger.runs()
    assert found["error"] == "401 with hf_[redacted]"


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.set_facts({"name": "s"})
        ledger.register({"a": RUN})
        ledger.begin("a", "reference", "cpu", 2)
        ledger.complete("a", PLAN, CURVE, {"test": RESULT}, {"plan": 0.5, "train": 7.0})
    with contextlib.closing(open_to_read(tmp_path)) as ledger:
        assert ledger.status_of("a") == Status.COMPLETED
        assert ledger.plan("a") == PLAN
        assert ledger.curve("a") == CURVE
        back = ledger.by_record("a", "test")
        assert back is not None
        for name in ("nll", "tokens", "exact"):
            np.testing.assert_array_equal(getattr(back, name), getattr(RESULT, name))
        assert ledger.by_record("a", "validation") is None and ledger.plan("b") is None and ledger.curve("b") is None


def test_registering_again_keeps_results(tmp_path: Path) -> None:
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.register({"a": RUN})
        ledger.fail("a", Status.DIVERGED, "boom", 3)
        ledger.register({"a": RUN, "b": RUN})
        assert [run["status"] for run in ledger.runs()] == ["diverged", "pending"]


def test_a_writer_killed_in_a_transaction_leaves_no_trace_of_it(tmp_path: Path) -> None:
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.set_facts({"kept": [1, 2]})
    script = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "db.execute(\"INSERT INTO study VALUES ('torn', '1')\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(StudyPaths(tmp_path).ledger)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with contextlib.closing(open_to_read(tmp_path)) as ledger:
        assert ledger.facts() == {"kept": [1, 2]}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    assert not is_in_use(tmp_path)
    with exclusive(tmp_path):
        assert is_in_use(tmp_path)
        with pytest.raises(StudyFolderError, match=f"process {os.getpid()} is running this study"), exclusive(tmp_path):
            pass
    assert not is_in_use(tmp_path)
    with exclusive(tmp_path):
        pass


def test_folders_without_a_ledger_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFolderError, match="no study folder"):
        open_to_read(tmp_path)
    create_or_open(tmp_path).close()
    with pytest.raises(StudyFolderError, match="never began"):
        open_to_read(tmp_path)
    (tmp_path / "foreign").mkdir()
    foreign = sqlite3.connect(StudyPaths(tmp_path / "foreign").ledger)
    foreign.execute("CREATE TABLE things (x)")
    foreign.close()
    with pytest.raises(StudyFolderError, match="unsupported ledger version 0"):
        open_to_read(tmp_path / "foreign")
    StudyPaths(tmp_path).ledger.write_text("this is no database, and it is long enough to be seen as none")
    with pytest.raises(StudyFolderError, match="cannot be read as a ledger"):
        open_to_read(tmp_path)


def test_run_table_has_the_published_names_and_leaves_missing_empty(tmp_path: Path) -> None:
    tuning = Run(Phase.TUNING, cell(), 1e-3, 1000)
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.set_facts(
            {"data": {"exact_answers": True}, "text": "x", "name": "s", "expected_runs": {"evaluation": 3}}
        )
        ledger.register({"a": RUN, "t": tuning, "d": RUN})
        ledger.store_base({"test": RESULT, "validation": RESULT})
        ledger.complete("a", PLAN, CURVE, {"validation": RESULT, "test": RESULT}, {"plan": 0.5, "train": 7.0})
        ledger.complete("t", PLAN, CURVE, {"validation": RESULT}, {"plan": 0.5, "train": 7.0})
        ledger.fail("d", Status.DIVERGED, "boom", 3)
        table = runs_table(ledger).set_index("run_id")
        files = export(ledger, tmp_path / "text")

    assert [*table.reset_index().columns] == list(RUN_COLUMNS)
    assert table.loc["a", "test_loss"] == 10 / 8  # Σ nll / Σ tokens, not the mean of means
    assert table.loc["a", "test_perplexity"] == np.exp(10 / 8)
    assert table.loc["a", "test_exact_match"] == 2 / 3
    assert table.loc["t", ["test_loss", "test_perplexity"]].isna().all() and table.loc["t", "validation_loss"] == 1.25
    assert table.loc["d", ["test_loss", "validation_loss", "trainable_parameters", "train_seconds"]].isna().all()
    assert (
        (tmp_path / "text" / "runs.csv")
        .read_text()
        .splitlines()[3]
        .startswith("d,evaluation,uniform,uniform,rank:4,0,0,0.001,constant,,diverged,1.25,,,,,")
    )
    assert {path.name for path in files} == {
        "study.yaml",
        "facts.json",
        "ledger.npz",
        "runs.csv",
        "runs.jsonl",
        "ranks.csv",
        "curves.csv",
    }


def test_ranks_table_counts_parameters(tmp_path: Path) -> None:
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.register({"a": RUN})
        ledger.complete("a", PLAN, CURVE, {"test": RESULT}, {"plan": 0.5, "train": 7.0})
        (row,) = ranks_table(ledger).to_dict("records")
    assert (row["rank"], row["parameters"], row["score"]) == (4, 96, None)


def test_curves_and_ranks_follow_the_runs_and_leave_twins_out(tmp_path: Path) -> None:
    tuning, twin = replace(RUN, phase=Phase.TUNING, seed=1000), replace(RUN, replica=1)
    longer = {name: [*values, 9.0] for name, values in CURVE.items()}
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.register({"z": RUN, "t": tuning, "twin": twin, "a": replace(RUN, seed=1), "none": replace(RUN, seed=2)})
        for run_id, curve in (("a", longer), ("twin", CURVE), ("t", CURVE), ("z", CURVE)):
            ledger.complete(run_id, PLAN, curve, {"test": RESULT}, {"plan": 0.5, "train": 7.0})
        curves, ranks = curves_table(ledger), ranks_table(ledger)
        assert curves_table(ledger, Phase.TUNING)["run_id"].tolist() == ["t", "t"]
        assert [run_id for run_id, _ in ledger.plans()] == ["z", "t", "twin", "a"]
    assert curves["run_id"].tolist() == ["z", "z", "a", "a", "a"] and curves["seed"].tolist() == [0, 0, 1, 1, 1]
    assert curves["loss"].tolist() == [*CURVE["loss"], *longer["loss"]]
    assert ranks["run_id"].tolist() == ["z", "t", "a"]


def test_status_tells_interrupted_from_running(tmp_path: Path) -> None:
    with contextlib.closing(create_or_open(tmp_path)) as ledger:
        ledger.set_facts({"name": "s", "expected_runs": {"evaluation": 4}})
        ledger.register({"a": RUN, "b": RUN, "c": RUN})
        ledger.begin("a", "reference", "cpu", 10)
        ledger.record_step("a", 4)
        ledger.fail("b", Status.FAILED, "OSError: disk full")
    found = study_status(tmp_path)
    assert found.counts == {"interrupted": 1, "failed": 1, "pending": 1}
    assert (found.left, found.in_use, found.current[0]["step"], found.troubles[0]["error"]) == (
        4,
        False,
        4,
        "OSError: disk full",
    )
    with exclusive(tmp_path):
        assert study_status(tmp_path).counts["running"] == 1


STUDY = """\
name: s
model: {name: demo}
data: {source: "demo:all", train: 20, validation: 5, test: 5}
budgets: ["rank:2", "rank:4"]
arms: [uniform, random, {name: fixed, ranks: {c_attn: 4}}]
seeds: {evaluation: 3, tuning: 2}
train: {steps: 3, learning_rate: [1e-3, 1e-2]}
controls: none
"""


def test_the_run_matrix() -> None:
    matrix = parse_study(STUDY, Path("s.yaml")).matrix
    arms = 5  # two arms at two budgets; fixed ranks once
    assert matrix.counts() == {Phase.TUNING: arms * 2 * 2, Phase.EVALUATION: arms * 3}
    assert len(list(matrix.tuning_runs())) == 20
    assert matrix.fixed_rates == {}
    chosen = {("uniform", "rank:2"): 1e-3, ("random", "rank:2"): 1e-2}
    runs = list(matrix.evaluation_runs(chosen))
    assert [(r.arm.name, r.learning_rate, r.seed) for r in runs[:2]] == [("uniform", 1e-3, 0), ("random", 1e-2, 0)]
    assert len(runs) == 6


def test_an_arms_scaling_keeps_what_it_does_not_name() -> None:
    """A rule alone must not bring back the default reference: the arms would differ in scale unasked."""
    text = STUDY.replace("arms: [uniform, random,", "arms: [uniform, {strategy: random, scaling: rslora},")
    spec = parse_study(f"{text}scaling: {{rule: constant, reference: 0.5}}\n", Path("s.yaml")).spec
    by_arm = {run.arm.name: run.cell.scaling for run in matrix_of(spec).tuning_runs()}
    assert (by_arm["uniform"].rule, by_arm["uniform"].reference) == ("constant", 0.5)
    assert (by_arm["random"].rule, by_arm["random"].reference) == ("rslora", 0.5)


def test_run_ids_are_what_determines_the_result() -> None:
    renamed = Run(Phase.TUNING, cell(ArmPart(name="other", strategy="uniform")), 1e-3, 0)
    assert RUN.run_id({"x": 1}) == renamed.run_id({"x": 1})
    others = [
        Run(Phase.EVALUATION, cell(budget="rank:8"), 1e-3, 0),
        Run(Phase.EVALUATION, cell(rule="rslora"), 1e-3, 0),
        Run(Phase.EVALUATION, cell(), 1e-2, 0),
        Run(Phase.EVALUATION, cell(), 1e-3, 1),
        Run(Phase.EVALUATION, cell(), 1e-3, 0, replica=1),
        Run(Phase.EVALUATION, cell(ArmPart(name="u", strategy="random")), 1e-3, 0),
    ]
    ids = {run.run_id({"x": 1}) for run in [RUN, *others]} | {RUN.run_id({"x": 2})}
    assert len(ids) == len(others) + 2
