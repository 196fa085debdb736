"""From a question to an answer, on a tiny model that is really trained."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from adaptive_lora import RankPlan
from adaptive_lora.cli.recommend import rows
from adaptive_lora.errors import DataError, StudyFolderError
from adaptive_lora.recommend import sizing
from adaptive_lora.recommend.advice import Advice
from adaptive_lora.recommend.material import look_at
from adaptive_lora.recommend.running import (
    KEPT,
    PEFT,
    PLAN,
    STUDY,
    Basis,
    Request,
    recommend,
    reserve,
    without_runs,
)
from adaptive_lora.recommend.study_text import Question
from adaptive_lora.study import pricing
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.lock import read_lock
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent
from adaptive_lora.training.checkpoint import StepRecord

LADDER = ((4, 2, 4),)


@pytest.fixture(autouse=True)
def _small_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that tests have time for, and a shorter look at the speed."""
    monkeypatch.setattr(pricing, "PATIENCE", 0.1)
    monkeypatch.setattr(sizing, "LADDER", LADDER)
    monkeypatch.setattr(sizing, "MOST_SEEDS", 4)


@pytest.fixture
def question(model_folders: dict[str, Path]) -> Question:
    return Question(str(model_folders["gpt2"]), "demo:fine-tuning", "all-linear", 4, 64, "auto")


class Heard(Silent):
    """What was said; Ctrl-C at one of the updates."""

    def __init__(self, cut_at: int | None = None) -> None:
        self.said: list[str] = []
        self.updates, self.cut_at = 0, cut_at

    def stage(self, text: str) -> None:
        self.said.append(text)

    def step(self, record: StepRecord) -> None:
        self.updates += 1
        if self.updates == self.cut_at:
            signal.raise_signal(signal.SIGINT)


def asked(question: Question, minutes: float = 30.0, late: float = 0.0) -> Request:
    """A request whose clock was started so many seconds ago."""
    return Request(question, minutes, memory=24e9, began=time.monotonic() - late)


@pytest.mark.usefixtures("whole_sources")
def test_a_study_is_sized_locked_trained_and_read(question: Question, tmp_path: Path) -> None:
    out, heard = tmp_path / "out", Heard()
    found = recommend(asked(question), out, heard)
    assert found.basis is Basis.STUDY and not found.at_deadline and found.advice.unfinished == 0
    assert any(text.startswith("the study that fits: 4 updates of 8 records") for text in heard.said)
    lock = read_lock(out / STUDY)
    assert lock is not None
    assert (
        {part["arm"] for part in lock["primary"]} == {"lora-drop", "attention-heavy"} == set(found.advice.where or {})
    )
    runs = load_results(out / STUDY)
    assert set(runs["budget"]) == {"rank:2", "rank:4", "rank:8"}
    assert found.rate in set(runs["learning_rate"]) and set(found.advice.tried_rates) >= {1e-2, 3e-2}
    assert [n.budget for n in found.advice.neighbours] == ["rank:2", "rank:8"]
    plan = RankPlan.load(out / PLAN)
    assert plan.trainable_parameters == found.plan.trainable_parameters
    assert json.loads((out / PEFT / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert found.speed is not None and found.real.seconds == found.speed.alone * found.material.records
    assert found.real.fit is not None and found.real.fit.fits

    again = Heard()
    read = recommend(asked(question), out, again)
    assert again.updates == 0 and asdict(read.advice) == asdict(found.advice)
    assert not any("timing" in text for text in again.said)


def test_no_time_is_answered_by_shape_and_evidence(question: Question, tmp_path: Path) -> None:
    found = recommend(asked(question, minutes=0), tmp_path / "out", Silent())
    assert found.basis is Basis.NOT_ASKED and found.advice.strategy == "uniform" and found.advice.rank == 4
    assert found.advice.rate is None and found.rate == 1e-2 and found.speed is None and found.real.seconds is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PLAN, PEFT}


def test_a_time_too_short_is_said_with_one_that_is_not(question: Question, tmp_path: Path) -> None:
    found = recommend(asked(question, minutes=1.0, late=60.0), tmp_path / "out", Silent())
    assert found.basis is Basis.TOO_SHORT and not (tmp_path / "out" / KEPT).exists()
    assert found.least_minutes is not None and 0 < found.least_minutes < 5


def test_ctrl_c_the_deadline_and_the_same_command_again(question: Question, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):  # after the first tuning updates
        recommend(asked(question), out, Heard(cut_at=2))
    assert (out / KEPT).exists() and StudyPaths(out / STUDY).bank.exists()

    late = asked(question, minutes=1.0, late=60.0 - reserve(60.0) + 1.0)
    heard = Heard()
    cut = recommend(late, out, heard)
    said = " ".join(text for _, text in rows(cut, 1.0))
    assert "Uniform ranks are the default" in said and "trained at it too" not in said
    assert cut.basis is Basis.NOTHING_YET and cut.at_deadline and heard.said[-1].startswith("time is up")
    assert cut.advice.strategy == "uniform" and cut.plan.trainable_parameters == found_plan(out)

    whole = recommend(asked(question), out, Silent())
    assert whole.basis is Basis.STUDY and whole.size == cut.size and whole.advice.unfinished == 0


def found_plan(out: Path) -> int:
    return RankPlan.load(out / PLAN).trainable_parameters


def test_another_question_in_the_same_folder_is_refused(question: Question, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        recommend(asked(question), out, Heard(cut_at=1))
    with pytest.raises(StudyFolderError, match="rank 4 there, 2 here"):
        recommend(asked(replace(question, rank=2)), out, Silent())
    (out / KEPT).write_text("{")
    with pytest.raises(StudyFolderError, match="file is corrupt"):
        recommend(asked(question), out, Silent())
    (out / KEPT).unlink()
    with pytest.raises(StudyFolderError, match="did not begin"):
        recommend(asked(question), out, Silent())


def test_answers_that_are_cut_are_told(question: Question) -> None:
    assert look_at(question).warnings == ()
    (warning,) = look_at(replace(question, max_length=16)).warnings
    assert "of the answers are cut at 16 tokens" in warning


def test_too_few_records_are_refused(question: Question, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(20)]
    (tmp_path / "few.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="has about 20 different records"):
        recommend(asked(replace(question, data=str(tmp_path / "few.json"))), tmp_path / "out", Silent())


@pytest.mark.parametrize(("unfinished", "basis"), [(3, Basis.NOTHING_YET), (0, Basis.DIVERGED)])
def test_a_study_without_a_finished_run_is_out_of_time_or_out_of_rates(unfinished: int, basis: Basis) -> None:
    advice = Advice(rank=8, strategy="uniform", middle="rank:8", rate=None, unfinished=unfinished)
    assert without_runs(advice) is basis


def test_a_study_that_was_never_begun_is_out_of_time() -> None:
    assert without_runs(None) is Basis.NOTHING_YET
