"""Papers of studies in which something is missing, diverged or open: no crash, and no claim for what is not there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from adaptive_lora.reporting.findings import read_findings
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from tests.reporting.ledgers import Made, make_study
from tests.reporting.test_memory_bank import GRID, change, change_facts, texts_of
from tests.reporting.test_paper import told


def paper_of(folder: Path) -> str:
    """All prose, on one line."""
    return " ".join(told(folder).split())


def without_a_rate(folder: Path, arm: str) -> None:
    """As the runner leaves an arm whose every rate diverged: tuned, and never evaluated."""
    change(folder, "UPDATE runs SET status = 'diverged', step = 5 WHERE arm = ? AND phase = 'tuning'", arm)
    with contextlib.closing(create_or_open(folder)) as ledger:
        ids = [run["run_id"] for run in ledger.runs() if run["arm"] == arm and run["phase"] == "evaluation"]
        tables = [row[0] for row in ledger._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if any(column[1] == "run_id" for column in ledger._db.execute(f"PRAGMA table_info({table})")):
                ledger._db.executemany(f"DELETE FROM {table} WHERE run_id = ?", [(run_id,) for run_id in ids])
        facts = ledger.facts()
        facts["expected_runs"]["evaluation"] -= len(ids)
        ledger.set_facts(facts)
        ledger._db.commit()


def test_an_arm_that_no_rate_trains_is_named_everywhere(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made({"uniform": 0.0, "linear-decay": -0.03, "empirical": 0.0}, rates=GRID))
    without_a_rate(folder, "empirical")
    text = paper_of(folder)
    assert "No rate that was tried trains empirical at rank:4: at each of them a run diverged" in text
    assert "No arm is shown to break" not in text and "no arm does" not in text
    with contextlib.closing(open_to_read(folder)) as ledger:
        found = read_findings(ledger)
        assert [text for text in [render("rates.at_edge", e) for e in found.edges] if text.startswith("empirical")] == [
            "empirical at rank:4 diverges at every rate: add 0.0003 to `learning_rate`, or write `auto` in it."
        ]
        said = render_all("stability.findings", found.stability_findings)
        assert "No rate that was tried trains empirical at rank:4, so that none was chosen." in said
    steps = texts_of(folder)["activeContext"]
    assert "no rate trained empirical" in steps and "did best" not in steps


def test_without_tuning_nobody_says_that_validation_chose(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made())
    change(folder, "UPDATE runs SET status = 'diverged' WHERE arm = 'random' AND phase = 'evaluation' AND seed < 2")
    with contextlib.closing(open_to_read(folder)) as ledger:
        said = " ".join(render_all("stability.findings", read_findings(ledger).stability_findings))
    text = paper_of(folder)
    assert "That is the study's rate; none was tuned." in said and "alidation chooses" not in said
    assert "At the study's rate, which was tuned for no arm, random at rank:4 does." in text
    assert "rate that validation chooses" not in text


def train(folder: Path, **values: object) -> None:
    change_facts(folder, lambda facts: facts["spec"]["train"].update(values))


def test_gradients_that_are_not_clipped_are_told(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made())
    assert "gradients clipped at a norm of 1." in paper_of(folder)
    train(folder, max_grad_norm=None)
    text = paper_of(folder)
    assert "and gradients not clipped." in text and "clipped at" not in text and "gradients were clipped" not in text


@pytest.mark.parametrize(
    ("warmup", "says"),
    [(0.03, "a warm-up of 3 % of the steps,"), (10.0, "a warm-up of 10 steps,"), (1.0, "a warm-up of 1 step,")],
)
def test_a_warm_up_in_steps_is_no_share(tmp_path: Path, warmup: float, says: str) -> None:
    folder = make_study(tmp_path / "study", Made())
    train(folder, warmup=warmup)
    assert says in paper_of(folder)


def test_one_evaluation_seed_has_a_paper_without_spread(tmp_path: Path) -> None:
    text = paper_of(make_study(tmp_path / "study", Made(seeds=1, primary=[])))
    assert "No arm has differences of two evaluation seeds" in text and "each of them of one pair of runs" in text
    assert "standard deviation of" not in text and "reports mostly the seed" not in text


def test_one_arm_with_few_seeds_does_not_speak_for_all(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made())
    change(folder, "UPDATE runs SET status = 'diverged' WHERE arm = 'random' AND phase = 'evaluation' AND seed < 6")
    with contextlib.closing(open_to_read(folder)) as ledger:
        said = " ".join(render_all("comparisons.description", read_findings(ledger)))
    assert said.startswith("Over 2 to 8 seeds, mean differences") and "no exact test can decide" not in said


def test_one_seed_that_is_left_describes_and_no_more(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made(primary=[]))
    change(folder, "UPDATE runs SET status = 'diverged' WHERE phase = 'evaluation' AND seed < 5")
    with contextlib.closing(open_to_read(folder)) as ledger:
        said = " ".join(render_all("comparisons.description", read_findings(ledger)))
    assert said.startswith("Over 3 seeds, ") and "With one seed" not in said
    change(folder, "UPDATE runs SET status = 'diverged' WHERE phase = 'evaluation' AND seed < 7")
    with contextlib.closing(open_to_read(folder)) as ledger:
        said = " ".join(render_all("comparisons.description", read_findings(ledger)))
    assert said.startswith("Over 1 seed, ") and "With one seed nothing is known of other seeds" in said
