"""Studies end to end on a tiny model: every arm on budget, nothing lost however it is cut."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.errors import LedgerDamaged, StudyFileError, StudyFolderError
from adaptive_lora.recipes import recipe
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.study import prepare
from adaptive_lora.study.folder import StudyPaths, exclusive
from adaptive_lora.study.lock import read_lock
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import load_results, ranks_table
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.status import study_status
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import StepRecord
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
RESULTS = ["run_id", "status", "validation_loss", "test_loss", "trainable_parameters"]


def final(folder: Path) -> pd.DataFrame:
    """What must be equal however a study came to its end."""
    return load_results(folder)[RESULTS].sort_values("run_id", ignore_index=True)


def test_a_study_from_file_to_results(study_file: WriteStudy, tmp_path: Path) -> None:
    outcome = run_study(load_study(study_file()), tmp_path / "out")
    table = load_results(tmp_path / "out")

    assert outcome.finished and outcome.completed == len(table) == 8
    assert table["trainable_parameters"].nunique() == 1
    assert (table["test_loss"] < table["base_loss"]).all()
    assert table["run_id"].is_unique
    for run_id in table["run_id"]:
        files = {path.name for path in StudyPaths(tmp_path / "out").adapter(run_id).iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors", "digests.json", "plan.json"}
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        ranks = ranks_table(ledger)
    by_seed = ranks.pivot_table(index=["arm", "module"], columns="seed", values="rank")
    remade = (by_seed[0] != by_seed[1]).groupby("arm").any()
    assert remade.to_dict() == {"uniform": False, "linear-decay": False, "empirical": True, "random": True}


def test_what_is_done_is_not_done_again(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file())
    run_study(study, tmp_path / "out")
    before = (load_results(tmp_path / "out"), StudyPaths(tmp_path / "out").ledger.stat().st_size)

    class NoStep(Silent):
        def step(self, record: StepRecord) -> None:
            raise AssertionError("a finished run was trained again")

    assert run_study(study, tmp_path / "out", NoStep()).finished
    pd.testing.assert_frame_equal(load_results(tmp_path / "out"), before[0])


def test_other_arms_change_nothing_for_an_arm(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(study_file()), tmp_path / "all")
    alone = study_file(("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform, random]"), name="b.yaml")
    run_study(load_study(alone), tmp_path / "some")
    merged = final(tmp_path / "all").merge(final(tmp_path / "some"), on="run_id")
    assert len(merged) == 4
    assert (merged["test_loss_x"] == merged["test_loss_y"]).all()


def test_a_grid_is_tuned_on_validation_with_other_seeds(study_file: WriteStudy, tmp_path: Path) -> None:
    path = study_file(
        ("learning_rate: 1e-2", "learning_rate: [1e-6, 1e-2]"),
        ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"),
        ("[uniform, linear-decay, empirical, random]", "[uniform, random]"),
    )
    outcome = run_study(load_study(path), tmp_path / "out")
    table = load_results(tmp_path / "out")
    tuning, evaluation = (table[table["phase"] == phase] for phase in ("tuning", "evaluation"))
    assert outcome.expected == len(table) == 8 + 4
    assert tuning["test_loss"].isna().all() and tuning["validation_loss"].notna().all()
    assert set(evaluation["learning_rate"]) == {1e-2}  # the other rate hardly moves
    assert not set(tuning["seed"]) & set(evaluation["seed"])


def test_a_run_that_diverges_is_recorded_and_leaves_the_others(study_file: WriteStudy, tmp_path: Path) -> None:
    path = study_file(
        ("learning_rate: 1e-2", "learning_rate: 9.9"),
        ("dropout: 0.1", "max_grad_norm: null"),
        ("[uniform, linear-decay, empirical, random]", "[uniform, {strategy: random, scaling: {reference: 1e38}}]"),
    )
    outcome = run_study(load_study(path), tmp_path / "out")
    table = load_results(tmp_path / "out").set_index("arm")
    assert (outcome.completed, outcome.diverged, outcome.failed) == (2, 2, 0)
    assert outcome.finished
    assert (table.loc["random", "status"] == "diverged").all() and table.loc["random", "test_loss"].isna().all()
    assert table.loc["random", "step"].notna().all() and table.loc["random", "error"].str.contains("not finite").all()


@pytest.mark.parametrize("engine", ["bank", "reference"])
def test_a_failure_is_recorded_and_tried_again(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    arms = ("[uniform, linear-decay, empirical, random]", "[uniform, random]")
    study = load_study(study_file(arms, ("engine: bank", f"engine: {engine}")))
    from adaptive_lora.study.engines import finish as common

    real = common.save_adapter
    monkeypatch.setattr(common, "save_adapter", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    outcome = run_study(study, tmp_path / "out")
    assert (outcome.failed, outcome.finished) == (4, False)
    assert load_results(tmp_path / "out")["error"].str.contains("OSError: disk full").all()

    monkeypatch.setattr(common, "save_adapter", real)
    assert run_study(study, tmp_path / "out").completed == 4


def test_an_interrupt_keeps_the_run_and_the_same_call_goes_on(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(REFERENCE))
    run_study(study, tmp_path / "whole")

    class Interrupt(Silent):
        steps = 0

        def step(self, record: StepRecord) -> None:
            self.steps += 1
            if self.steps in (4, 15):
                signal.raise_signal(signal.SIGINT)

    listener = Interrupt()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "cut", listener)
        assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    assert run_study(study, tmp_path / "cut", listener).finished
    assert listener.steps == 8 * 6  # no step was lost or repeated
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(tmp_path / "cut"))


KILLED = """\
import os, signal, sys
from pathlib import Path
from adaptive_lora.study import prepare
from adaptive_lora.study.study_file import load_study
from adaptive_lora.study.runner import Silent, run_study

prepare.DEMO_RECORDS = int(sys.argv[4])

class Kill(Silent):
    steps = 0
    def step(self, record):
        self.steps += 1
        if self.steps == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

run_study(load_study(Path(sys.argv[1])), Path(sys.argv[2]), Kill(), checkpoint_seconds=0)
"""


def test_kill_9_and_the_same_command_end_in_the_same_results(study_file: WriteStudy, tmp_path: Path) -> None:
    """Bit for bit: the bank is formed again as it was. `bench/faults.py` does it at sixty moments."""
    path = study_file()
    run_study(load_study(path), tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "cut"), "2", str(prepare.DEMO_RECORDS)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert run_study(load_study(path), tmp_path / "cut").finished
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_a_finished_study_with_damaged_losses_is_not_called_complete(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(
        study_file(("[uniform, linear-decay, empirical, random]", "[uniform]"), ("steps: 6", "steps: 1"))
    )
    assert run_study(study, tmp_path / "out").finished
    with contextlib.closing(sqlite3.connect(StudyPaths(tmp_path / "out").ledger)) as db, db:
        db.execute("UPDATE evaluations SET nll_by_record = x'00' WHERE run_id != 'base'")  # not in runs.csv
    with pytest.raises(LedgerDamaged, match="adaptive-lora recover"):
        run_study(study, tmp_path / "out")


def test_a_folder_whose_writer_was_killed_at_its_first_breath_can_be_run(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    create_or_open(tmp_path / "out").close()  # tables, and not one fact
    study = load_study(study_file(("[uniform, linear-decay, empirical, random]", "[uniform]")))
    assert run_study(study, tmp_path / "out").finished


def test_a_run_cut_while_it_is_evaluated_is_not_trained_again(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptive_lora.study.engines import reference as runner

    real, calls = runner.evaluate, iter(range(100))

    def cut(*arguments: object) -> object:
        if next(calls) == 0:  # the first run's validation
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    class Count(Silent):
        steps = 0

        def step(self, record: StepRecord) -> None:
            self.steps += 1

    monkeypatch.setattr(runner, "evaluate", cut)
    study = load_study(study_file(("[uniform, linear-decay, empirical, random]", "[uniform]"), REFERENCE))
    listener = Count()
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", listener)
    assert run_study(study, tmp_path / "out", listener).finished
    assert listener.steps == 2 * 6


def test_a_folder_in_use_is_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file())
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out"), pytest.raises(StudyFolderError, match="in use"):
        run_study(study, tmp_path / "out")


def test_a_folder_of_another_study_is_refused_with_the_difference(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(study_file(("[uniform, linear-decay, empirical, random]", "[uniform]"))), tmp_path / "out")
    before = final(tmp_path / "out")
    changed = study_file(("[uniform, linear-decay, empirical, random]", "[uniform]"), ("steps: 6", "steps: 7"))
    with pytest.raises(StudyFolderError, match=r"belongs to another study \('small'\).*train.steps: 6 there, 7 here"):
        run_study(load_study(changed), tmp_path / "out")
    pd.testing.assert_frame_equal(final(tmp_path / "out"), before)


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        ([("train: 24", "train: 99999")], "the splits ask for"),
        ([('"demo:fine-tuning"', '"demo:fine-tunning"')], "did you mean 'fine-tuning'"),
        ([('"demo:fine-tuning"', '"none.json"')], r"none\.json does not exist"),
        ([('"rank:2"', '"params:100"')], "line 4, budgets.0.: The budget must be at least"),
        ([('"rank:2"', '"rank:999"')], "line 4, budgets.0.: The budget rank:999 is above rank 24"),
        ([("[uniform,", "[uniform, {name: f, ranks: {c_fc: 2}},")], r"line 5, arms\[1\]\.ranks: .*no rank for"),
        ([("budgets:", "targets: [q_proj]\nbudgets:")], "'q_proj', which matches no module"),
        ([("max_length: 64", "max_length: 8")], "without room for a completion"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    study_file: WriteStudy, tmp_path: Path, replacements: list[tuple[str, str]], message: str
) -> None:
    study = load_study(study_file(*replacements))
    with pytest.raises(ValueError, match=message):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_control_at_which_the_baseline_has_no_plan_is_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    arm = GRID[2][0], "[{strategy: uniform, options: {min_rank: 2}}]"
    study = load_study(study_file(arm, ("controls: none", "controls: [half]")))
    with pytest.raises(StudyFileError, match=r"line 9, controls: .*baseline at rank:1: .*rank 2 in each of 12 target"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run_study(load_study(study_file(arm, ("controls: none", "controls: [double]"))), tmp_path / "out").finished


def test_all_impossible_budgets_are_named_together(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(('["rank:2"]', '["params:5", "rank:2", "rank:999"]')))
    with pytest.raises(StudyFileError) as caught:
        run_study(study, tmp_path / "out")
    assert len(caught.value.complaints) == 2


def test_a_folder_with_other_things_is_left_alone(study_file: WriteStudy, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(StudyFolderError, match="not empty and holds no study"):
        run_study(load_study(study_file()), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


GRID = (
    ("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]"),
    ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"),
    ("[uniform, linear-decay, empirical, random]", "[uniform, random]"),
)


def test_nothing_is_chosen_while_a_tuning_run_is_missing(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate chosen without the run that failed would be another rate after the repeat."""
    study = load_study(study_file(*GRID, REFERENCE))
    from adaptive_lora.study.engines import reference as runner

    real, calls = runner.train, iter(range(100))

    def failing(*arguments: object, **named: object) -> object:
        if next(calls) == 2:  # uniform at the better rate
            raise OSError("out of memory")
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "train", failing)
    first = run_study(study, tmp_path / "out")
    assert (first.failed, first.finished) == (1, False)
    evaluated = load_results(tmp_path / "out").query("phase == 'evaluation'")
    assert set(evaluated["arm"]) == {"random"}
    assert run_study(study, tmp_path / "out").finished
    evaluated = load_results(tmp_path / "out").query("phase == 'evaluation'")
    assert evaluated.groupby("arm").size().to_dict() == {"uniform": 2, "random": 2}


def test_an_arm_whose_every_rate_diverges_is_decided(study_file: WriteStudy, tmp_path: Path) -> None:
    arms = "[uniform, {strategy: random, scaling: {reference: 1e38}}]"
    path = study_file(*GRID[:2], (GRID[2][0], arms), ("dropout: 0.1", "max_grad_norm: null"))
    outcome = run_study(load_study(path), tmp_path / "out")
    assert outcome.finished and outcome.diverged == 4
    assert study_status(tmp_path / "out").left == 0
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        page = write_report(ledger, tmp_path / "out").read_text()
    assert "Unfinished" not in page and page.count("<bdi>diverged</bdi>") == 4
    assert set(load_results(tmp_path / "out").query("phase == 'evaluation'")["arm"]) == {"uniform"}


def test_a_loss_that_is_no_number_at_evaluation_is_a_divergence(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptive_lora.study.engines import reference as runner
    from adaptive_lora.training.evaluate import Evaluation

    real, calls = runner.evaluate, iter(range(100))

    def broken(*arguments: object) -> Evaluation:
        found = real(*arguments)  # type: ignore[arg-type]
        if next(calls) == 1:  # the first run's test split
            found.nll[0] = float("nan")
        return found

    monkeypatch.setattr(runner, "evaluate", broken)
    outcome = run_study(load_study(study_file(REFERENCE)), tmp_path / "out")
    assert (outcome.diverged, outcome.completed, outcome.finished) == (1, 7, True)


def test_changed_data_under_the_same_study_are_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(80)]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    study = load_study(study_file(('"demo:fine-tuning"', f'"{data}"'), (GRID[2][0], "[uniform]")))
    run_study(study, tmp_path / "out")
    before = final(tmp_path / "out")
    data.write_text(json.dumps(rows[1:]))
    with pytest.raises(StudyFolderError, match=r"data of the study .* have changed .*data.fingerprint"):
        run_study(study, tmp_path / "out")
    pd.testing.assert_frame_equal(final(tmp_path / "out"), before)


def test_a_changed_chat_template_is_refused(
    study_file: WriteStudy, tmp_path: Path, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's weights and the records are the same, the prompts are not."""
    model = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{% for m in messages %}U: {{ m['content'] }}\nA: {% endfor %}")
    turns = [("user", "say {}"), ("assistant", "it is {}")]
    rows = [{"messages": [{"role": role, "content": text.format(i)} for role, text in turns]} for i in range(80)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    data, here = ('"demo:fine-tuning"', str(tmp_path / "data.json")), (str(model_folders["gpt2"]), str(model))
    study = load_study(study_file(data, here, (GRID[2][0], "[uniform]")))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Silent, "step", lambda *_: signal.raise_signal(signal.SIGINT))
        run_study(study, tmp_path / "out")
    template.write_text("{% for m in messages %}Question {{ m['content'] }}?? Answer: {% endfor %}")
    with pytest.raises(StudyFolderError, match=r"have changed since it began: tokenizer_and_chat_template: '"):
        run_study(study, tmp_path / "out")
    template.write_text("{# the same text #}{% for m in messages %}U: {{ m['content'] }}\nA: {% endfor %}")
    assert run_study(study, tmp_path / "out").finished


def test_a_folder_below_a_file_is_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudyFolderError, match="file is a file"):
        run_study(load_study(study_file()), tmp_path / "file" / "out")


def test_real_model_and_real_records(assets: Path, tmp_path: Path) -> None:
    """A short study on a pretrained Llama and Alpaca: equal sizes, and every arm far below the frozen model."""
    text = recipe("alpaca-babyllama").read_text()
    for old, new in (
        ("alpaca_random_9k", "alpaca_data_1k"),
        ("steps: 150", "steps: 12"),
        ("test: 400", "test: 40"),
        ("validation: 100", "validation: 20"),
        ("evaluation: 3", "evaluation: 1"),
        ("[uniform, linear-decay, attention-heavy, empirical, random]", "[uniform, empirical]"),
        ("primary: []}", "primary: []}\ncontrols: none\nreport: {answers: 0}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "study.yaml").write_text(text)
    assert run_study(load_study(tmp_path / "study.yaml"), tmp_path / "out").finished
    table = load_results(tmp_path / "out")
    assert set(table["trainable_parameters"]) == {93_440}
    assert (table["base_loss"] - table["test_loss"] > 0.3).all()


def deciding(study_file: WriteStudy, *changes: tuple[str, str], name: str = "study.yaml") -> Path:
    arms = ("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform, linear-decay]")
    return study_file(arms, ("primary: []", "primary: [linear-decay]"), ("evaluation: 2", "evaluation: 6"),
                      ("steps: 6", "steps: 2"), *changes, name=name)  # fmt: skip


def test_what_is_decided_is_locked_before_the_first_step(study_file: WriteStudy, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    class Looking(Silent):
        def step(self, record: StepRecord) -> None:
            seen.append(read_lock(out))

    study = load_study(deciding(study_file))
    run_study(study, out, Looking())
    assert seen and seen[0] is not None and seen[0]["primary"] == [{"arm": "linear-decay", "budget": "rank:2"}]
    run_study(study, out)
    assert read_lock(out) == seen[0]  # a lock is written once
    with contextlib.closing(open_to_read(out)) as ledger:
        assert ledger.facts()["lock"]["primary"] == seen[0]["primary"]


def test_seeds_that_cannot_decide_are_refused_before_anything_is_written(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    study = load_study(study_file(("primary: []", "primary: [empirical]")))
    with pytest.raises(StudyFileError, match="give 4 or more"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_study_is_refused_or_goes_on_as_a_deviation(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(deciding(study_file)), out)
    changed = load_study(deciding(study_file, ("evaluation: 6", "evaluation: 7"), name="b.yaml"))
    with pytest.raises(StudyFolderError, match=r"seeds\.evaluation.*--deviation REASON"):
        run_study(changed, out)
    before = final(out)
    assert run_study(changed, out, deviation="one seed more").finished
    merged = final(out).merge(before, on="run_id")
    assert len(merged) == len(before) == 12 and len(final(out)) == 14
    assert (merged["test_loss_x"] == merged["test_loss_y"]).all()
    lock = read_lock(out)
    assert lock is not None and [d["reason"] for d in lock["deviations"]] == ["one seed more"]
    with contextlib.closing(open_to_read(out)) as ledger:
        assert ledger.facts()["lock"]["deviations"] == lock["deviations"]
        assert ledger.facts()["identity"] == changed.identity
    with pytest.raises(StudyFolderError, match="seeds"):  # the way back is a deviation too
        run_study(load_study(deciding(study_file)), out)


def test_other_training_is_another_study_even_as_a_deviation(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(deciding(study_file)), tmp_path / "out")
    changed = load_study(deciding(study_file, ("batch_size: 4", "batch_size: 2"), name="b.yaml"))
    with pytest.raises(StudyFolderError, match=r"train\.batch_size"):
        run_study(changed, tmp_path / "out", deviation="smaller batches")


def test_runs_without_a_lock_are_refused(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(deciding(study_file))
    run_study(study, tmp_path / "out")
    StudyPaths(tmp_path / "out").decisions.unlink()
    with pytest.raises(StudyFolderError, match=r"no study\.lock\.json"):
        run_study(study, tmp_path / "out")


@pytest.mark.parametrize("engine", [(), (REFERENCE,)], ids=["bank", "reference"])
def test_controls_run_beside_the_arms_and_twins_are_equal(
    study_file: WriteStudy, tmp_path: Path, engine: tuple[tuple[str, str], ...]
) -> None:
    path = deciding(study_file, ("controls: none", "controls: all"), ("evaluation: 6", "evaluation: 6"), *engine)
    assert run_study(load_study(path), tmp_path / "out").finished
    table = load_results(tmp_path / "out")
    assert set(table["arm"]) == {"uniform", "linear-decay", "random", "shuffled"}
    assert set(table["budget"]) == {"rank:2", "rank:1", "rank:4"}
    twin = table[table["replica"] == 1].iloc[0]
    own = table[(table["replica"] == 0) & (table["arm"] == "uniform") & (table["seed"] == twin["seed"])]
    assert twin["test_loss"] == own[own["budget"] == "rank:2"]["test_loss"].item()
    sizes = table.groupby("budget")["trainable_parameters"].unique()
    assert [len(found) for found in sizes] == [1, 1, 1]
    assert sizes["rank:4"][0] == 2 * sizes["rank:2"][0] == 4 * sizes["rank:1"][0]
