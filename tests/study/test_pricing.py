"""What an estimate times: the first steps, and no more of them than there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures import hooks
from adaptive_lora.measures.measuring import MeasuringProgress, in_goes
from adaptive_lora.measures.request import Measurement
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study import estimated_cost, pricing
from adaptive_lora.study.engines.answers import places_of
from adaptive_lora.study.estimate import estimate
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.plan_task import needed
from adaptive_lora.study.prepare import PreparedStudy, prepare
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.generation import question_of
from tests.conftest import PATIENCE

WriteStudy = Callable[..., Path]


@pytest.fixture(autouse=True)
def _with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as for everyone else; other tests have little."""
    for module in (pricing, estimated_cost):
        monkeypatch.setattr(module, "PATIENCE", PATIENCE)


@pytest.fixture
def prepared(study_file: WriteStudy) -> PreparedStudy:
    """One measured arm, eight calibration batches, runs of one update."""
    return prepare(load_study(study_file(("steps: 6", "steps: 1"))))


def goes(prepared: PreparedStudy) -> list[list[Measurement]]:
    runs = [Run(Phase.EVALUATION, cell, 1e-3, 0) for cell in prepared.study.matrix.cells]
    return in_goes(m for run in runs for m in needed(prepared.plan_task(run)))


@pytest.mark.parametrize("patience", [0.0, 1.5])
def test_a_study_of_one_update_has_an_estimate(
    prepared: PreparedStudy, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(estimated_cost, "PATIENCE", patience)
    monkeypatch.setattr(pricing, "PATIENCE", patience)
    found = estimate(prepared)
    assert found.steps == 1 and found.seconds > found.planning_seconds > 0
    assert set(found.parameters.values()) == {found.parameters["uniform at rank:2"]}


def test_what_is_measured_ends_once_its_price_is_known(
    prepared: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (together,), seen = goes(prepared), list[MeasuringProgress]()
    whole = pricing.seconds_of(together, seen.append)
    steps = [now.step for now in seen if now.step]
    assert steps == list(range(1, seen[-1].steps + 1)) and whole > 0
    for patience, waited_for in ((0.0, [1]), (1e9, steps)):
        seen.clear()
        monkeypatch.setattr(pricing, "PATIENCE", patience)
        assert pricing.seconds_of(together, seen.append) > 0
        assert [now.step for now in seen if now.step] == waited_for


def test_what_was_not_waited_for_takes_its_time_by_tokens(
    prepared: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is computed in parts is not waited for to its end."""
    (together,), seen = goes(prepared), list[MeasuringProgress]()
    batches = together[0].request.batches
    monkeypatch.setattr(hooks, "ACTIVATIONS", 1)  # a record at a time
    pricing.seconds_of(together, seen.append)
    tokens = [len(example.ids) for batch in batches for example in batch]
    assert len(set(tokens)) > 1 and max(map(len, batches)) > 1
    told = [now for now in seen if now.step]
    assert [(now.step, now.steps) for now in told] == [(i + 1, len(tokens)) for i in range(len(tokens))]
    assert [now.share for now in told] == pytest.approx(np.cumsum(tokens) / sum(tokens))
    assert pricing._extended([(2.0, 0.25)]) == 8.0
    assert pricing._extended([(9.0, 0.1), (11.0, 0.3), (13.0, 0.5)]) == pytest.approx(18.0)  # the first warms up


def test_evaluation_is_timed_on_as_many_records_as_patience_allows(
    prepared: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, clock, asked = prepared.splits.test * 100, [0.0], list[list[Example]]()
    total = sum(len(record.ids) for record in records)

    def evaluated(some: Sequence[Example]) -> None:
        asked.append(list(some))
        clock[0] += sum(len(record.ids) for record in some) / 1000

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    found = pricing.seconds_per_record(records, evaluated)
    assert found == pytest.approx(total / len(records) / 1000)
    tokens = [sum(len(record.ids) for record in some) for some in asked]
    assert len(asked[0]) == 1 and 450 < tokens[1] < 550 and 900 < tokens[2] < 1100  # a second's worth


def test_an_error_that_is_met_is_told(prepared: PreparedStudy) -> None:
    (together,) = goes(prepared)
    prepared.base.model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        pricing.seconds_of(together, lambda now: None)


@pytest.mark.parametrize("answers", [0, 2])
def test_answers_are_priced_by_a_few_tokens_of_one(
    study_file: WriteStudy, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    """A second for the first token, and half of one for each that follows: two who answer as long as the references,
    one as long as the longest."""
    study = load_study(study_file(("seeds:", f"report: {{answers: {answers}}}\nseeds:")))
    prepared, asked = prepare(study), []
    monkeypatch.setattr(estimated_cost, "greedy", lambda base, prompt, limit, *rest: asked.append(limit))
    monkeypatch.setattr(estimated_cost, "_seconds", lambda do: [do(), 1 + 0.5 * (asked[-1] - 1)][1])
    places = places_of(study, len(prepared.splits.test), answers)
    lengths = [len(question_of(prepared.splits.test[place]).reference) for place in places]
    tokens = 2 * sum(lengths) + answers * max(lengths, default=0)
    assert estimated_cost.answer_seconds(prepared) == pytest.approx(3 * answers + 0.5 * (tokens - 3 * answers))
    assert asked == [1, 5][: 2 * answers]
