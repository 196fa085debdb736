"""Which rate an arm is judged at: chosen on validation, from a grid that can grow, alike for every arm."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.errors import StudyFileError
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.learning_rate_search import MOST_WIDENED, best_rate, edges, next_rate, search_of
from adaptive_lora.study.ledger import Ledger, SplitResult
from adaptive_lora.study.matrix import StudyMatrix
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.status import ledger_status
from adaptive_lora.study.study_file import load_study

WriteStudy = Callable[..., Path]
Loss = Callable[[str, float], float | None]
ARMS = ("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform, linear-decay]")


def grid(text: str) -> tuple[tuple[str, str], ...]:
    return ("learning_rate: 1e-2", f"learning_rate: {text}"), ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"), ARMS


def tuned(matrix: StudyMatrix, folder: Path, loss: Loss) -> Ledger:
    """A ledger in which every grid that the study comes to is tuned, with these validation losses."""
    folder.mkdir(exist_ok=True)
    ledger = create_or_open(folder)
    done: tuple[float, ...] = ()
    while (rates := search_of(matrix, ledger).grid) != done:
        runs = {run.run_id({}): run for run in matrix.tuning_runs(rates)}
        ledger.register(runs)
        for run_id, run in runs.items():
            if ledger.status_of(run_id).is_finished:
                continue
            found = loss(run.arm.name, run.learning_rate)
            if found is None:
                ledger.fail(run_id, Status.DIVERGED, "loss", 1)
                continue
            result = {"validation": SplitResult(np.array([found]), np.array([1]), np.array([False]))}
            ledger.complete(run_id, {"trainable_parameters": 1}, {"loss": [1.0]}, result, {"plan": 0.0, "train": 0.0})
        done = rates
    return ledger


def bowl(centre: float) -> Loss:
    """The lowest loss at one rate, for both arms."""
    return lambda arm, rate: abs(math.log(rate / centre))


@pytest.mark.parametrize(
    ("text", "centre", "expected"),
    [
        ("[1e-3, 3e-3, 1e-2, auto]", 3e-3, (1e-3, 3e-3, 1e-2)),
        ("[1e-3, 3e-3, auto]", 1.5e-2, (1e-3, 3e-3, 1e-2, 3e-2)),
        ("[1e-3, 3e-3, auto]", 3e-4, (1e-4, 3e-4, 1e-3, 3e-3)),
        ("auto", 1e-3, (3e-4, 1e-3, 3e-3)),
        ("[1e-3, 3e-3]", 1e-1, (1e-3, 3e-3)),
        ("[auto, 2e-3]", 2e-3, (6.3e-4, 2e-3, 6.3e-3)),
    ],
)
def test_auto_widens_the_grid_until_the_best_lies_inside(
    text: str, centre: float, expected: tuple[float, ...], study_file: WriteStudy, tmp_path: Path
) -> None:
    matrix = load_study(study_file(*grid(text))).matrix
    with contextlib.closing(tuned(matrix, tmp_path / "out", bowl(centre))) as ledger:
        search = search_of(matrix, ledger)
        assert search.grid == pytest.approx(expected)
        ledger.set_facts({"name": "small", "expected_runs": search.expected_runs()})
        status = ledger_status(ledger)
        assert status.completed == 2 * 2 * len(expected) and status.expected == status.completed + 2 * 2


def test_widening_ends_and_is_the_same_for_every_arm(study_file: WriteStudy, tmp_path: Path) -> None:
    matrix = load_study(study_file(*grid("[1e-3, 3e-3, auto]"))).matrix
    falling: Loss = lambda arm, rate: -rate if arm == "linear-decay" else abs(math.log(rate / 1e-3))  # noqa: E731
    with contextlib.closing(tuned(matrix, tmp_path / "out", falling)) as ledger:
        search = search_of(matrix, ledger)
        found = search.grid
        # uniform's best was the smallest at first, so that the grid grew once on both sides.
        assert found == pytest.approx((3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)) and len(found) == 3 + MOST_WIDENED
        losses = search.losses(found)
        assert {tuple(sorted(by_rate)) for by_rate in losses.values()} == {found}
        (edge,) = edges(losses, found)
        assert (edge.arm, edge.rate) == ("linear-decay", 0.3) and edge.beyond == 1
        assert search.chosen == {("uniform", "rank:2"): 1e-3, ("linear-decay", "rank:2"): 0.3}


def test_nothing_is_chosen_while_a_tuning_run_is_missing(study_file: WriteStudy, tmp_path: Path) -> None:
    matrix = load_study(study_file(*grid("[1e-3, 3e-3]"))).matrix
    with contextlib.closing(tuned(matrix, tmp_path / "out", bowl(1e-3))) as ledger:
        last = [run for run in ledger.runs() if run["arm"] == "uniform"][-1]["run_id"]
        ledger.fail(last, Status.FAILED, "no room")
        assert set(search_of(matrix, ledger).chosen) == {("linear-decay", "rank:2")}


def test_where_every_rate_diverges_lower_ones_are_tried(study_file: WriteStudy, tmp_path: Path) -> None:
    matrix = load_study(study_file(*grid("[1e-1, 3e-1, auto]"))).matrix
    diverging: Loss = lambda arm, rate: None if rate > 2e-3 else rate  # noqa: E731
    with contextlib.closing(tuned(matrix, tmp_path / "out", diverging)) as ledger:
        assert min(search_of(matrix, ledger).grid) == pytest.approx(1e-3)
        assert search_of(matrix, ledger).chosen["uniform", "rank:2"] == pytest.approx(1e-3)


def test_an_arm_that_diverges_everywhere_does_best_nowhere() -> None:
    """It still asks for lower rates: `auto` widens by that."""
    (edge,) = edges({("a", "rank:8"): {1e-3: [None, None], 3e-3: [2.0, None]}}, [1e-3, 3e-3])
    assert edge.beyond == pytest.approx(3e-4) and not edge.trained
    (edge,) = edges({("a", "rank:8"): {1e-3: [2.0], 3e-3: [None]}}, [1e-3, 3e-3])
    assert edge.trained and edge.rate == 0.001


def test_a_rate_that_diverged_once_is_no_candidate() -> None:
    assert best_rate({1e-3: [2.0, 2.0], 3e-3: [1.0, None]}) == 1e-3
    assert best_rate({1e-3: [2.0, 2.0], 3e-3: [2.0, 2.0]}) == 1e-3
    assert best_rate({1e-3: [None]}) is None


@given(st.integers(-6, 0), st.sampled_from([1, 3]), st.integers(1, 5), st.booleans())
def test_the_next_rate_goes_on_along_one_and_three(exponent: int, first: int, count: int, up: bool) -> None:
    series = [float(f"{m}e{e}") for e in range(-9, 6) for m in (1, 3)]
    at = series.index(float(f"{first}e{exponent}"))
    assert next_rate(series[at : at + count], up) == series[at + count if up else at - 1]


def test_auto_needs_tuning_seeds(study_file: WriteStudy) -> None:
    with pytest.raises(StudyFileError, match="needs tuning seeds"):
        load_study(study_file(("learning_rate: 1e-2", "learning_rate: auto")))


def test_a_study_widens_its_grid_and_evaluates_at_the_chosen_rate(study_file: WriteStudy, tmp_path: Path) -> None:
    """Six steps from 1e-4 learn too little, so that the best rate lies above whatever is tried first."""

    class Hearing(Silent):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def stage(self, text: str) -> None:
            self.heard.append(text)

    study, listener = load_study(study_file(*grid("[1e-5, 1e-4, auto]"))), Hearing()
    assert run_study(study, tmp_path / "out", listener).finished
    table = load_results(tmp_path / "out")
    tuning, evaluation = (table[table["phase"] == phase] for phase in (Phase.TUNING, Phase.EVALUATION))
    rates = sorted(tuning["learning_rate"].unique())
    assert len(rates) > 2 and rates[-1] > 1e-3 and any("adding" in text for text in listener.heard)
    means = tuning.groupby(["arm", "learning_rate"])["validation_loss"].mean()
    for arm in ("uniform", "linear-decay"):
        assert evaluation[evaluation["arm"] == arm]["learning_rate"].unique() == means[arm].idxmin()
    assert tuning.groupby("arm")["learning_rate"].nunique().nunique() == 1
