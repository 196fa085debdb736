"""`tune: baseline`: the baseline is tuned, arms are checked beside it, and everything follows from finished runs."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.stats.rate_choice import MOST_STEPS, STEP
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.baseline_tuning import BaselineSearch, How
from adaptive_lora.study.matrix import StudyMatrix
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.status import study_status
from adaptive_lora.study.study_file import load_study
from adaptive_lora.study.tuning import TuningResult
from adaptive_lora.training.checkpoint import StepRecord

WriteStudy = Callable[..., Path]
Loss = Callable[[str, str, float, int], float | None]
ARMS = "arms: [uniform, linear-decay, empirical, random]"
OWN = ("arms: [uniform, linear-decay, empirical]", 'budgets: ["rank:2", "rank:8"]')


def baseline_study(study_file: WriteStudy, *more: tuple[str, str], rates: str = "1e-3", name: str = "s.yaml") -> Path:
    changes = (
        (ARMS, OWN[0]),
        ('budgets: ["rank:2"]', OWN[1]),
        ("{evaluation: 2}", "{evaluation: 2, tuning: 3}"),
        ("learning_rate: 1e-2", f"tune: baseline, learning_rate: {rates}"),
        ("controls: none", "controls: all"),
    )
    return study_file(*changes, *more, name=name)


@pytest.fixture
def matrix(study_file: WriteStudy) -> StudyMatrix:
    return load_study(baseline_study(study_file)).matrix


def rounds(matrix: StudyMatrix, loss: Loss, frozen: float | None = 4.0) -> Iterator[BaselineSearch]:
    """The search after each round in which all that it asked for was tried; the last asks for nothing more."""
    done: dict[object, object] = {}
    search = BaselineSearch(matrix, (), frozen)
    while search.asked != done:
        yield search
        done = search.asked  # type: ignore[assignment]
        runs = matrix.tuning_runs(search.asked)
        found = [(r.cell.key, r.learning_rate, r.seed, loss(*r.cell.key, r.learning_rate, r.seed)) for r in runs]
        search = BaselineSearch(matrix, found, frozen)
    yield search


def last(matrix: StudyMatrix, loss: Loss, frozen: float | None = 4.0) -> BaselineSearch:
    return list(rounds(matrix, loss, frozen))[-1]


def bowl(arm: str, budget: str, rate: float, seed: int) -> float:
    """Best at 1.3e-3 for everything, but linear-decay, whose best lies two steps higher."""
    best = 1.3e-3 * (STEP**2 if arm == "linear-decay" else 1)
    noise = 0.002 * float(numpy_stream(seed, arm, budget, f"{rate:g}").standard_normal())
    return 2 + 0.3 * math.log(rate / best) ** 2 + noise + 0.01 * seed


def test_the_baseline_is_tuned_and_arms_follow_unless_they_prefer_another_rate(matrix: StudyMatrix) -> None:
    search = last(matrix, bowl)
    choices = search.choices
    assert set(choices) == {cell.key for cell in matrix.cells} and not search.edges
    for budget in ("rank:1", "rank:2", "rank:4", "rank:8", "rank:16"):
        assert choices["uniform", budget].how is How.VERTEX
        assert choices["uniform", budget].rate == pytest.approx(1.3e-3, rel=0.03)
    for budget in ("rank:2", "rank:8"):
        centre = choices["uniform", budget].rate
        assert choices["empirical", budget].how is How.BASELINE and choices["empirical", budget].rate == centre
        own = choices["linear-decay", budget]
        assert own.how is How.OWN and own.rate is not None
        assert abs(math.log(own.rate / (1.3e-3 * STEP**2), STEP)) < 0.6  # the nearest that was tried
        assert choices["random", budget].rate == centre
        # The shuffled plan is linear-decay's, the first arm that plans without training.
        assert choices["shuffled", budget].rate == own.rate and choices["shuffled", budget].how is How.SOURCE
        assert not {"random", "shuffled"} & {arm for arm, _ in search.asked}
        # An arm that agrees is tried beside the baseline's rate alone, where the baseline has been on its way there.
        low, high = search.asked["empirical", budget]
        assert low < centre < high and {low, high} <= set(search.asked["uniform", budget])
        assert centre in search.asked["linear-decay", budget] and len(search.asked["linear-decay", budget]) > 3
        assert len(search.asked["uniform", budget]) == 3


def test_arms_in_doubt_are_decided_together_and_the_others_at_once(matrix: StudyMatrix) -> None:
    both: Loss = lambda arm, budget, rate, seed: bowl("linear-decay" if arm == "empirical" else arm, budget, rate, seed)  # noqa: E731
    search = last(matrix, both)
    centre = search.choices["uniform", "rank:2"].rate
    cut = [found for found in search.finished if found[:2] != (("empirical", "rank:2"), centre)]
    left = {key for key in search.choices if key not in BaselineSearch(matrix, cut, search.frozen).choices}
    assert left == {("empirical", "rank:2"), ("linear-decay", "rank:2"), ("shuffled", "rank:2")}
    agreeing = last(matrix, lambda arm, budget, rate, seed: bowl("uniform", budget, rate, seed))
    assert all(len(rates) == 2 for (arm, _), rates in agreeing.asked.items() if arm != "uniform")


def test_other_budgets_begin_where_the_first_has_ended(matrix: StudyMatrix) -> None:
    every = list(rounds(matrix, lambda arm, budget, rate, seed: bowl(arm, budget, rate / 10, seed)))
    assert set(every[0].asked) == {("uniform", "rank:2")}
    assert len(every[-1].asked["uniform", "rank:16"]) == 3 and len(every[-1].asked["uniform", "rank:2"]) > 6


def test_the_choice_is_the_same_whatever_the_order(matrix: StudyMatrix) -> None:
    search = last(matrix, bowl)
    for seed in range(3):
        mixed: list[TuningResult] = list(search.finished)
        random.Random(seed).shuffle(mixed)
        again = BaselineSearch(matrix, mixed, search.frozen)
        assert again.choices == search.choices and again.asked == search.asked


def test_what_was_asked_for_stays_asked_for_and_a_choice_stays(matrix: StudyMatrix) -> None:
    for before, after in itertools.pairwise(rounds(matrix, bowl)):
        assert all(set(rates) <= set(after.asked[key]) for key, rates in before.asked.items())
        assert before.choices.items() <= after.choices.items()


def test_expected_runs_end_as_those_that_were_asked_for(matrix: StudyMatrix) -> None:
    every = list(rounds(matrix, bowl))
    expected = [search.expected_runs()[Phase.TUNING] for search in every]
    assert expected[0] == matrix.counts()[Phase.TUNING] == 3 * (5 * 3 + 2 * 2 * 2)
    assert expected[-1] == 3 * sum(map(len, every[-1].asked.values()))
    # linear-decay is tried at the baseline's rate too and goes on for two steps more, at either budget.
    assert expected[-1] - expected[0] == 3 * 2 * 3
    assert every[-1].expected_runs() == every[0].expected_runs() | {Phase.TUNING: expected[-1]}
    assert len(every[-1].finished) == expected[-1]


def test_a_missing_run_leaves_arms_of_its_budget_open(matrix: StudyMatrix) -> None:
    search = last(matrix, bowl)
    missing = next(i for i, found in enumerate(search.finished) if found[0] == ("empirical", "rank:2"))
    cut = BaselineSearch(matrix, [*search.finished[:missing], *search.finished[missing + 1 :]], search.frozen)
    left = {key for key in search.choices if key not in cut.choices}
    assert left == {("empirical", "rank:2"), ("linear-decay", "rank:2"), ("shuffled", "rank:2")}
    assert cut.choices.items() <= search.choices.items()


def test_an_edge_is_told(matrix: StudyMatrix) -> None:
    search = last(matrix, lambda arm, budget, rate, seed: -rate)
    first = search.choices["uniform", "rank:2"]
    assert first.edge and first.how is How.GRID and len(search.asked["uniform", "rank:2"]) >= 3 + MOST_STEPS
    (edge,) = [edge for edge in search.edges if (edge.arm, edge.budget) == ("uniform", "rank:2")]
    assert edge.rate == first.rate and edge.beyond == pytest.approx(edge.rate * STEP, rel=0.05)
    assert {row["arm"] for row in search.facts["rate_choices"] if row["edge"]} >= {"uniform"}


def test_a_cliff_keeps_the_rate_below_it(matrix: StudyMatrix) -> None:
    falling: Loss = lambda arm, budget, rate, seed: None if rate > 1.1e-3 else 2 - 100 * rate + 0.001 * seed  # noqa: E731
    search = last(matrix, falling)
    for budget in ("rank:2", "rank:8"):
        assert search.choices["uniform", budget].cliff and search.choices["uniform", budget].how is How.GRID
        assert search.choices["uniform", budget].rate == 1e-3 and not search.choices["uniform", budget].edge
        assert search.choices["empirical", budget].cliff
        # Without a parabola there is nothing to measure an arm's tilt by: it is tried at the rate and on both sides.
        assert set(search.asked["empirical", budget]) >= {5.6e-4, 1e-3, 1.8e-3}


def test_an_arm_that_diverges_where_the_baseline_does_well_goes_lower(matrix: StudyMatrix) -> None:
    def breaking(arm: str, budget: str, rate: float, seed: int) -> float | None:
        return None if arm == "empirical" and rate > 4e-4 else bowl("uniform", budget, rate, seed)

    search = last(matrix, breaking)
    own = search.choices["empirical", "rank:8"]
    assert own.how is How.OWN and own.rate is not None and own.rate <= 4e-4 and own.cliff and not own.edge


def test_where_nothing_trains_nothing_is_evaluated(matrix: StudyMatrix) -> None:
    def hopeless(arm: str, budget: str, rate: float, seed: int) -> float | None:
        return None if budget == "rank:8" or arm == "empirical" else bowl(arm, budget, rate, seed)

    search = last(matrix, hopeless)
    assert search.untrainable == {key for key in search.choices if key[1] == "rank:8"} | {("empirical", "rank:2")}
    assert {cell.key for cell in matrix.cells} == search.untrainable | set(search.chosen)
    expected = search.expected_runs()
    assert expected[Phase.TUNING] == len(search.finished)
    assert expected[Phase.EVALUATION] == sum(1 for _ in matrix.evaluation_runs(search.chosen))


def test_a_file_that_says_nothing_of_it_stays_the_study_it_was(study_file: WriteStudy) -> None:
    grid = (("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]"), ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"))
    silent = load_study(study_file(*grid))
    said = load_study(study_file(*grid, ("steps: 6", "steps: 6, tune: every-arm"), name="b.yaml"))
    other = load_study(study_file(*grid, ("steps: 6", "steps: 6, tune: baseline"), name="c.yaml"))
    assert "tune" not in silent.spec.model_dump(mode="json")["train"] and silent.identity == said.identity
    assert other.identity != silent.identity
    ids = [{run.run_id({}) for run in study.matrix.evaluation_runs({c.key: 1e-3 for c in study.matrix.cells})}
           for study in (silent, other)]  # fmt: skip
    assert ids[0] == ids[1]  # a run is what it is, however its rate was chosen


def test_the_noise_needs_two_tuning_seeds(study_file: WriteStudy) -> None:
    with pytest.raises(StudyFileError, match="needs two tuning seeds"):
        load_study(baseline_study(study_file, ("tuning: 3", "tuning: 1")))


RESULTS = ["run_id", "phase", "status", "learning_rate", "validation_loss", "test_loss"]


def small(study_file: WriteStudy, rates: str) -> Path:
    return study_file(
        (ARMS, "arms: [uniform, linear-decay]"),
        ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"),
        ("learning_rate: 1e-2", f"tune: baseline, learning_rate: {rates}"),
        ("controls: none", "controls: [random, shuffled, half, twin]"),
    )


def final(folder: Path) -> pd.DataFrame:
    return load_results(folder)[RESULTS].sort_values("run_id", ignore_index=True)


def test_a_study_tuned_by_its_baseline_is_interrupted_and_ends_the_same(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(small(study_file, "3e-2"))
    assert run_study(study, tmp_path / "whole").finished

    class Interrupt(Silent):
        steps = 0

        def step(self, record: StepRecord) -> None:
            self.steps += 1
            if self.steps in (3, 15, 28):
                signal.raise_signal(signal.SIGINT)

    cut, listener = 0, Interrupt()
    for _ in range(4):
        try:
            assert run_study(study, tmp_path / "cut", listener).finished
            break
        except KeyboardInterrupt:
            cut += 1
            status = study_status(tmp_path / "cut")
            assert status.left == status.expected - status.completed - status.diverged > 0
    assert cut == 3
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(tmp_path / "cut"))
    table = load_results(tmp_path / "whole")
    tuning, evaluation = (table[table["phase"] == phase] for phase in (Phase.TUNING, Phase.EVALUATION))
    assert set(tuning["arm"]) == {"uniform", "linear-decay"}
    assert set(evaluation["arm"]) == {"uniform", "linear-decay", "random", "shuffled"}
    with contextlib.closing(open_to_read(tmp_path / "whole")) as ledger:
        rows = ledger.facts()["rate_choices"]
    assert {(row["arm"], row["budget"], row["rate"]) for row in rows} == {
        (run["arm"], run["budget"], run["learning_rate"]) for run in evaluation.to_dict("records")
    }


def test_a_control_with_an_arms_own_ranks_has_that_arms_rate(study_file: WriteStudy) -> None:
    named = ("analysis: {primary: []}", "analysis: {primary: [linear-decay, empirical]}")
    own = ("controls: all", "controls: [own-shuffled, unclipped]")
    more = ("evaluation: 2", "evaluation: 8")
    matrix = load_study(baseline_study(study_file, named, own, more, name="own.yaml")).matrix
    search = last(matrix, bowl)
    control = search.choices["shuffled-empirical", "rank:8"]
    assert control.rate == search.choices["empirical", "rank:8"].rate and control.how is How.SOURCE
    assert "shuffled-linear-decay" not in {cell.arm.name for cell in matrix.cells}  # a shape measures nothing
    assert search.choices["uniform-unclipped", "rank:8"].rate == search.choices["uniform", "rank:8"].rate
