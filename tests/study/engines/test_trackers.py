"""Finished runs reach the trackers that a study names, and a tracker that fails takes no run with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.engines.trackers import Trackers
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study

ARMS = ("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform]")
TRACKED = ("engine: bank", "engine: bank\ntracking: tensorboard")


@pytest.fixture
def tensorboard() -> Any:
    """TensorBoard's reader; its imports warn of things that are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_every_runs_curve_and_losses(
    tensorboard: Any, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = load_study(study_file(ARMS, TRACKED))
    run_study(study, tmp_path / "out")
    table = load_results(tmp_path / "out")
    assert len(table) == 2
    for run in table.to_dict("records"):
        folder = tmp_path / "out" / "tracking" / f"evaluation_uniform_rank-2_seed_{run['seed']}_rate_0.01"
        events = tensorboard.EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("train_loss")] == list(range(6))
        assert events.Scalars("test_loss")[0].value == pytest.approx(run["test_loss"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_trackers_are_no_part_of_the_study(study_file: Callable[..., Path], tmp_path: Path) -> None:
    plain, tracked = load_study(study_file(ARMS)), load_study(study_file(ARMS, TRACKED, name="b.yaml"))
    assert plain.identity == tracked.identity
    run_study(plain, tmp_path / "out")
    assert run_study(tracked, tmp_path / "out").finished  # nothing left to do, and no deviation


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_that_fails_is_said_and_takes_no_run_with_it(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trackers, name: str, label: str) -> Any:
        raise OSError("no room on the server")

    monkeypatch.setattr(Trackers, "_opened", broken)
    heard: list[str] = []

    class Hearing(Silent):
        def stage(self, text: str) -> None:
            heard.append(text)

    assert run_study(load_study(study_file(ARMS, TRACKED)), tmp_path / "out", Hearing()).finished
    assert sum("tensorboard did not take" in text and "no room on the server" in text for text in heard) == 2


def test_a_tracker_that_is_not_there_is_refused_with_the_remedy(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(StudyFileError, match=r"tracking: tensorboard is not installed; pip install tensorboard"):
        run_study(load_study(study_file(ARMS, TRACKED)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StudyFileError, match="tensorbord"):
        load_study(study_file(("engine: bank", "engine: bank\ntracking: [tensorbord]"), name="c.yaml"))
