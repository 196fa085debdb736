"""Studies that are judged by right answers: greedy, batch by batch, once a run, and in percentage points."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.foreign.judging import Asked, judge_runs
from adaptive_lora.foreign.sources import Reading, read_runs
from adaptive_lora.reporting.exported import export_study, open_findings
from adaptive_lora.reporting.results import load_results
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.study.archive import continue_from
from adaptive_lora.study.engines import answer_match as module
from adaptive_lora.study.engines.scores import scorer_of
from adaptive_lora.study.estimated_cost import answering_seconds
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.lock import read_lock
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.runner import Limits, Silent, run_study
from adaptive_lora.study.status import study_status
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.generation import Answer, can_answer_together, greedy, greedy_together
from adaptive_lora.training.peft_check import uniform_plan

WriteStudy = Callable[..., Path]
TEXT = """\
name: answered
model: {name: demo}
data: {source: "demo:pretraining", train: 24, validation: 5, test: 20, max_length: 64}
budgets: ["rank:2"]
arms: [uniform, linear-decay, random]
seeds: {evaluation: 4}
train: {steps: 4, batch_size: 4, learning_rate: 5e-2}
analysis: {metric: METRIC, primary: [linear-decay], margin: 4.0}
controls: none
report: {answers: 0}
"""
CHOSEN = "{answers: auto, arms: [linear-decay]}"


class Counted:
    """Batches that were answered; after `until` of them Ctrl-C is pressed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: int | None = None) -> None:
        self.batches, self._until = 0, until
        monkeypatch.setattr(module, "greedy_together", self)

    def __call__(self, base: Any, prompts: Sequence[Any], *rest: Any) -> list[Answer]:
        found = greedy_together(base, prompts, *rest)
        self.batches += 1
        return found

    def pressed(self) -> bool:
        return self._until is not None and self.batches >= self._until


class Heard(Silent):
    """What was said of scoring."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said += [text] if text.startswith(("scoring", "opening")) else []


def scores(out: Path) -> dict[str, list[float]]:
    """Run -> value by record."""
    with contextlib.closing(open_to_read(out)) as ledger:
        (key,) = ledger.facts()["scored_by"]
        found = {run_id: ledger.scores.values(run_id, key) for run_id in ledger.scores.means(key)}
    return {run_id: values.tolist() for run_id, values in found.items() if values is not None}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[int]]:
    """A study of two chosen arms, cut in the midst of its second run's answers; what was said, and batches a call."""
    folder, heard = tmp_path_factory.mktemp("answered"), Heard()
    file = folder / "study.yaml"
    file.write_text(TEXT.replace("METRIC", CHOSEN))
    counts = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for until in (3, None, None):  # of 2 batches a model
            counted = Counted(monkeypatch, until)
            with pytest.raises(KeyboardInterrupt) if until else contextlib.nullcontext():
                run_study(load_study(file), folder / "out", heard, limits=Limits(counted.pressed))
            counts.append(counted.batches)
    return folder / "out", heard.said, counts


def test_an_interrupted_evaluation_goes_on_behind_its_last_batch(answered: tuple[Path, list[str], list[int]]) -> None:
    out, said, counts = answered
    assert counts == [3, 15, 0]  # the frozen model and eight runs of two batches each, none of them twice
    assert said[0] == "opening answer match" and said[1] == "scoring by answer match: the frozen model (1 of 9)"
    assert study_status(out).finished and len(scores(out)) == 9
    with contextlib.closing(open_to_read(out)) as ledger:
        assert ledger.rows("score_parts") == []


def test_a_record_is_right_where_greedy_answers_it_so(answered: tuple[Path, list[str], list[int]]) -> None:
    out, found = answered[0], scores(answered[0])
    with contextlib.closing(open_to_read(out)) as ledger:
        basis, records = next(iter(ledger.facts()["scored_by"].items()))
        names = ledger.scores.records(basis)
        exact = {run_id: own.exact for run_id in found if (own := ledger.by_record(run_id, "test")) is not None}
    assert records == {"tokens": 10, "records": 20, "left_out": 0, "forms": records["forms"]}
    assert sum(records["forms"].values()) == 20 and names is not None and names[3].startswith("3:")
    assert set(np.unique(list(found.values()))) == {0.0, 1.0}
    for run_id, values in found.items():  # word for word is right too, and these tasks leave little else
        assert all(np.array(values)[exact[run_id]] == 1) and sum(values) <= exact[run_id].sum() + 2
    assert len({tuple(values) for values in found.values()}) > 2  # adapters differ
    study = load_study(out.parent / "study.yaml")
    scorer = scorer_of(prepare(study))
    assert isinstance(scorer, module.AnswerScorer)
    (limit, places), *_ = scorer.batches
    alone = [greedy(scorer.base, prompt, limit, scorer.stops, lambda: False) for prompt in scorer.prompts(places)]
    right = [
        module.is_right(scorer._text(own.ids), scorer._references[p]) for own, p in zip(alone, places, strict=True)
    ]
    assert right == [found[BASE][place] == 1.0 for place in places]


def test_arms_that_are_left_out_have_no_value_and_no_zero(answered: tuple[Path, list[str], list[int]]) -> None:
    out = answered[0]
    with open_findings(out) as found:
        by_arm = found.runs.groupby("arm")["test_answer_match"].agg(["count", "min", "max"])
        left_out = next(arm for arm in found.arms if arm.arm == "random")
        assert by_arm["count"].to_dict() == {"random": 0, "linear-decay": 4, "uniform": 4}
        assert by_arm.loc["uniform", "max"] > 1  # per cent, as differences are in points
        assert left_out.score is None and left_out.difference is None and left_out.loss is not None
        assert found.status().unscored == 0
        assert "Only uniform and linear-decay were scored" in render("captions.arms", found)
        means = {own: 100 * np.mean(values) for own, values in scores(out).items()}
        assert found.runs.set_index("run_id")["test_answer_match"].dropna().to_dict() == pytest.approx(
            {own: mean for own, mean in means.items() if own != BASE}
        )
        assert f"{means[BASE]:.4g} in answer match" in render("captions.arms", found)


def test_verdicts_are_in_percentage_points_and_higher_is_better(answered: tuple[Path, list[str], list[int]]) -> None:
    out, found = answered[0], scores(answered[0])
    lock = read_lock(out)
    assert lock is not None and lock["hypotheses"] == [
        "linear-decay differs in answer match from uniform at rank:2, or is equivalent to it within 4 percentage points"
    ]
    with open_findings(out) as study:
        (judged,) = study.judged.values()
        runs = study.runs[study.runs["status"] == "completed"]
        arms = [
            [np.mean(found[r]) for r in runs.loc[runs["arm"] == arm, "run_id"]] for arm in ("linear-decay", "uniform")
        ]
        assert judged.mean == pytest.approx(100 * (np.mean(arms[0]) - np.mean(arms[1]))) and judged.records == 20
        assert judged.interval is not None and judged.interval.low is not None
        sentence = render_all("comparisons.verdicts", study)[0]
        assert "percentage points of answer match, 95 % interval [" in sentence
        assert "Margin: ±4 percentage points" in render("captions.verdicts", study)
        assert study.design.records == 20 and not study.design.own_records
    (own,) = judge_runs(read_runs([str(out)], Reading()), Asked("uniform", arms=("linear-decay",), margin=0.04))
    assert own.difference == pytest.approx(judged.mean / 100) and own.interval is not None  # shares, elsewhere
    assert own.interval.low == pytest.approx(judged.interval.low / 100)


def test_an_export_has_every_record_and_goes_on(
    answered: tuple[Path, list[str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, export, on = answered[0], tmp_path / "export", tmp_path / "on"
    export_study(out, export)
    assert load_results(out).judge().equals(load_results(export).judge())
    (kept,), (own,) = (
        judge_runs(read_runs([str(path)]), Asked("uniform", arms=("linear-decay",), margin=0.04))
        for path in (export / "scores.csv", out)
    )
    assert kept.difference == own.difference and kept.interval == own.interval
    counted, study = Counted(monkeypatch), load_study(out.parent / "study.yaml")
    assert continue_from(export, study, on) == 12 and run_study(study, on).finished
    assert counted.batches == 0 and scores(on) == scores(out)


@pytest.mark.parametrize(
    ("metric", "margin", "why"),
    [
        ("answer_match", "0.02", "analysis.margin: .* is in percentage points, and 0.02 .* write 2 if 0.02 was meant"),
        ("{answers: auto, arms: [uniform]}", "4.0", "metric.arms: linear-decay would get no verdict"),
        (
            "{answers: auto, arms: [lin-decay]}",
            "4.0",
            "metric.arms: no arm is called 'lin-decay' .did you mean 'linear-d",
        ),
        ("{answers: numbers}", "4.0", "metric.answers: expected 'auto', 'marked', 'number' or 'text', got 'numbers'"),
        (
            "{answers: auto, token: 3}",
            "4.0",
            "metric.token: unknown key .did you mean 'tokens'.*; keys here: answers, tok",
        ),
        ("{task: x, metric: helpfulness}", "4.0", "nothing says whether a higher 'helpfulness' is better"),
        ("{task: x, better: lower}", "4.0", "a higher 'acc' is better, got `better: lower`; leave `better` out"),
        ("{task: x, shots: 2}", "4.0", "metric.shots: unknown key .*keys here: task, metric, filter"),
    ],
)
def test_what_is_wrong_with_a_metric_is_said(tmp_path: Path, metric: str, margin: str, why: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(TEXT.replace("METRIC", metric).replace("margin: 4.0", f"margin: {margin}"))
    with pytest.raises(StudyFileError, match=why):
        load_study(file)


def test_answers_without_what_counts_are_refused_before_anything_is_written(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    file = study_file(("analysis: {primary: []}", "analysis: {primary: [], metric: {answers: marked}, margin: 1.0}"))
    with pytest.raises(
        StudyFileError, match=r"`answers: marked` finds nothing in 20 of 20 answers of the test records"
    ):
        run_study(load_study(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_estimate_counts_answers(study_file: WriteStudy) -> None:
    file = study_file(("analysis: {primary: []}", "analysis: {primary: [], metric: answer_match, margin: 1.0}"))
    prepared = prepare(load_study(file))
    scorer = scorer_of(prepared)
    assert isinstance(scorer, module.AnswerScorer) and max(scorer.expected_tokens()) == scorer.tokens
    assert answering_seconds(prepared, scorer, uniform_plan(prepared.modules)) > 0
    assert answering_seconds(prepared, None, uniform_plan(prepared.modules)) == 0


def test_prompts_are_answered_together_as_they_are_alone(base: FrozenBase) -> None:
    prompts = [(5, 9, 200), (7,), tuple(range(20, 40)), (300, 301)]
    alone = [greedy(base, prompt, 8, (), lambda: False) for prompt in prompts]
    stops = (alone[1].ids[2],)
    assert greedy_together(base, prompts, 8, (), lambda: False) == alone
    together = greedy_together(base, prompts, 8, stops, lambda: False)
    assert together == [greedy(base, prompt, 8, stops, lambda: False) for prompt in prompts]
    assert together[1].ended and together[1].ids == alone[1].ids[: alone[1].ids.index(stops[0])]
    assert can_answer_together(base, prompts, ())


def test_a_model_that_padding_changes_is_asked_one_by_one(gpt2: FrozenBase) -> None:
    def blind(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": None, "position_ids": None}

    prompts = [(5, 9, 200), (7,), tuple(range(20, 40))]
    handle = gpt2.model.register_forward_pre_hook(blind, with_kwargs=True)
    assert not can_answer_together(gpt2, prompts, ())
    handle.remove()
    assert can_answer_together(gpt2, prompts, ())
