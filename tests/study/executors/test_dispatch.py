"""Banks through an executor: the same bits as in this process, whatever becomes of a worker."""

from __future__ import annotations

import contextlib
import pickle
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from adaptive_lora import api
from adaptive_lora.errors import StudyFileError, UsageError
from adaptive_lora.study.engines import bank_training
from adaptive_lora.study.executors import dispatch, worker
from adaptive_lora.study.executors.door import Workers, opened
from adaptive_lora.study.executors.lease import LeaseFolder
from adaptive_lora.study.executors.processes import devices_of
from adaptive_lora.study.executors.task import BankOutcome, BankTask, Ended
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Limits, Silent, run_study
from adaptive_lora.study.study_file import Study, load_study
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.checkpoint import StepRecord
from tests.conftest import REFERENCE
from tests.study.executors.small import small_study

COLUMNS = ["run_id", "phase", "status", "arm", "validation_loss", "test_loss"]
PAIRS = Limits(largest_bank=2)


class Lost(BaseException):
    """A process that dies: nothing in it can catch that."""


class Here(Executor):
    """Runs a task when it is submitted, on what would arrive in another process."""

    def __init__(self) -> None:
        self.tasks: list[BankTask] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        task = pickle.loads(pickle.dumps(args[0]))
        self.tasks.append(task)
        try:
            future.set_result(pickle.loads(pickle.dumps(fn(task))))
        except Lost:
            future.set_exception(BrokenExecutor("a process died"))
        return future


def final(folder: Path) -> pd.DataFrame:
    return load_results(folder)[COLUMNS]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Study:
    """Four runs of four updates."""
    return small_study(tmp_path_factory.mktemp("study"), model_folders["gpt2"], ("steps: 6", "steps: 4"))


@pytest.fixture(scope="module")
def expected(study: Study, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What this process makes of it."""
    out = tmp_path_factory.mktemp("local")
    run_study(study, out, limits=PAIRS)
    return final(out)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is raised before an update: (size of the bank, update, error), once each. Becomes the list of those made."""
    real, planned = Bank.step, []

    def step(bank: Bank) -> Any:
        at = len(bank.slots), bank.slots[0].step
        for plan in planned:
            if isinstance(plan, tuple) and plan[:2] == at and len(plan) == 3:
                planned.remove(plan)
                raise plan[2]
        planned.append(at)
        return real(bank)

    monkeypatch.setattr(Bank, "step", step)
    return planned


def through(executor: Executor, study: Study, out: Path, listener: Silent | None = None, **options: Any) -> Any:
    """`run_study` with one worker, and a checkpoint after every update."""
    workers = Workers(executor, 1, **options)
    return run_study(study, out, listener, checkpoint_seconds=0.0, limits=PAIRS, workers=workers)


class Stages(Silent):
    """What was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)


def assert_clean(out: Path, runs: pd.DataFrame) -> None:
    assert not list((out / "checkpoints").iterdir())
    assert sorted(path.name for path in (out / "adapters").iterdir()) == sorted(runs["run_id"])


def test_an_executor_ends_in_the_same_bits(study: Study, expected: pd.DataFrame, tmp_path: Path) -> None:
    heard: list[str] = []

    class Note(Silent):
        def begin(self, label: str, steps: int) -> None:
            heard.append(f"{label}, {steps} steps")

        def step(self, record: StepRecord) -> None:
            heard.append(str(record.step))

    executor = Here()
    workers = Workers(executor, count=2)
    assert run_study(study, tmp_path, Note(), workers=workers).finished
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert [len(task.runs) for task in executor.tasks] == [2, 2]  # every worker has a bank
    assert len({task.lease for task in executor.tasks}) == 2 and all(
        task.study.path.is_absolute() for task in executor.tasks
    )
    assert heard[0] == "4 evaluation runs in 2 banks, up to 2 at a time, 8 steps" and len(heard) >= 3
    assert set(load_results(tmp_path)["engine"]) == {"bank of 2"}
    assert_clean(tmp_path, expected)


def test_a_lost_workers_bank_goes_on_from_its_last_checkpoint(
    study: Study, expected: pd.DataFrame, tmp_path: Path, updates: list[Any]
) -> None:
    updates.append((2, 3, Lost()))
    assert through(Here(), study, tmp_path).finished
    assert updates == 2 * [(2, 0), (2, 1), (2, 2), (2, 3)]  # none is repeated
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert_clean(tmp_path, expected)


def test_a_bank_is_given_up_after_three_attempts_without_progress_and_tried_again_by_the_next_run(
    study: Study, expected: pd.DataFrame, tmp_path: Path, updates: list[Any]
) -> None:
    updates += [(2, 0, Lost()), (2, 0, RuntimeError("the device is lost")), (2, 0, Lost())]
    executor = Here()
    status = through(executor, study, tmp_path)
    assert (status.failed, status.completed) == (2, 2) and len(executor.tasks) == 4
    assert load_results(tmp_path)["error"].dropna().unique().tolist() == [
        "given up after 3 attempts: worker lost: BrokenExecutor: a process died"
    ]
    assert through(executor, study, tmp_path).finished
    pd.testing.assert_frame_equal(final(tmp_path), expected)


class Nodes(Here):
    """One task after another goes to the next of these machines, and then to the last."""

    def __init__(self, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names, self.patch = names, monkeypatch

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        name = self.names[min(len(self.tasks), len(self.names) - 1)]
        self.patch.setattr(worker.platform, "node", lambda: name)
        return super().submit(fn, *args, **kwargs)


def test_one_machine_that_fails_at_once_gives_up_no_bank_while_others_work(
    study: Study,
    expected: pd.DataFrame,
    tmp_path: Path,
    updates: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "FIRST_WAIT_SECONDS", 2e-6)
    listener, real = Stages(), bank_training.BankTraining._update
    executor = Nodes(["sound", *4 * ["broken"], "sound"], monkeypatch)

    def update(training: Any, bank: Bank) -> None:
        if 2 <= len(executor.tasks) <= 5:
            raise RuntimeError("the device is lost")
        real(training, bank)

    monkeypatch.setattr(bank_training.BankTraining, "_update", update)
    status = through(executor, study, tmp_path, listener)
    assert status.finished and len(executor.tasks) == 6  # two more than where no other machine is known to work
    assert sum("go on elsewhere" in text for text in listener.said) == 4
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert_clean(tmp_path, expected)


def test_progress_between_losses_counts(study: Study, tmp_path: Path, updates: list[Any]) -> None:
    updates += [(2, step, Lost()) for step in (0, 0, 1, 2, 3)]
    assert through(Here(), study, tmp_path).finished


def test_out_of_memory_both_halves_go_on_from_the_checkpoint(
    study: Study, expected: pd.DataFrame, tmp_path: Path, updates: list[Any]
) -> None:
    updates.append((2, 2, MemoryError()))
    assert through(Here(), study, tmp_path).finished
    assert updates == [(2, 0), (2, 1), (1, 2), (1, 3), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert_clean(tmp_path, expected)


class Silenced(Here):
    """The first task is taken, says that it began, and is never heard of again; its answer comes when all is over."""

    def __init__(self, begins: bool) -> None:
        super().__init__()
        self.begins, self.late, self.abandoned = begins, Future[Any](), 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.tasks:
            if self.begins and self.late.running():
                failed = {run.run_id: "late" for run in args[0].runs}
                self.late.set_result(BankOutcome(Ended.FINISHED, failed=failed))
            return super().submit(fn, *args, **kwargs)
        self.tasks.append(args[0])
        if self.begins:
            self.late.set_running_or_notify_cancel()
            LeaseFolder(args[0].checkpoints.parent).send("beat", work=0)
        return self.late

    def abandon(self, future: Future[Any]) -> None:
        assert future is self.late
        self.abandoned += 1


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver's clock on which 4 seconds pass whenever it is read."""
    clock = iter(range(0, 10**6, 4))
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: float(next(clock)))
    with contextlib.nullcontext():
        yield


def test_a_hung_workers_bank_goes_on_elsewhere_and_its_late_answer_is_not_heard(
    study: Study, expected: pd.DataFrame, tmp_path: Path, hours: None
) -> None:
    executor, listener = Silenced(begins=True), Stages()
    assert through(executor, study, tmp_path, listener, lease_seconds=60).finished
    [why] = [text for text in listener.said if "go on elsewhere" in text]
    assert re.search(r"2 runs go on elsewhere .*: worker lost: no sign of life for (6|7|8)\d s", why)
    assert executor.abandoned == 1 and executor.tasks[0].runs == executor.tasks[1].runs
    assert executor.tasks[0].lease != executor.tasks[1].lease and executor.late.done()
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert_clean(tmp_path, expected)


def test_a_stop_saves_checkpoints_and_another_executor_or_none_goes_on(
    study: Study, expected: pd.DataFrame, tmp_path: Path, updates: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_GLANCE_SECONDS", 0.0)
    real = bank_training.BankTraining._update

    def interrupted(training: Any, bank: Bank) -> None:
        real(training, bank)
        if updates.count((2, 1)) == 1 and bank.slots[0].step == 2:
            LeaseFolder(training.task.checkpoints.parent).ask_to_stop()  # as the driver does on Ctrl-C
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(bank_training.BankTraining, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            through(Here(), study, tmp_path)
    assert updates == [(2, 0), (2, 1)]
    [lease] = (tmp_path / "checkpoints").glob("lease-*")
    assert (lease / "bank.json").is_file()
    assert run_study(study, tmp_path, limits=PAIRS).finished  # in this process
    assert updates[2:4] == [(2, 2), (2, 3)] and len(updates) == 8
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert_clean(tmp_path, expected)


def test_what_this_process_began_another_goes_on_with(
    study: Study, expected: pd.DataFrame, tmp_path: Path, updates: list[Any]
) -> None:
    class Cut(Silent):
        def step(self, record: StepRecord) -> None:
            if record.step == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, Cut(), limits=PAIRS)
    executor = Here()
    assert api.Study(study).run(tmp_path, executor=executor, bank_size=2).finished
    assert executor.tasks[0].composition.folder == "bank-3" and updates[3] == (2, 3)
    pd.testing.assert_frame_equal(final(tmp_path), expected)
    assert_clean(tmp_path, expected)


def test_a_worker_with_another_model_does_not_go_on(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "context_hash", lambda context: "another")
    status = through(Here(), study, tmp_path)
    assert status.failed == 4
    assert (
        load_results(tmp_path)["error"].str.contains("another model or other data under the names of this study").all()
    )


def test_a_worker_that_does_not_see_the_folder_says_so(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LeaseFolder", lambda folder: LeaseFolder(folder / "elsewhere"))
    assert through(Here(), study, tmp_path).failed == 4
    assert load_results(tmp_path)["error"].str.contains("must be on a path that all workers share").all()


def test_workers_say_all_that_is_wrong(study: Study, study_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'proceses' \(did you mean 'processes'\?\).*1 or more, got 0.*1 second or more"
    ):
        Workers("proceses", 0, 0.5)
    with pytest.raises(UsageError, match="resources are asked for from `ray` and `slurm`"):
        Workers("processes", resources={"gpus": 1})
    with pytest.raises(StudyFileError, match=r"engine: banks are what workers are given"):
        run_study(load_study(study_file(REFERENCE)), tmp_path / "out", workers=Workers("processes"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"pip install 'adaptive-lora\[{package}\]'"), opened(Workers(name), None):
        pass


def test_resources_are_known_by_name() -> None:
    with (
        pytest.raises(
            UsageError, match=r"ray has no resource 'gpu' \(did you mean 'gpus'\?\); .*cpus, gpus, memory_gb"
        ),
        opened(Workers("ray", resources={"gpu": 1}), None),
    ):
        pass


def test_every_accelerator_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("cuda", None) == ["cuda:0", "cuda:1"]
    assert devices_of("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_of("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert devices_of("cpu", 3) == ["cpu"] * 3 and len(devices_of("cpu", None)) == torch.get_num_threads()


def test_messages_are_read_whole_and_once(tmp_path: Path) -> None:
    lease = LeaseFolder(tmp_path / "lease-1")
    with pytest.raises(OSError, match="No such file"):
        lease.send("beat", work=1)
    assert lease.must_stop() and lease.read(0) == ([], 0)
    lease.folder.mkdir()
    lease.send("beat", work=1)
    with (lease.folder / "messages.jsonl").open("a") as file:
        file.write('not json\n{"kind": "be')
    found, offset = lease.read(0)
    assert found == [{"kind": "beat", "work": 1}, {}] and lease.read(offset) == ([], offset)
    assert not lease.must_stop()
    lease.ask_to_stop()
    assert lease.must_stop()
