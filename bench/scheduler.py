"""What the driver costs: 10,000 runs on 100 workers that fail, by the scheduler's real code. Prints JSON.

    python bench/scheduler.py [--runs 10000 --workers 100] [--out results/bench/scheduler.json]

Dispatcher, leases, messages, ledger and the moving of adapters are the real ones. Workers are simulated: they train
nothing, and give back results of the size that a study has. One attempt in twenty is lost, after a checkpoint.
`driver_seconds` is the processor time of the driver's thread, `share` is that over the time that the workers would have
worked at `--bank-seconds` a bank.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.engines.bank import BankEngine
from adaptive_lora.study.engines.resume import Composition, replace_composition
from adaptive_lora.study.executors.dispatch import Dispatcher
from adaptive_lora.study.executors.door import Door
from adaptive_lora.study.executors.lease import LeaseFolder
from adaptive_lora.study.executors.task import BankOutcome, BankTask, Ended, RunResult, RunTask
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.progress import Silent
from adaptive_lora.study.study_file import Study, study_of_mapping
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.evaluate import Evaluation

STEPS, RECORDS, MODULES, BANK = 300, 1000, 112, 64


class Simulated(Executor):
    """Workers that answer at once; their own time is not the driver's, and is taken out."""

    def __init__(self, lost_share: float) -> None:
        self._stream, self._share = numpy_stream(0, "lost workers"), lost_share
        self.seconds, self.lost = 0.0, 0
        self._curve = tuple(StepRecord(i, 1.0 / (i + 1), 0.5, 1e-3, 200) for i in range(STEPS))
        self._loss = Evaluation(np.linspace(1, 2, RECORDS), np.full(RECORDS, 40), np.zeros(RECORDS, np.bool_))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        began = time.thread_time()
        future, task = Future[Any](), args[0]
        lease = LeaseFolder(task.checkpoints.parent)
        lease.send("began", device="cuda:0", kernels="batched lora", host="simulated", pid=0)
        for record in self._curve[::3]:
            lease.send("step", **vars(record))
        # A bank that goes on from a checkpoint is not lost again: what is counted is what a loss costs.
        if not task.composition.folder and self._stream.random() < self._share:
            self.lost += 1
            done = task.composition.members
            replace_composition(task.checkpoints, task.composition, Composition(done, 4096, f"bank-{STEPS // 2}"))
            lease.send("saved", steps=dict.fromkeys(done, STEPS // 2))
            future.set_exception(BrokenExecutor("a node was lost"))
        else:
            future.set_result(BankOutcome(Ended.FINISHED, tuple(self._result(task, own) for own in task.runs)))
        self.seconds += time.thread_time() - began
        return future

    def _result(self, task: BankTask, own: RunTask) -> RunResult:
        folder = task.adapter(own.run_id)
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").touch()
        losses = {"validation": self._loss, "test": self._loss}
        return RunResult(own.run_id, self._curve, 100.0, losses, dict.fromkeys(own.plan.ranks, 0.01))


def study_of(runs: int) -> Study:
    """A study with so many runs, or a few more."""
    return study_of_mapping(
        {
            "name": "scheduler",
            "model": {"name": "demo"},
            "data": {"source": "demo:fine-tuning", "train": 100, "validation": 50, "test": RECORDS},
            "budgets": ["rank:8"],
            "arms": ["uniform", "linear-decay", "attention-only", "mlp-only"],
            "seeds": {"evaluation": -(-runs // 4)},
            "train": {"steps": STEPS, "learning_rate": 1e-3},
            "analysis": {"primary": [], "margin": 0.01},
            "controls": "none",
        }
    )


def tasks_of(study: Study, paths: StudyPaths, plan: RankPlan, runs: int) -> list[BankTask]:
    """Banks of `BANK` runs."""
    rates = dict.fromkeys(study.matrix.by_key, 1e-3)
    every = [RunTask(run.run_id({}), run, plan, 0.1) for run in study.matrix.evaluation_runs(rates)][:runs]
    banks = [tuple(every[at : at + BANK]) for at in range(0, len(every), BANK)]
    return [
        BankTask(study, "", bank, paths.folder, paths.bank, Composition(tuple(own.run_id for own in bank)), 30.0)
        for bank in banks
    ]


def measure(runs: int, workers: int, bank_seconds: float, folder: Path) -> dict[str, Any]:
    """One study, from the first bank to the last result."""
    study, paths = study_of(runs), StudyPaths(folder)
    modules = tuple(ModuleShape(f"model.layers.{i}.mlp", "mlp", i, 4096, 11008) for i in range(MODULES))
    plan = RankPlan("uniform", 8 * 15104 * MODULES, modules, {m.name: 8 for m in modules}, Scaling())
    tasks, executor = tasks_of(study, paths, plan, runs), Simulated(0.05)
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger.register({own.run_id: own.run for task in tasks for own in task.runs})
        engine = BankEngine(None, ledger, paths, Silent(), lambda: False, 30.0)  # type: ignore[arg-type]
        began, wall = time.thread_time(), time.monotonic()
        Dispatcher(engine, Door(executor, workers)).train(tasks)
        driver = time.thread_time() - began - executor.seconds
        assert all(status.is_finished for status in ledger.statuses().values())
    worked = len(tasks) * bank_seconds
    return {
        "runs": runs, "workers": workers, "banks": len(tasks), "lost": executor.lost, "bank_seconds": bank_seconds,
        "driver_seconds": round(driver, 1), "driver_seconds_per_run": round(driver / runs, 5),
        "worker_seconds": worked, "share": round(driver / worked, 5), "wall_seconds": round(time.monotonic() - wall, 1),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--bank-seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(asked.runs, asked.workers, asked.bank_seconds, Path(temporary))
    text = json.dumps(found, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
