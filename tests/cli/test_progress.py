"""Progress as a person sees it: bars that stay while a bank trains, lines that say when and what."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from adaptive_lora.cli import progress
from adaptive_lora.cli.progress import BarProgress, PlainProgress, progress_for
from adaptive_lora.training.checkpoint import StepRecord


def record(step: int, loss: float = 2.0) -> StepRecord:
    return StepRecord(step, loss, 0.1, 1e-3, 100)


def bars() -> BarProgress:
    return BarProgress(Console(file=io.StringIO(), force_terminal=True, width=120))


def shown(listener: BarProgress) -> list[str]:
    """The bars that stand, by what they say."""
    return [f"{task.description.strip()} {task.completed:g}/{task.total:g}" for task in listener._bars.tasks]


def test_a_divergence_leaves_the_bar_of_its_bank() -> None:
    listener = bars()
    with listener:
        listener.runs(0, 8)
        listener.begin("8 evaluation runs", 100)
        listener.step(record(10))
        listener.result("evaluation uniform rank:2 seed 0 rate 0.1", "diverged at step 11")
        listener.runs(1, 8)
        assert shown(listener) == ["study 1/8", "loss 2.000 11/100"]
        listener.step(record(11))
        assert shown(listener)[1] == "loss 2.000 12/100"
        listener.close()
        assert shown(listener) == ["study 1/8"]


def test_a_bank_that_was_given_up_leaves_no_bar_behind() -> None:
    listener = bars()
    with listener:
        listener.runs(0, 8)
        listener.begin("8 evaluation runs", 100)
        listener.begin("4 evaluation runs", 100)  # halved: the first was never ended
        assert len(shown(listener)) == 2


def test_planning_has_a_bar_of_its_own_that_goes() -> None:
    listener = bars()
    with listener:
        listener.planning("weight-gradient, seed 0, step 1 of 8", 0, 3)
        listener.planning("weight-gradient, seed 1, step 1 of 8", 1, 3)
        assert shown(listener) == ["planning 1/3"]
        listener.close()
        assert shown(listener) == []


def test_lines_say_how_long_it_has_been_what_is_under_way_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    out = io.StringIO()
    listener = progress_for(Console(file=out, width=200))
    assert isinstance(listener, PlainProgress) and not isinstance(listener, BarProgress)
    listener.stage("loading model and data")
    listener.runs(0, 10)
    listener.begin("8 evaluation runs", 100)
    clock.now += 4.0
    listener.step(record(1))  # too soon for another line
    clock.now += 60.0
    listener.runs(2, 10)
    listener.step(record(50, 1.5))
    listener.result("evaluation uniform rank:2 seed 0 rate 0.1", "test loss 1.4")
    clock.now += 30.0
    listener.planning("update-spectrum, seed 3, step 4 of 50", 1, 6)
    clock.now += 1000.0  # of planning, which says nothing of what runs take
    listener.planning("update-spectrum, seed 3, step 50 of 50", 6, 6)
    listener.begin("8 evaluation runs", 100)
    clock.now += 50.0
    listener.step(record(19, 1.25))
    lines = out.getvalue().splitlines()
    assert lines[0] == "[0:00:00] loading model and data"
    assert lines[1] == "[0:00:00] training 8 evaluation runs, 100 steps"
    assert lines[2] == ("[0:01:04] 8 evaluation runs: step 51/100, loss 1.5000; 2/10 runs done, about 0:04:16 left")
    assert lines[4] == "[0:01:34] planning 1/6: update-spectrum, seed 3, step 4 of 50"
    assert lines[7].endswith("step 20/100, loss 1.2500; 2/10 runs done, about 0:03:20 left of this training")
    assert len(lines) == 8 and re.match(r"\[0:01:04\] evaluation uniform", lines[3])
