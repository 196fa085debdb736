"""What stops a study and what it costs: signals, checkpoints by the clock and by their price."""

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
from adaptive_lora.study import interrupts
from adaptive_lora.study import progress as study_progress
from adaptive_lora.study.engines import resume
from adaptive_lora.study.engines.resume import BankCheckpoints, Composition
from adaptive_lora.study.interrupts import interruptible
from adaptive_lora.study.progress import Silent, Sturdy
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import Progress, StepRecord
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, random]")


class Stopped(Silent):
    """A signal at the third update, twice: `timeout` signals its child, and then the child's group."""

    def __init__(self, signum: int) -> None:
        self.signum, self.seen, self.said = signum, 0, list[str]()

    def stage(self, text: str) -> None:
        self.said.append(text)

    def step(self, record: StepRecord) -> None:
        self.seen += 1
        if self.seen == 3:
            signal.raise_signal(self.signum)
            signal.raise_signal(self.signum)


SIGNALS = [(signal.SIGTERM, ()), (signal.SIGTERM, (REFERENCE,)), (signal.SIGHUP, ())]


@pytest.mark.parametrize(("signum", "engine"), SIGNALS, ids=["SIGTERM", "SIGTERM-reference", "SIGHUP"])
def test_a_signal_saves_a_checkpoint_as_ctrl_c_does(
    study_file: WriteStudy, tmp_path: Path, signum: signal.Signals, engine: tuple[tuple[str, str], ...]
) -> None:
    study, listener = load_study(study_file(TWO_ARMS, *engine)), Stopped(signum)
    as_started = signal.signal(signum, signal.SIG_DFL)  # under nohup it is ignored
    before = signal.getsignal(signum)
    try:
        with pytest.raises(Terminated) as stopped:
            run_study(study, tmp_path / "out", listener)
        assert stopped.value.signum == signum and signal.getsignal(signum) is before
    finally:
        signal.signal(signum, as_started)
    assert f"{signum.name}: saving a checkpoint; a second signal quits now" in listener.said
    assert list((tmp_path / "out" / "checkpoints").iterdir())
    assert run_study(study, tmp_path / "out", listener).finished
    updates = 4 * 6 if engine else 6  # one after another, or all at once
    assert listener.seen == updates  # none was lost or repeated


class Second(Exception):
    """What the handler that was there before raises."""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_what_it_did_before(monkeypatch: pytest.MonkeyPatch, signum: signal.Signals) -> None:
    def plain(signum: int, frame: Any) -> None:
        raise Second

    before, clock = signal.signal(signum, plain), Clock()
    monkeypatch.setattr(interrupts, "time", clock)
    try:
        with pytest.raises(Second), interruptible(Sturdy(Silent())) as stop:
            assert not stop()
            signal.raise_signal(signum)
            assert stop()
            clock.now = 1.0
            signal.raise_signal(signum)
    finally:
        assert signal.signal(signum, before) is plain


def test_a_hangup_that_nohup_ignores_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(Sturdy(Silent())) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_study_goes_on_when_no_one_can_be_told_any_more() -> None:
    class Gone(Silent):
        told = 0

        def stage(self, text: str) -> None:
            self.told += 1
            raise BrokenPipeError

    gone = Gone()
    sturdy = Sturdy(gone)
    for text in ("one", "two"):
        sturdy.stage(text)
    sturdy.result("run", "done")
    assert gone.told == 1


def test_how_long_a_checkpoint_waits_is_said_where_an_update_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, record = Clock(), StepRecord(0, 1.0, 1.0, 1e-3, 5)
    monkeypatch.setattr(study_progress, "time", clock)
    sturdy = Sturdy(Silent())
    sturdy.begin("4 runs", 6)
    assert sturdy.update_seconds is None
    clock.now = 12.34
    sturdy.step(record)
    assert interrupts._answer(signal.SIGINT, sturdy.update_seconds).startswith(
        "saving a checkpoint after this update (the last took 12.3 s); press Ctrl-C"
    )
    sturdy.close()
    assert sturdy.update_seconds is None


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


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (Terminated(), 143), (Terminated(signal.SIGHUP), 129)]
)
def test_the_exit_code_says_what_stopped_a_verb(error: KeyboardInterrupt, code: int) -> None:
    @explained
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        verb()
    assert stopped.value.exit_code == code
