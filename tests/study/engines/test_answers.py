"""A few test records, answered by the frozen model, the baseline and the best other arm, once a study."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.reporting.exported import export_study
from adaptive_lora.study.archive import continue_from
from adaptive_lora.study.engines import answers as module
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.generation import Question, greedy, question_of, stop_tokens

WriteStudy = Callable[..., Path]
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]")
FEW = ("engine: bank", "report: {answers: 3}")


def answers(folder: Path) -> Any:
    with contextlib.closing(open_to_read(folder)) as ledger:
        return ledger.facts().get("answers")


class Heard(Silent):
    """Everything that was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short study of the embedded model that answers all of its test records."""
    folder = tmp_path_factory.mktemp("answered")
    (folder / "study.yaml").write_text(
        'name: answered\nmodel: {name: demo}\ndata: {source: "demo:pretraining", train: 24, validation: 5, test: 20}\n'
        'budgets: ["rank:2", "rank:4"]\narms: [uniform, linear-decay]\nseeds: {evaluation: [7, 3]}\n'
        "train: {steps: 6, batch_size: 4, learning_rate: 1e-2}\nanalysis: {primary: [], margin: 0.01}\n"
        "controls: none\nreport: {answers: 20}\n"
    )
    run_study(load_study(folder / "study.yaml"), folder / "out")
    return folder / "out"


def test_an_answer_is_the_reference_exactly_where_the_evaluation_says_so(answered: Path) -> None:
    """Evaluation predicts every token behind the right ones, in one pass of a bank or of the model: an answer that is
    right to its end is the one that greedy generation gives, and no other is."""
    said, right = answers(answered), 0
    assert [record["place"] for record in said["records"]] == list(range(20))
    with contextlib.closing(open_to_read(answered)) as ledger:
        for number, speaker in enumerate(said["speakers"]):
            own = ledger.by_record(speaker["run_id"] or BASE, "test")
            assert own is not None
            for record in said["records"]:
                answer = record["answers"][number]
                same = answer["ended"] and answer["text"] == record["reference"]
                assert same == own.exact[record["place"]]
                right += same
    assert right >= 3


def test_the_best_other_arm_is_beside_the_baseline_at_its_budget_and_seed(answered: Path) -> None:
    frozen, baseline, best = answers(answered)["speakers"]
    with contextlib.closing(open_to_read(answered)) as ledger:
        totals, runs = ledger.totals(), {run["run_id"]: run for run in ledger.runs()}
    losses = {
        budget: sum(totals[run_id, "test"]["nll"] for run_id, run in runs.items()
                    if (run["arm"], run["budget"]) == ("linear-decay", budget))
        for budget in ("rank:2", "rank:4")
    }  # fmt: skip
    assert (frozen["role"], frozen["run_id"]) == ("frozen", None)
    assert (baseline["arm"], best["arm"]) == ("uniform", "linear-decay")
    assert best["budget"] == baseline["budget"] == min(losses, key=lambda budget: losses[budget])
    for speaker in (baseline, best):  # the first of the seeds, as they are written
        run = runs[speaker["run_id"]]
        assert (run["seed"], run["arm"], run["budget"]) == (7, speaker["arm"], speaker["budget"])


def test_they_are_made_once_and_go_on_where_they_were_cut(study_file: WriteStudy, tmp_path: Path) -> None:
    study, out = load_study(study_file(TWO_ARMS, FEW)), tmp_path / "out"
    run_study(study, out)
    whole = answers(out)
    assert len(whole["records"]) == 3 and all(None not in record["answers"] for record in whole["records"])
    heard = Heard()
    run_study(study, out, heard)
    assert answers(out) == whole and not any("answers" in text for text in heard.said)

    cut = json.loads(json.dumps(whole))
    for record in cut["records"][1:]:
        record["answers"][1] = None
    with contextlib.closing(create_or_open(out)) as ledger:
        ledger.set_facts({"answers": cut})
    run_study(study, out, heard)
    assert answers(out) == whole
    assert [text for text in heard.said if "answers" in text] == [
        "answers for the page: uniform at rank:2, seed 0 (2 of 3)"
    ]


def test_an_interrupt_keeps_what_was_said(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out, real, calls = load_study(study_file(TWO_ARMS, FEW)), tmp_path / "out", module.greedy, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(module, "greedy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out)
    kept = answers(out)
    assert sum(answer is not None for record in kept["records"] for answer in record["answers"]) == 4
    run_study(study, out)
    assert len(calls) == 5 + 5
    assert not any(None in record["answers"] for record in answers(out)["records"])


def test_without_adapters_the_page_can_say_why(study_file: WriteStudy, tmp_path: Path) -> None:
    study, out = load_study(study_file(TWO_ARMS, FEW)), tmp_path / "out"
    silent = load_study(study_file(TWO_ARMS, ("engine: bank", "report: {answers: 0}"), name="silent.yaml"))
    run_study(silent, out)
    assert answers(out) is None
    shutil.move(out / "adapters", tmp_path / "kept")
    run_study(study, out)
    missing = answers(out)["missing"]
    assert missing == {"reason": "adapters", "runs": ["uniform at rank:2, seed 0", "linear-decay at rank:2, seed 0"]}
    shutil.move(tmp_path / "kept", out / "adapters")
    run_study(study, out)
    whole = answers(out)
    assert "missing" not in whole

    export_study(out, tmp_path / "export")  # what is exported goes on with its answers, though it has no adapters
    continue_from(tmp_path / "export", study, tmp_path / "again")
    run_study(study, tmp_path / "again")
    assert answers(tmp_path / "again") == whole and not (tmp_path / "again" / "adapters").exists()


def test_a_model_that_cannot_answer_spoils_no_study(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out, heard = load_study(study_file(TWO_ARMS, FEW)), tmp_path / "out", Heard()
    monkeypatch.setattr(module, "greedy", lambda *_: (_ for _ in ()).throw(NotImplementedError("no cache")))
    assert run_study(study, out, heard).finished
    assert answers(out)["missing"] == {"reason": "error", "error": "NotImplementedError: no cache"}
    assert heard.said[-1] == "warning: no answers for the page: NotImplementedError: no cache"
    monkeypatch.undo()
    run_study(study, out)
    assert "missing" not in answers(out)


def test_a_damaged_adapter_is_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    study, out = load_study(study_file(TWO_ARMS, FEW)), tmp_path / "out"
    run_study(study, out)
    whole = answers(out)
    baseline, best = (StudyPaths(out).adapter(speaker["run_id"]) for speaker in whole["speakers"][1:])
    shutil.copy(best / "adapter_model.safetensors", baseline)  # other ranks
    for why in ("is damaged: not what was written", "its plan says"):
        with contextlib.closing(create_or_open(out)) as ledger:
            ledger.set_facts({"answers": None})
        run_study(study, out)
        assert why in answers(out)["missing"]["error"]
        (baseline / "digests.json").unlink(missing_ok=True)  # as a version before had none
    frozen = [record["answers"][0] for record in answers(out)["records"]]
    assert frozen == [record["answers"][0] for record in whole["records"]]


def test_greedy_is_greedy_whatever_the_model_asks_for(base: FrozenBase) -> None:
    prompt = (5, 9, 200)

    def expected(length: int) -> list[int]:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(length):
                ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    own = base.model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.bad_words_ids = 5.0, True, 9.0, [[expected(1)[0]]]
    answer = greedy(base, prompt, 8, (), lambda: False)
    assert list(answer.ids) == expected(8) and not answer.ended
    stop = expected(8)[4]
    cut = greedy(base, prompt, 8, (stop,), lambda: False)
    assert list(cut.ids) == expected(8)[: expected(8).index(stop)] and cut.ended
    assert base.model.generation_config is own
    with pytest.raises(KeyboardInterrupt):
        greedy(base, prompt, 8, (), lambda: True)


def test_a_question_is_what_comes_before_the_first_stretch_that_is_learnt(gpt2: FrozenBase) -> None:
    assert question_of(Example((5, 6, 7, 8, 9), 2, False, unlearnt=((3, 4),))) == Question((5, 6), (7,))
    assert question_of(Example((5, 6, 7), 0, False)) == Question((5,), (6, 7))  # plain text: something to begin with
    end, other = gpt2.tokenizer.eos_token_id, gpt2.tokenizer.convert_tokens_to_ids("a")
    gpt2.tokenizer.add_special_tokens({"additional_special_tokens": ["a"]})  # as the end of a chat's turn
    assert stop_tokens(gpt2, [Question((5,), (6, 7))]) == (end,)
    assert stop_tokens(gpt2, [Question((5,), (other, 6, other, 7))]) == tuple(sorted((end, other)))
