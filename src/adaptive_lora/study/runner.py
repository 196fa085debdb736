"""From a study file to results: what is pending is planned, trained, evaluated and recorded.

Everything a run needs follows from its spec, so that a study that was cut at any moment goes on by the
same command and ends in the same results.
"""

from __future__ import annotations

import contextlib
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.stats.words import counted
from adaptive_lora.study.engines.bank import BankWorker
from adaptive_lora.study.engines.engine import Worker
from adaptive_lora.study.engines.reference import ReferenceWorker
from adaptive_lora.study.engines.trackers import Trackers, check_trackers
from adaptive_lora.study.engines.watcher import Silent, Watcher
from adaptive_lora.study.folder import StudyPaths, exclusive, make_folder
from adaptive_lora.study.learning_rate_search import (
    Outcome,
    chosen_rates,
    edges,
    evaluations_expected,
    grid_of,
    outcome_of,
    tuning_losses,
)
from adaptive_lora.study.ledger import Ledger, create_or_open, open_to_read
from adaptive_lora.study.lock import check_decidable, differences, lock_of, read_lock, with_deviation, write_lock
from adaptive_lora.study.prepare import Material, prepare
from adaptive_lora.study.runs import count_runs, evaluation_runs, tuning_runs
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.set_aside import set_aside
from adaptive_lora.study.study_file import Study, portable_text
from adaptive_lora.study.twins import check_twins

__all__ = ["Silent", "Watcher", "check_folder", "interruptible", "run_study", "study_facts"]

_SIDES = ("there", "here")
_WORKERS: Mapping[str, type[Worker]] = {"bank": BankWorker, "reference": ReferenceWorker}


def run_study(
    study: Study,
    out: Path,
    watcher: Watcher | None = None,
    device: str = "cpu",
    checkpoint_seconds: float = 30.0,
    deviation: str | None = None,
) -> Outcome:
    """Trains what is missing of `study` in the folder `out`, and says how it stands.

    What is decided is locked before the first step (`study.lock`). A study file that has changed since is refused,
    unless `deviation` says why: then the lock records what changed, and the report says so.

    Raises UsageError before anything is written if the study cannot work or the folder is not its own;
    KeyboardInterrupt after keeping the current run safe. Runs that fail are recorded and tried again by
    the next call; the others go on.
    """
    watcher = watcher or Silent()
    check_decidable(study)
    check_trackers(study)
    check_folder(study, out, deviation=deviation)
    watcher.stage("loading model and data")
    material = prepare(study, device)
    for warning in material.warnings():
        watcher.stage(f"warning: {warning}")
    make_folder(out)
    with exclusive(out), interruptible(watcher) as stop, contextlib.ExitStack() as stack:
        check_folder(study, out, material, deviation)  # again: another process may have been here while we loaded
        ledger = stack.enter_context(contextlib.closing(create_or_open(out)))
        _decide(study, material, out, ledger, deviation)
        _set_aside(study.spec, material, ledger, watcher)
        write_atomically(StudyPaths(out).study_file, portable_text(study))
        trackers = Trackers(study.spec.tracking, study.spec.name, out / "tracking", watcher.stage)
        worker = _WORKERS[study.spec.engine](
            material, ledger, StudyPaths(out), watcher, stop, checkpoint_seconds, trackers
        )
        worker.evaluate_base()
        grid = _tune(study.spec, worker)
        _set_aside(study.spec, material, ledger)  # by the rates that are chosen now
        chosen = chosen_rates(study.spec, ledger)
        expected = {**count_runs(study.spec, grid), Phase.EVALUATION: evaluations_expected(study.spec, ledger)}
        ledger.set_facts({"chosen_rates": [[*key, rate] for key, rate in chosen.items()], "expected_runs": expected})
        worker.run_all(list(evaluation_runs(study.spec, chosen)))
        check_twins(ledger)
        return outcome_of(study.spec, ledger)


def _set_aside(spec: StudySpec, material: Material, ledger: Ledger, watcher: Watcher | None = None) -> None:
    """After a deviation, the runs that the study does not ask for any more; they are kept, and count nowhere."""
    if ledger.facts()["lock"]["deviations"]:
        left = set_aside(spec, material.context(), ledger)
        if left and watcher:
            watcher.stage(f"{counted(left, 'run')} of the study as it was before the deviation stay and do not count")


def _tune(spec: StudySpec, worker: Worker) -> tuple[float, ...]:
    """Trains the grid of rates, wider while the study lets it grow; says where a best rate lies at its edge."""
    done: tuple[float, ...] = ()
    while (grid := grid_of(spec, worker.ledger)) != done:
        if done:
            added = ", ".join(f"{rate:g}" for rate in grid if rate not in done)
            worker.watcher.stage(f"a best learning rate lies at the edge of the grid: adding {added} for all arms")
        worker.ledger.set_facts({"expected_runs": count_runs(spec, grid)})
        worker.run_all(list(tuning_runs(spec, grid)))
        done = grid
    for edge in edges(tuning_losses(spec, worker.ledger, grid), grid):
        worker.watcher.stage(f"warning: {edge.text}")
    return grid


def _decide(study: Study, material: Material, out: Path, ledger: Ledger, deviation: str | None) -> None:
    """Writes the lock and the ledger's facts, or what has changed since."""
    before, facts, known = read_lock(out), {**study_facts(study), **material.facts()}, ledger.facts()
    lock = lock_of(study, facts)
    if before is not None and before["identity"] == study.identity:
        # A kill between lock and ledger leaves the facts of the study before the deviation.
        lock, facts = before, {**facts, **known} if known.get("identity") == study.identity else facts
    elif before is not None:
        if not deviation:
            apart = "; ".join(differences(before["spec"], study.spec.model_dump(mode="json"), ("locked", "here")))
            raise StudyFolderError(
                f"{out} is locked for another version of this study: {apart}. To go on with this one, say why: "
                "--deviation REASON; the report will show it."
            )
        results = sum(Status(run["status"]).is_finished for run in ledger.runs(every=True))
        lock = with_deviation(before, lock, deviation, results)
    elif ledger.runs(every=True):
        raise StudyFolderError(
            f"{out} has runs but no {StudyPaths(out).decisions.name}, which says what was decided before the first of "
            "them. Bring it back from a copy, or name a new folder with --out."
        )
    if lock is not before:
        write_lock(out, lock)
    kept = ("locked", "hypotheses", "primary", "controls", "deviations", "first")
    ledger.set_facts({**facts, "lock": {name: lock[name] for name in kept if name in lock}})


def check_folder(study: Study, out: Path, material: Material | None = None, deviation: str | None = None) -> None:
    """StudyFolderError unless `out` is new, empty, or already this study's, on the same model and data.

    With a reason for a `deviation` it may be that of another version of the study.
    """
    paths = StudyPaths(out)
    if blocking := [place for place in (out, *out.parents) if place.exists() and not place.is_dir()]:
        raise StudyFolderError(f"{blocking[0]} is a file; name a folder for the study.")
    if not paths.ledger.exists():
        if out.is_dir() and any(path.name != paths.lock.name for path in out.iterdir()):
            raise StudyFolderError(f"{out} is not empty and holds no study. Name a new folder with --out.")
        return
    with contextlib.closing(open_to_read(out, begun=False)) as ledger:
        facts = ledger.facts()
    if facts and facts.get("identity") != study.identity and not deviation:
        apart = "; ".join(differences(facts["spec"], study.spec.model_dump(mode="json"), _SIDES))
        raise StudyFolderError(
            f"{out} belongs to another study ({facts['name']!r}). It differs from {study.path}: {apart}. "
            "Name another folder with --out, or go back to the study file that the folder was made with "
            f"({paths.study_file}). To go on with the change, say why: --deviation REASON; the report will show it."
        )
    if facts and material is not None and facts["material"] != material.context():
        apart = "; ".join(differences(facts["material"], material.context(), _SIDES))
        raise StudyFolderError(
            f"The model or the data of the study in {out} have changed since it began: {apart}. "
            "Results on both would be mixed; name a new folder with --out, or bring the old files back."
        )


def study_facts(study: Study) -> dict[str, Any]:
    """What the ledger keeps of the study file and of what runs it."""
    packages = ("adaptive-lora", "torch", "transformers", "peft", "numpy")
    return {
        "name": study.spec.name,
        "identity": study.identity,
        "spec": study.spec.model_dump(mode="json"),
        "text": study.text,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "expected_runs": {phase.value: count for phase, count in count_runs(study.spec).items()},
    }


@contextlib.contextmanager
def interruptible(watcher: Watcher) -> Iterator[Callable[[], bool]]:
    """A question "shall we stop?" that the first Ctrl-C answers with yes; the second stops at once."""
    asked = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        watcher.stage("keeping the current run safe; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
