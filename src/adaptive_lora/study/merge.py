"""`merge`: the results of several folders of one study, in one.

Every run is taken from the folder that has finished it. What was decided (identity, lock) and what was trained on
(model, data) must be the same everywhere, and a run that two folders have finished must have the same numbers in both,
to the bit. Merging again changes nothing; folders that have gone on since add what is new.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.adapter_files import check_adapter
from adaptive_lora.study.folder import StudyPaths, exclusive, make_folder
from adaptive_lora.study.ledger import BASE, Ledger
from adaptive_lora.study.lock import differences, read_lock
from adaptive_lora.study.merged_rows import numbers_of, take_base, take_measurements, take_runs, take_scores
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.shards import FACT, Shard, finished_in, note_share
from adaptive_lora.study.status import ledger_status
from adaptive_lora.study.twins import check_twins

_DECIDED = ("identity", "hypotheses", "primary", "exploratory", "controls", "seeds", "deviations")
"""Of a lock: all but when it was written, and by which versions."""
_BASE_TOLERANCE = 1e-4
"""Relative, of the frozen model's losses: they are measured in every folder, perhaps on different machines."""
_SHOWN = 5
_OURS = (".lock", "study.db", "study.db-wal", "study.db-shm", "study.lock.json", "study.yaml", "splits.csv", "adapters")
"""What a merge that was cut before its ledger may have left."""


@dataclass(frozen=True)
class Merged:
    """What `merge` made."""

    taken: int
    """Finished runs that were not in the folder before."""
    finished: int
    """Runs with a result now."""
    left: int
    """Runs that the study will have, as far as it is known now, and that have none in any of the folders."""


def merge(folders: Sequence[Path], out: Path, adapters: bool = True) -> Merged:
    """Brings what `folders` have finished into `out`, a new folder or one of the same study.

    Raises StudyFolderError, before anything is written, where the folders are not of one study or disagree. A merge
    that was cut is whole after the same call again.
    """
    with contextlib.ExitStack() as stack:
        begun = _has_begun(out)
        if not begun and out.is_dir() and any(path.name not in _OURS for path in out.iterdir()):
            raise StudyFolderError(f"{out} is not empty and holds no study. Name a new folder with --out.")
        places = [*([out] if begun else []), *(folder for folder in folders if folder.resolve() != out.resolve())]
        ledgers = {place: stack.enter_context(contextlib.closing(open_to_read(place))) for place in places}
        if not ledgers:
            raise StudyFolderError("`merge` needs at least one study folder.")
        for ledger in ledgers.values():
            ledger.check()  # what is copied gets a digest of its own
        _check_same(ledgers)
        _check_agree(ledgers)
        furthest = max(ledgers, key=lambda place: len(ledgers[place].statuses(every=True)))
        make_folder(out)
        with exclusive(out):
            # The lock and what the ledger says of it come from one folder; nothing was decided later than the earliest.
            locked = out if begun else min(places, key=lambda place: (read_lock(place) or {})["locked"])
            facts = {**ledgers[furthest].facts(), "lock": ledgers[locked].facts()["lock"]}
            _copy_files(furthest, locked, out, facts)
            with contextlib.closing(create_or_open(out)) as target:
                return _merged(target, ledgers, facts, furthest, out if adapters else None)


def go_on_from(merged: Path, folder: Path, shard: Shard) -> int:
    """Brings what all shards have finished into the folder of one, whose shares are made anew; how many are new."""
    taken = merge([merged], folder, adapters=False).taken
    with contextlib.closing(open_to_read(merged)) as source:
        finished = finished_in(source)
    with exclusive(folder), contextlib.closing(create_or_open(folder)) as ledger:
        note_share(ledger, shard, finished)
    return taken


def _merged(
    target: Ledger, ledgers: dict[Path, Ledger], facts: Mapping[str, Any], furthest: Path, adapters_to: Path | None
) -> Merged:
    before = finished_in(target)
    facts = {key: value for key, value in facts.items() if key != FACT}
    target.set_facts({**facts, FACT: None} if FACT in target.facts() else facts)
    # The furthest first: runs stay in the order in which it registered them.
    for place in sorted(ledgers, key=lambda place: place != furthest):
        source = ledgers[place]
        if adapters_to is not None:  # first: the ledger names none that is not there
            _copy_adapters(place, adapters_to, finished_in(source))
        take_base(target, source, BASE)
        take_measurements(target, source)
        take_runs(target, source)
        take_scores(target, source)
    check_twins(target)
    status = ledger_status(target)
    return Merged(len(finished_in(target) - before), status.done, status.left)


def _has_begun(out: Path) -> bool:
    """Whether a folder has a ledger that says of which study it is; a merge that was cut may have left an empty one."""
    if not StudyPaths(out).ledger.exists():
        return False
    with contextlib.closing(open_to_read(out, begun=False)) as ledger:
        return bool(ledger.facts())


def _copy_files(furthest: Path, locked: Path, out: Path, facts: Mapping[str, Any]) -> None:
    """What lies beside the ledger, and the lock of the folder `locked`."""
    names = [StudyPaths(out).study_file.name, StudyPaths(out).splits.name]
    for name in [*names, *(Path(name).name for name in facts.get("strategy_files", ()))]:
        if (furthest / name).is_file() and furthest != out:
            write_atomically(out / name, (furthest / name).read_bytes())
    if locked != out:
        write_atomically(StudyPaths(out).decisions, StudyPaths(locked).decisions.read_bytes())


def _check_same(ledgers: dict[Path, Ledger]) -> None:
    """StudyFolderError unless all are one study, decided alike, on the same model and data."""
    complaints, locks = [], {place: read_lock(place) for place in ledgers}
    first, *others = ledgers
    facts = ledgers[first].facts()
    for place in ledgers:
        lock, own = locks[place], ledgers[place].facts()
        if lock is None:
            complaints.append(f"{place} has no {StudyPaths(place).decisions.name}: bring it back from a copy")
        elif lock["identity"] != own["identity"]:
            complaints.append(f"{place}: its lock and its ledger are of different studies")
    for place in others:
        own, sides = ledgers[place].facts(), (f"in {first}", f"in {place}")
        found = [] if own["identity"] == facts["identity"] else list(differences(facts["spec"], own["spec"], sides))
        found += differences(facts["material"], own["material"], sides)
        if not found and locks[first] is not None and locks[place] is not None:
            decided = [{name: lock.get(name) for name in _DECIDED} for lock in (locks[first], locks[place]) if lock]
            found += differences(decided[0], decided[1], sides)
        if found:
            complaints.append(f"{place} is not of the same study as {first}: {'; '.join(found[:_SHOWN])}")
    if complaints:
        raise StudyFolderError("These folders cannot be merged:\n" + "\n".join(f"  - {line}" for line in complaints))


def _check_agree(ledgers: dict[Path, Ledger]) -> None:
    """StudyFolderError where two folders have other numbers of one run."""
    seen: dict[str, tuple[Path, str, Any]] = {}
    conflicts = []
    for place, ledger in ledgers.items():
        for run in ledger.runs(every=True, status=(Status.COMPLETED, Status.DIVERGED)):
            # A run that was for tuning and then for evaluation lacks its test where it is still for tuning.
            key, numbers = f"{run['run_id']} {run['phase']}", (run["status"], numbers_of(ledger, run["run_id"]))
            where, label, known = seen.setdefault(key, (place, _label(run), numbers))
            if known != numbers:
                conflicts.append(f"{label} (run {run['run_id']}) has other results in {place} than in {where}")
        conflicts += _base_conflicts(place, ledger, ledgers)
    if conflicts:
        more = f"\n  - and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
        raise StudyFolderError(
            "These folders disagree, and nothing tells which is right:\n"
            + "\n".join(f"  - {line}" for line in conflicts[:_SHOWN])
            + f"{more}\nLeave one of the folders out; runs that it alone has are trained again."
        )


def _base_conflicts(place: Path, ledger: Ledger, ledgers: dict[Path, Ledger]) -> Iterator[str]:
    first = next(iter(ledgers))
    theirs = ledgers[first].totals()
    for (run_id, split), own in ledger.totals().items():
        other = theirs.get((run_id, split))
        if run_id == BASE and other and abs(own["nll"] - other["nll"]) > _BASE_TOLERANCE * abs(other["nll"]):
            yield f"the frozen model's {split} loss is another in {place} than in {first}"


def _label(run: dict[str, Any]) -> str:
    return f"{run['phase']} {run['arm']} {run['budget']} seed {run['seed']} rate {run['learning_rate']:g}"


def _copy_adapters(source: Path, out: Path, run_ids: set[str]) -> None:
    for run_id in sorted(run_ids):
        made, place = StudyPaths(source).adapter(run_id), StudyPaths(out).adapter(run_id)
        if made.is_dir() and not place.exists():
            check_adapter(made)
            partial = place.with_name(f".{run_id}-merge")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(made, partial)
            partial.replace(place)
