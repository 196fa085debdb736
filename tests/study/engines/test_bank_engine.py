"""Studies through the bank: formed again as it was after a cut, split where memory is short, true to the reference."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from adaptive_lora.errors import ModelError, StudyFileError
from adaptive_lora.study.engines import bank as worker
from adaptive_lora.study.engines import bank_training
from adaptive_lora.study.engines.bank import BankEngine
from adaptive_lora.study.engines.resume import read_compositions
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.plan_task import PlanTask
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.evaluate import Evaluation
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, random]")
LOSSES = ["run_id", "status", "validation_loss", "test_loss"]


def final(folder: Path) -> pd.DataFrame:
    return load_results(folder)[LOSSES].sort_values("run_id", ignore_index=True)


class InterruptAt(Silent):
    """Ctrl-C at some of the bank's updates."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.seen = steps, 0

    def step(self, record: StepRecord) -> None:
        self.seen += 1
        if self.seen in self.steps:
            signal.raise_signal(signal.SIGINT)


class Telling(InterruptAt):
    """Keeps what it is told."""

    def __init__(self, *steps: int) -> None:
        super().__init__(*steps)
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)


def test_a_bank_goes_on_from_the_last_sound_generation(study_file: WriteStudy, tmp_path: Path) -> None:
    """One flipped bit in one file of many: the bank goes back as a whole, and ends in the bits it would have had."""
    study, stopped = load_study(study_file(TWO_ARMS)), tmp_path / "stopped"
    run_study(study, tmp_path / "whole")
    stops = InterruptAt(2, 5)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, stopped, stops)
    for damaged, steps in ((["bank-5"], 4), (["bank-5", "bank-2"], 6)):
        cut, listener = tmp_path / str(steps), Telling()
        shutil.copytree(stopped, cut)
        for folder in damaged:
            path = sorted((cut / "checkpoints" / folder).iterdir())[1]
            content = bytearray(path.read_bytes())
            content[-100] ^= 4
            path.write_bytes(content)
        assert run_study(study, cut, listener).finished
        told = [text for text in listener.said if "damaged" in text]
        assert "update 5 is damaged" in told[0] and "going on from the one before, of update 2" in told[0]
        assert ("starting these runs over" in told[-1]) == (steps == 6) and listener.seen == steps
        pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(cut))
        assert not list((cut / "checkpoints").iterdir())


def test_both_engines_end_in_the_same_losses(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(study_file()), tmp_path / "bank")
    run_study(load_study(study_file(REFERENCE)), tmp_path / "reference")
    bank, reference = (load_results(tmp_path / name) for name in ("bank", "reference"))
    assert list(bank["arm"]) == list(reference["arm"])
    for column in ("validation_loss", "test_loss"):
        pd.testing.assert_series_equal(bank[column], reference[column], rtol=1e-4)
    assert (set(bank["engine"]), set(reference["engine"])) == ({"bank of 8"}, {"reference"})
    assert not set(bank["run_id"]) & set(reference["run_id"])  # the engine is part of what a run is


def test_an_interrupted_bank_goes_on_and_ends_in_the_same_bits(study_file: WriteStudy, tmp_path: Path) -> None:
    study, cut = load_study(study_file()), tmp_path / "cut"
    run_study(study, tmp_path / "whole")
    listener = InterruptAt(2, 5)
    for generations, steps in ((1, 2), (2, 5)):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, cut, listener)
        [composition] = read_compositions(StudyPaths(cut).bank)
        assert composition.folder == f"bank-{steps}" and len(composition.members) == 8
        kept = sorted(path.stem for path in (cut / "checkpoints" / composition.folder).iterdir())
        assert kept == sorted(composition.members)
        assert len(list((cut / "checkpoints").glob("bank-*"))) == generations
    assert run_study(study, cut, listener).finished
    assert listener.seen == 6  # no update was lost or repeated
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(cut))
    assert not list((cut / "checkpoints").iterdir())


def test_a_bank_cut_while_results_are_kept_goes_on_with_the_rest(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(study_file())
    run_study(study, tmp_path / "whole")
    real, calls = BankEngine.record, iter(range(100))

    def cut(*arguments: Any) -> str:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(BankEngine, "record", cut)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "cut")
    assert (load_results(tmp_path / "cut")["status"] == "completed").sum() == 3
    listener = InterruptAt()
    assert run_study(study, tmp_path / "cut", listener).finished
    assert listener.seen == 0  # trained already
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_a_torn_composition_costs_work_and_nothing_else(study_file: WriteStudy, tmp_path: Path) -> None:
    study, cut = load_study(study_file(TWO_ARMS)), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, cut, InterruptAt(3))
    bank = StudyPaths(cut).bank
    bank.write_bytes(bank.read_bytes().replace(b"bank-3", b"bank-2"))
    assert [c.folder for c in read_compositions(bank)] == ["bank-3"]  # by its copy
    bank.with_name("bank.json.copy").write_text('{"members": [')
    listener = Telling()
    assert run_study(study, cut, listener).finished
    assert [text for text in listener.said if "bank.json, which says what is in training, is damaged" in text]
    run_study(study, tmp_path / "whole")
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(cut))


def test_without_room_the_bank_is_halved_and_nothing_is_lost(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(study_file())
    run_study(study, tmp_path / "whole")
    sizes = []

    class Small(Bank):
        def __init__(self, base: Any, members: Any, **options: Any) -> None:
            sizes.append(len(members))
            if len(members) > 3:
                raise MemoryError
            super().__init__(base, members, **options)

    monkeypatch.setattr(bank_training, "Bank", Small)
    assert run_study(study, tmp_path / "small").finished
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(tmp_path / "small"), rtol=1e-5)


def failing_at(
    patch: pytest.MonkeyPatch, error: Exception, size: int, step: int, times: int = 1
) -> list[tuple[int, int]]:
    """Banks of `size` fail before update `step`, so often. (size, step) of every update that is made."""
    real, made, left = Bank.step, [], iter(range(times))

    def update(bank: Bank) -> Any:
        at = len(bank.slots), bank.slots[0].step
        if at == (size, step) and next(left, None) is not None:
            raise error
        made.append(at)
        return real(bank)

    patch.setattr(Bank, "step", update)
    return made


def test_out_of_memory_late_both_halves_go_on_from_the_newest_checkpoint(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, small = load_study(study_file()), tmp_path / "small"
    run_study(study, tmp_path / "whole")
    made = failing_at(monkeypatch, MemoryError(), size=8, step=4)
    assert run_study(study, small, checkpoint_seconds=0.0).finished
    assert made == [*((8, step) for step in range(4)), (4, 4), (4, 5), (4, 4), (4, 5)]
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(small))
    assert not list((small / "checkpoints").iterdir())


def test_a_half_that_waits_keeps_its_checkpoints_through_an_interrupt_and_a_break(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, small = load_study(study_file()), tmp_path / "small"
    run_study(study, tmp_path / "whole")
    with monkeypatch.context() as patch:
        failing_at(patch, MemoryError(), size=8, step=4)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, small, InterruptAt(5), checkpoint_seconds=0.0)
    first, second = read_compositions(StudyPaths(small).bank)
    assert (first.folder, second.folder) == ("bank-5", "bank-4")
    assert len(first.members) == len(second.members) == 4
    with monkeypatch.context() as patch:  # the first half breaks, the second is done
        made = failing_at(patch, RuntimeError("the device is lost"), size=4, step=5)
        assert run_study(study, small).failed == 4
    assert made == [(4, 4), (4, 5)]
    made = failing_at(monkeypatch, MemoryError(), size=8, step=0)
    assert run_study(study, small).finished and made == [(4, 5)]
    pd.testing.assert_frame_equal(final(tmp_path / "whole"), final(small))
    assert not list((small / "checkpoints").iterdir())


def test_a_result_that_could_not_be_kept_is_not_trained_again(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, real, calls = load_study(study_file(TWO_ARMS)), BankEngine.record, iter(range(100))

    def full(*arguments: Any) -> str:
        if next(calls) == 1:
            raise OSError("no space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BankEngine, "record", full)
        assert run_study(study, tmp_path / "out").failed == 1
    listener = InterruptAt()
    assert run_study(study, tmp_path / "out", listener).finished and listener.seen == 0
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_the_memory_estimate_decides_how_many_go_together(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    class Note(Silent):
        def begin(self, label: str, steps: int) -> None:
            began.append(label)

    monkeypatch.setattr(worker, "members_at_once", lambda base, plans: 3)
    assert run_study(load_study(study_file()), tmp_path / "out", Note()).finished
    assert began == ["3 evaluation runs", "3 evaluation runs", "2 evaluation runs"]


def test_a_run_that_cannot_be_planned_leaves_the_others(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = PlanTask.plan, iter(range(100))

    def failing(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise OSError("scores could not be measured")
        return real(*arguments)

    study = load_study(study_file(TWO_ARMS))
    monkeypatch.setattr(PlanTask, "plan", failing)
    outcome = run_study(study, tmp_path / "out")
    assert (outcome.completed, outcome.failed, outcome.finished) == (3, 1, False)
    assert run_study(study, tmp_path / "out").finished


def test_whatever_breaks_a_bank_is_recorded_and_tried_again(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(study_file(TWO_ARMS))
    with monkeypatch.context() as patch:
        patch.setattr(Bank, "step", lambda self: (_ for _ in ()).throw(RuntimeError("the device is lost")))
        assert run_study(study, tmp_path / "out").failed == 4
    assert load_results(tmp_path / "out")["error"].str.contains("the device is lost").all()
    assert run_study(study, tmp_path / "out").finished


def test_a_loss_that_is_no_number_at_evaluation_is_a_divergence(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bank.evaluate

    def broken(*arguments: Any) -> list[Evaluation]:
        found = real(*arguments)
        if len(found) > 1:  # not where the bank is compared with the model
            found[1].nll[0] = float("nan")
        return found

    monkeypatch.setattr(Bank, "evaluate", broken)
    outcome = run_study(load_study(study_file(TWO_ARMS)), tmp_path / "out")
    assert (outcome.diverged, outcome.completed, outcome.finished) == (1, 3, True)


def test_the_bank_is_compared_with_the_frozen_model_once_a_study(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = load_study(study_file(TWO_ARMS, ("steps: 6", "steps: 1"))), tmp_path / "out"
    run_study(study, out)
    with contextlib.closing(open_to_read(out)) as ledger:
        found = ledger.facts()["bank_check"]
    assert found["records"] == 20 and 0 <= found["largest"] < 1e-5 and found["here"]["device"] == "cpu"
    monkeypatch.setattr(worker, "check_bank", lambda *_: (_ for _ in ()).throw(ModelError("compared again")))
    assert run_study(study, out).finished
    with pytest.raises(ModelError, match="compared again"):
        run_study(study, tmp_path / "another")


def test_rate_multipliers_are_part_of_the_study(study_file: WriteStudy, tmp_path: Path) -> None:
    def study(extra: str) -> Path:
        return study_file(TWO_ARMS, ("dropout: 0.1", f"dropout: 0.1, {extra}"), name="multiplied.yaml")

    run_study(load_study(study_file(TWO_ARMS)), tmp_path / "plain")
    many = "multipliers: {b: 4, rank_exponent: 0.5, modules: {c_fc: 2}}, activation_checkpointing: true"
    run_study(load_study(study(many)), tmp_path / "multiplied")
    plain, multiplied = (load_results(tmp_path / name)["test_loss"] for name in ("plain", "multiplied"))
    assert ((plain - multiplied).abs() > 1e-4).all()
    with pytest.raises(StudyFileError, match=r"line 7, train\.multipliers\.modules: .*'c_fx'.*c_attn, c_fc, c_proj"):
        run_study(load_study(study("multipliers: {modules: {c_fx: 2}}")), tmp_path / "out")


def test_time_is_shared_by_tokens(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(study_file()), tmp_path / "out")
    table = load_results(tmp_path / "out")
    assert (table["train_seconds"] > 0).all()
    by_seed = table.groupby("seed")["train_seconds"].nunique()
    assert (by_seed == 1).all()  # arms of a seed see the same tokens


def test_the_ledger_says_how_far_every_module_moved(study_file: WriteStudy, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    study, out = load_study(study_file(TWO_ARMS)), tmp_path / "out"
    run_study(study, out)
    model = prepare(study).base.model
    with contextlib.closing(open_to_read(out)) as ledger:
        for run in ledger.runs():
            plan = ledger.plan(run["run_id"])
            assert plan is not None
            tensors = load_file(StudyPaths(out).adapter(run["run_id"]) / "adapter_model.safetensors")
            for name, size in plan["updates"].items():
                a, b = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
                moved = plan["scalings"][name] * (b @ a).norm() / model.get_submodule(name).weight.norm()
                assert size == pytest.approx(float(moved), rel=1e-4) and size > 0
            assert plan["updates"].keys() == plan["ranks"].keys()
