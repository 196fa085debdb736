"""From a study file to results: what is missing is planned, trained, evaluated and recorded.

Everything a run needs follows from its spec, so that a study that was cut at any moment goes on by the
same command and ends in the same results.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.data_facts import splits_csv
from adaptive_lora.study.engines.answers import answer_records
from adaptive_lora.study.engines.bank import BankEngine
from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.engines.reference import ReferenceEngine
from adaptive_lora.study.engines.scorer import Scorer
from adaptive_lora.study.engines.scores import record_basis, score_missing, scorer_of
from adaptive_lora.study.engines.trackers import Trackers, check_trackers
from adaptive_lora.study.executors.door import Workers, check_engine, opened
from adaptive_lora.study.folder import StudyPaths, exclusive, make_folder
from adaptive_lora.study.interrupts import interruptible
from adaptive_lora.study.kept_adapters import drop_adapters
from adaptive_lora.study.learning_rate_search import Search, search_of
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import (
    check_decidable,
    check_lock,
    decided,
    differences,
    lock_of,
    read_lock,
    with_deviation,
    write_lock,
)
from adaptive_lora.study.matrix import CellKey
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.prepare import PreparedStudy, prepare
from adaptive_lora.study.progress import ProgressListener, Silent, Sturdy
from adaptive_lora.study.scoring import check_command, metric_of_study
from adaptive_lora.study.sequential import evaluate_by_looks
from adaptive_lora.study.set_aside import set_aside
from adaptive_lora.study.shards import Shard, ShardWaits
from adaptive_lora.study.status import StudyStatus, ledger_status
from adaptive_lora.study.strategy_files import kept_files
from adaptive_lora.study.study_file import Study, exported_text, portable_text
from adaptive_lora.study.tuning import added_rates
from adaptive_lora.study.twins import check_twins

__all__ = ["Limits", "ProgressListener", "Silent", "check_folder", "run_study", "study_facts"]

_SIDES = ("there", "here")
_LEFTOVERS = ("checkpoints", "adapters")
"""All that is there where a folder was removed in the midst of writing them; what they hold is checked before use."""


@dataclass(frozen=True)
class Limits:
    """What a caller bounds of a study's run; none of it changes a result."""

    should_stop: Callable[[], bool] = lambda: False
    """Asked after every update: where it says yes, the study saves a checkpoint and ends as by Ctrl-C."""
    largest_bank: int | None = None
    """Most runs trained together. Results appear when a bank ends, so that small ones leave more behind at a stop."""
    shard: Shard | None = None
    """The share of the banks that is trained here, of a study that several processes share without a driver."""


_ENGINES: Mapping[str, type[Engine]] = {"bank": BankEngine, "reference": ReferenceEngine}


def run_study(
    study: Study,
    out: Path,
    listener: ProgressListener | None = None,
    device: str | None = None,
    checkpoint_seconds: float = 30.0,
    deviation: str | None = None,
    limits: Limits | None = None,
    workers: Workers | None = None,
) -> StudyStatus:
    """Trains what is missing of `study` in the folder `out`, and returns its status; `workers` train it, by default
    this process.

    What is decided is locked before the first step (`study.lock`). A study file that has changed since is refused,
    unless `deviation` says why: then the lock records what changed, and the report says so. `device`: by default the
    accelerator where there is one, else the CPU.

    Raises UsageError before anything is written if the study cannot work or the folder is not its own;
    KeyboardInterrupt after saving a checkpoint (Terminated where it was not Ctrl-C that asked for it); ScoringError
    where the study's metric gives an adapter no value; FolderLostError where `out` was removed, moved or replaced
    meanwhile. Runs that fail are recorded and tried again by the next call; the others go on.
    """
    listener, limits = Sturdy(listener or Silent()), limits or Limits()
    check_decidable(study)
    check_trackers(study)
    check_command(study)
    check_engine(study, workers)
    check_folder(study, out, deviation=deviation)
    listener.stage("loading model and data")
    prepared = prepare(study, device)
    scorer = _open_scorer(prepared, out, listener)
    listener.stage(f"on {prepared.base.device}")
    for note in prepared.notes():
        listener.stage(note)
    for warning in prepared.warnings():
        listener.stage(f"warning: {warning}")
    make_folder(out)
    with exclusive(out), interruptible(listener) as stop, contextlib.ExitStack() as stack:
        check_folder(study, out, prepared, deviation)  # again: another process may have been here while we loaded
        ledger = stack.enter_context(contextlib.closing(create_or_open(out)))
        ledger.check()  # nothing is added to results that are not what was recorded
        # The lock comes first: it must be on disk before there is anything that it could have been fitted to.
        _lock(study, prepared, out, ledger, deviation)
        record_basis(ledger, prepared, scorer)
        _set_aside(prepared, ledger, listener)
        write_atomically(StudyPaths(out).study_file, portable_text(study))
        write_atomically(StudyPaths(out).splits, splits_csv(ledger.facts()["splits"]))
        for name, text in kept_files(study.spec).items():
            write_atomically(out / name, text)
        trackers = Trackers(study.spec.tracking, study.spec.name, out / "tracking", listener.stage)

        def should_stop() -> bool:
            ledger.check_place()
            return stop() or limits.should_stop()

        engine = _ENGINES[study.spec.engine](
            prepared, ledger, StudyPaths(out), listener, should_stop, checkpoint_seconds, trackers, limits.largest_bank,
            door=stack.enter_context(opened(workers, device)), shard=limits.shard, scorer=scorer,
        )  # fmt: skip
        return _train_all(engine)


def _train_all(engine: Engine) -> StudyStatus:
    """Everything that the study asks for, or a shard's share of it, and what is made of it in the end."""
    ledger, listener, shard = engine.ledger, engine.listener, engine.shard
    engine.evaluate_base()
    try:
        search = _tune(engine)
        _set_aside(engine.prepared, ledger)  # by the rates that are chosen now
        _evaluate(engine, search)
    except ShardWaits as rest:
        score_missing(engine)
        listener.stage(f"shard {shard} has done its share; {rest.missing:,} runs are with the others")
        return ledger_status(ledger)
    check_twins(ledger)
    if shard is None:  # a shard has not the adapters of the others
        answer_records(engine)
        drop_adapters(engine.prepared.study, ledger, engine.paths, at_end=True)
    status = ledger_status(ledger)
    ledger.check_place()  # last, so that no study is called complete of which there is nothing
    return status


def _open_scorer(prepared: PreparedStudy, out: Path, listener: ProgressListener) -> Scorer | None:
    """What makes the values of the study's metric; None where nothing does, or all of them are there."""
    metric = metric_of_study(prepared.study)
    if not metric.is_scored:
        return None
    if StudyPaths(out).ledger.is_file():
        with contextlib.closing(open_to_read(out)) as ledger:
            if ledger.facts().get("identity") == prepared.study.identity and ledger_status(ledger).finished:
                return None
    listener.stage(f"opening {metric.title}")
    return scorer_of(prepared)


def _set_aside(prepared: PreparedStudy, ledger: Ledger, listener: ProgressListener | None = None) -> None:
    """After a deviation, sets aside runs that the study does not ask for any more; they are kept and do not count."""
    if ledger.facts()["lock"]["deviations"]:
        left = set_aside(prepared.study.matrix, prepared.context, ledger)
        if left and listener:
            listener.stage(f"not counted: {left:,} run(s) of the study as it was before the deviation")


def _tune(engine: Engine) -> Search:
    """Trains at the rates that the search asks for until it asks for no more; warns of best ones at an edge."""
    matrix, ledger = engine.prepared.study.matrix, engine.ledger
    done: dict[CellKey, tuple[float, ...]] = {}
    while (search := search_of(matrix, ledger)).asked != done:
        if done:
            engine.listener.stage(added_rates(done, search.asked))
        expected = search.expected_runs()
        ledger.set_facts({"expected_runs": expected})
        engine.run_all(list(matrix.tuning_runs(search.asked)), sum(expected.values()))
        done = search.asked
    for edge in search.edges:
        best = f"the best rate, {edge.rate:g}, is at the edge of the grid" if edge.trained else "every rate diverges"
        remedy = f"{'begin at' if edge.by_steps else 'add'} {edge.beyond:g} {'by' if edge.by_steps else 'to'}"
        engine.listener.stage(f"warning: {edge.arm} at {edge.budget}: {best}; {remedy} `learning_rate`")
    return search


def _evaluate(engine: Engine, search: Search) -> None:
    """Trains what is compared, all at once or look by look."""
    matrix, ledger, expected = engine.prepared.study.matrix, engine.ledger, search.expected_runs()
    chosen = [[*key, rate] for key, rate in search.chosen.items()]
    ledger.set_facts({"chosen_rates": chosen, "expected_runs": expected, **search.facts})
    if matrix.spec.seeds.looks:
        evaluate_by_looks(engine, search.chosen, expected[Phase.TUNING])
    else:
        if "looking" in ledger.facts():  # a deviation may have left it there
            ledger.set_facts({"looking": None})
        engine.run_all(list(matrix.evaluation_runs(search.chosen)), sum(expected.values()))
        score_missing(engine)


def _lock(study: Study, prepared: PreparedStudy, out: Path, ledger: Ledger, deviation: str | None) -> None:
    """Writes the lock and the ledger's facts, or what has changed since."""
    before, facts, known = read_lock(out), {**study_facts(study), **prepared.facts()}, ledger.facts()
    if before is not None:
        check_lock(out, before, known)
    lock = lock_of(study, facts)
    if before is not None and before["identity"] == study.identity:
        # A kill between lock and ledger leaves the facts of the study before the deviation.
        lock, facts = before, {**facts, **known} if known.get("identity") == study.identity else facts
    elif before is not None:
        if not deviation:
            differ = "; ".join(differences(before["spec"], study.spec.model_dump(mode="json"), ("locked", "here")))
            raise StudyFolderError(
                f"{out} is locked for another version of this study: {differ}. To go on with this one, say why: "
                "--deviation REASON; the report will show it."
            )
        results = sum(status.is_finished for status in ledger.statuses(every=True).values())
        lock = with_deviation(before, lock, deviation, results)
    elif ledger.statuses(every=True):
        raise StudyFolderError(
            f"{out} has runs but no {StudyPaths(out).decisions.name}, which says what was decided before the first of "
            "them. Bring it back from a copy, or name a new folder with --out."
        )
    if lock is not before:
        write_lock(out, lock)
    ledger.set_facts({**facts, "lock": decided(lock)})


def check_folder(study: Study, out: Path, prepared: PreparedStudy | None = None, deviation: str | None = None) -> None:
    """StudyFolderError unless `out` is new, empty, or already this study's, on the same model and data.

    With a reason for a `deviation` it may be that of another version of the study.
    """
    paths = StudyPaths(out)
    if blocking := [place for place in (out, *out.parents) if place.exists() and not place.is_dir()]:
        raise StudyFolderError(f"{blocking[0]} is a file; name a folder for the study.")
    if not paths.ledger.exists():
        if out.is_dir() and any(path.name not in (paths.lock.name, *_LEFTOVERS) for path in out.iterdir()):
            raise StudyFolderError(f"{out} is not empty and holds no study. Name a new folder with --out.")
        return
    with contextlib.closing(open_to_read(out, begun=False)) as ledger:
        facts = ledger.facts()
    if facts and facts.get("identity") != study.identity and not deviation:
        differ = "; ".join(differences(facts["spec"], study.spec.model_dump(mode="json"), _SIDES))
        raise StudyFolderError(
            f"{out} belongs to another study ({facts['name']!r}). It differs from {study.path}: {differ}. "
            "Name another folder with --out, or go back to the study file that the folder was made with "
            f"({paths.study_file}). To go on with the change, say why: --deviation REASON; the report will show it."
        )
    if facts and prepared is not None and facts["material"] != prepared.material:
        differ = "; ".join(differences(facts["material"], prepared.material, _SIDES))
        raise StudyFolderError(
            f"The model or the data of the study in {out} have changed since it began: {differ}. "
            "Results on both would be mixed; name a new folder with --out, or bring the old files back."
        )


def study_facts(study: Study) -> dict[str, Any]:
    """What the ledger keeps of the study file and of what runs it."""
    packages = ("adaptive-lora", "torch", "transformers", "peft", "numpy")
    quantising = ("bitsandbytes",) if study.spec.model.quantise else ()
    counts = study.matrix.counts(seeds=study.matrix.first_seeds)
    return {
        "name": study.spec.name,
        "identity": study.identity,
        "spec": study.spec.model_dump(mode="json"),
        "text": exported_text(study),
        **({"strategy_files": files} if (files := kept_files(study.spec)) else {}),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in (*packages, *quantising)},
        },
        "expected_runs": {phase.value: count for phase, count in counts.items()},
    }
