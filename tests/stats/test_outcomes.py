"""What runs came to, by hand and as the committed studies have it."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from adaptive_lora.cli.terminal import arms_table
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.outcomes import Outcome, count_no_better, gains, outcomes
from adaptive_lora.stats.run_table import Status
from adaptive_lora.stats.stability import summaries
from tests.committed import superseded
from tests.stats.test_stability import run


def table(**row: object) -> pd.DataFrame:
    return pd.DataFrame([run("a", 1, **row)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "outcome", "gain"),
    [
        ({"loss": 2.0}, Outcome.LEARNED, 1.0),
        ({"loss": 2.999}, Outcome.LEARNED, 0.001),
        ({"loss": 3.0}, Outcome.NO_BETTER, 0.0),  # the frozen model's own loss is nothing learned
        ({"loss": 3.5}, Outcome.NO_BETTER, -0.5),
        ({"loss": np.inf}, Outcome.NO_BETTER, -np.inf),
        ({"loss": 2.0, "test_loss": 4.0}, Outcome.LEARNED, 1.0),  # tuning is about validation
        ({"loss": 2.0, "test_loss": 4.0, "phase": "evaluation"}, Outcome.NO_BETTER, -1.0),  # evaluation about test
        ({"loss": 4.0, "test_loss": 2.0, "phase": "evaluation"}, Outcome.LEARNED, 1.0),
    ],
)
def test_a_run_is_held_against_the_frozen_model_on_the_split_of_its_phase(
    row: dict[str, object], outcome: Outcome, gain: float
) -> None:
    assert outcomes(table(**row)).tolist() == [outcome]
    assert gains(table(**row)).tolist() == pytest.approx([gain])


def test_a_diverged_run_has_no_gain_and_what_is_not_known_no_outcome() -> None:
    diverged = table(loss=None, status="diverged")
    assert outcomes(diverged).tolist() == [Outcome.DIVERGED] and gains(diverged).isna().all()
    for unknown in (table(base_loss=None), table(loss=None), table(status="running"), table(status="failed")):
        assert outcomes(unknown).tolist() == [None] and gains(unknown).isna().all()
    elsewhere = table().drop(columns=["validation_loss", "base_loss"])
    assert outcomes(elsewhere).tolist() == [None]


def test_no_better_is_no_word_of_the_ledger() -> None:
    assert not {str(outcome) for outcome in Outcome} - {"diverged"} & {str(status) for status in Status}


@pytest.mark.parametrize(
    ("study", "no_better", "runs"),
    [("alpaca-babyllama-full", 39, 527), ("stability", 87, 390), ("alpaca-stories260k", 7, 476), ("demo", 0, 25)],
)
def test_the_committed_studies_have_so_many_runs_that_learned_nothing(study: str, no_better: int, runs: int) -> None:
    with open_findings(superseded(study)) as found:
        assert (count_no_better(found.runs), len(found.runs)) == (no_better, runs)
        assert (found.runs["status"] == Status.COMPLETED).all()  # "none diverged" said nothing of them
        assert sum(found.no_better.values()) == no_better
        assert sum(cell.no_better for cell in summaries(found.stability)) == no_better


def test_arms_say_how_many_of_their_runs_learned_nothing() -> None:
    rows = [run("uniform", seed, 3.0 + 0.1 * seed, phase="evaluation", strategy="uniform") for seed in range(-1, 2)]
    blank = {"trainable_parameters": 1, "test_exact_match": None, "plan_seconds": 0.0, "train_seconds": 1.0}
    (arm,) = summarise(pd.DataFrame(rows).assign(**blank), "uniform")
    assert (arm.no_better, arm.diverged) == (2, 0)
    assert arm.loss is not None and arm.loss.n == 3  # their losses count
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(arms_table([arm], "uniform", {}))
    assert "uniform (2 no better than the frozen model)" in console.export_text()
