"""What stops a study and what it costs: SIGTERM, checkpoints by the clock and by their price."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from adaptive_lora.cli.app import explained
from adaptive_lora.errors import Terminated
from adaptive_lora.study.engines import resume
from adaptive_lora.study.engines.resume import BankCheckpoints, Composition
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import Progress, StepRecord
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, random]")


class Preempted(Silent):
    """SIGTERM at the third update."""

    seen = 0

    def step(self, record: StepRecord) -> None:
        self.seen += 1
        if self.seen == 3:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("engine", [(), (REFERENCE,)], ids=["bank", "reference"])
def test_sigterm_saves_a_checkpoint_as_ctrl_c_does(
    study_file: WriteStudy, tmp_path: Path, engine: tuple[tuple[str, str], ...]
) -> None:
    study, listener = load_study(study_file(TWO_ARMS, *engine)), Preempted()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        run_study(study, tmp_path / "out", listener)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list((tmp_path / "out" / "checkpoints").iterdir())
    assert run_study(study, tmp_path / "out", listener).finished
    updates = 4 * 6 if engine else 6  # one after another, or all at once
    assert listener.seen == updates  # none was lost or repeated


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


STATES = {"a": (Progress(1), lambda: {"x": torch.zeros(1)})}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(resume, "time", found)
    return found


def test_checkpoints_are_saved_by_the_clock(tmp_path: Path, clock: Clock) -> None:
    checkpoints = BankCheckpoints(tmp_path / "bank.json", Composition(("a",)), 30.0)
    clock.now = 29.0
    assert not checkpoints.due()
    clock.now = 30.0
    assert checkpoints.due()
    checkpoints.save(STATES, 100)
    assert not checkpoints.due()
    clock.now = 60.0
    assert checkpoints.due()


def test_dear_checkpoints_take_a_bounded_share_of_the_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> None:
        clock.now += 10.0

    monkeypatch.setattr(resume, "write_checkpoint", slow)
    checkpoints = BankCheckpoints(tmp_path / "bank.json", Composition(("a",)), 30.0)
    checkpoints.save(STATES, 100)
    clock.now = 10.0 + 10.0 / resume.LARGEST_SHARE - 1
    assert not checkpoints.due()
    clock.now += 1
    assert checkpoints.due()


def test_a_short_study_is_saved_once_and_not_at_every_update(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once before evaluation, so that a cut there costs no training."""
    real, saved = BankCheckpoints.save, []

    def save(self: BankCheckpoints, states: Mapping[str, Any], chunk_tokens: int) -> None:
        saved.append(max(progress.steps_done for progress, _ in states.values()))
        real(self, states, chunk_tokens)

    monkeypatch.setattr(BankCheckpoints, "save", save)
    run_study(load_study(study_file(TWO_ARMS)), tmp_path / "out")
    assert saved == [6]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_the_exit_code_says_what_stopped_a_verb(error: type[KeyboardInterrupt], code: int) -> None:
    @explained
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        verb()
    assert stopped.value.exit_code == code
