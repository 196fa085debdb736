"""Writes a new ledger of what is sound of a damaged one, which is kept; `run` then trains what is missing.

A run counts as finished where all of it is sound: its row, its plan, its curve, its losses by record. Of what is not
whole, the plan is kept where that is sound, and the rest is lost. Facts of the study are kept where all those are sound
that it is known by; else none is, and `run` writes them again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.recovery.keeping import keep_damaged, kept_ledger, recover_lock
from adaptive_lora.recovery.reading import Sound, read_sound
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.folder import StudyPaths, exclusive, make_folder
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.open_ledger import write_ledger
from adaptive_lora.study.score_store import RECORDS

KNOWN_BY = (
    "name", "identity", "spec", "text", "versions", "expected_runs", "model", "data", "budgets", "material", "lock",
)  # fmt: skip
"""Facts without which a study's results cannot be read, or cannot be told from those of another."""
_UNDONE = ("step", "error", "trainable_parameters", "plan_seconds", "train_seconds", "started", "finished")
_WORDS = {"curves": "its curve", "plans": "its plan", "evaluations": "its losses", "scores": "its scores"}


@dataclass(frozen=True)
class LostRun:
    """A run that is to be done again, or whose scores are."""

    run_id: str
    label: str
    """`uniform at rank:8, seed 0`; empty where the run's own row is lost."""
    what: tuple[str, ...]
    """What of it is lost."""


@dataclass(frozen=True)
class Recovery:
    """What came of it."""

    ledger: Path
    """The new one; the old one where nothing was to be recovered."""
    damaged: Path | None
    """Where the damaged one is kept; None where nothing was wrong."""
    runs: int
    """Finished runs that are sound."""
    lost: tuple[LostRun, ...]
    facts_lost: tuple[str, ...]
    """Facts of the study that are lost, by name."""
    facts_kept: bool
    """Whether the study can be read before the next `run`."""
    others_lost: tuple[str, ...]
    """Measurements and the frozen model's losses that are lost, by table and key."""
    proven: bool
    """Whether digests say so; of a ledger of before SQLite alone does."""
    lock: Path | None = None
    """The lock, where it was written again from the ledger."""

    def to_json(self) -> dict[str, Any]:
        """As `recover --json` prints it."""
        lost = [{"run_id": run.run_id, "label": run.label, "what": list(run.what)} for run in self.lost]
        return {
            "ledger": str(self.ledger), "damaged": str(self.damaged) if self.damaged else None, "runs": self.runs,
            "lost": lost, "facts_lost": list(self.facts_lost), "facts_kept": self.facts_kept,
            "others_lost": list(self.others_lost), "proven": self.proven, "lock": str(self.lock) if self.lock else None,
        }  # fmt: skip


def recover(folder: Path, out: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Recovery:
    """Recovers the ledger of a study folder: in its place, the damaged one beside it, or in a new folder `out`.

    A ledger that is sound is left as it is. A kill at any moment leaves the damaged ledger or the new one, and the same
    call goes on. Raises StudyFolderError where there is no ledger, where nothing of it can be read, where the folder is
    in use, or `out` is not empty.
    """
    paths = StudyPaths(folder)
    if not paths.ledger.is_file():
        raise StudyFolderError(f"{folder} has no {paths.ledger.name}; there is nothing to recover.")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudyFolderError(f"{out} is there already; name a new folder with --out.")
    with exclusive(folder):
        for left in folder.glob(".recover-*"):  # of a call that was killed
            shutil.rmtree(left, ignore_errors=True)
        say(f"reading {paths.ledger}")
        source = kept_ledger(paths.ledger)
        sound = read_sound(source)
        facts, tables = _facts(sound), _tables(sound)
        whole = {run["run_id"] for run in tables["runs"] if Status(run["status"]).is_finished}
        found = Recovery(
            paths.ledger, None, len(whole), _lost_runs(sound, whole), tuple(sorted(_keys(sound, "study"))),
            bool(facts), tuple(sorted(_others(sound))), sound.proven,
        )  # fmt: skip
        if sound.intact and out is None and source == paths.ledger:
            return _with_lock(found, folder, facts)
        if not any(tables.values()):
            raise StudyFolderError(
                f"Nothing of {paths.ledger} can be read any more. Bring it back from a copy, or begin anew in a new "
                "folder with `run --out`."
            )
        say("writing what is sound")
        return _with_lock(_write(found, folder, out, tables), out or folder, facts)


def _write(found: Recovery, folder: Path, out: Path | None, tables: Mapping[str, list[dict[str, Any]]]) -> Recovery:
    ledger = StudyPaths(folder).ledger
    if out is not None:
        names = (f"{ledger.name}*", StudyPaths(folder).lock.name, ".recover-*")
        make_folder(out.parent)
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*names))
        write_ledger(out, tables)
        return _replaced(found, StudyPaths(out).ledger, ledger)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".recover-") as made:
        write_ledger(Path(made), tables)
        damaged = keep_damaged(ledger)
        os.replace(StudyPaths(Path(made)).ledger, ledger)
    return _replaced(found, ledger, damaged)


def _replaced(found: Recovery, ledger: Path, damaged: Path | None, lock: Path | None = None) -> Recovery:
    return Recovery(**{**vars(found), "ledger": ledger, "damaged": damaged, "lock": lock})


def _with_lock(found: Recovery, folder: Path, facts: Mapping[str, Any]) -> Recovery:
    return _replaced(found, found.ledger, found.damaged, recover_lock(folder, facts))


def _facts(sound: Sound) -> dict[str, str]:
    """Facts of the study as they are stored; none where one that it is known by is lost."""
    facts = {key: row["value"] for key, (_, row) in sound.rows["study"].items()}
    return facts if {*KNOWN_BY} <= facts.keys() else {}


def _tables(sound: Sound) -> dict[str, list[dict[str, Any]]]:
    """The rows of the new ledger."""
    facts = _facts(sound)
    done = {run_id for run_id, (_, run) in sound.rows["runs"].items() if not _missing(sound, run)}
    runs = [run if run["run_id"] in done else _undone(run) for run in _in_order(sound, "runs")]
    own = {BASE, *done} if facts else done
    found = {
        "study": [row for row in _in_order(sound, "study") if facts],
        "runs": runs,
        "plans": _in_order(sound, "plans"),
        "measurements": _in_order(sound, "measurements"),
        "evaluations": [row for row in _in_order(sound, "evaluations") if row["run_id"] in own],
        "curves": [row for row in _in_order(sound, "curves") if row["run_id"] in own],
    }
    scores = [row for row in _in_order(sound, "scores") if row["run_id"] in own and RECORDS in facts]
    return {**found, **({"scores": scores} if scores else {})}


def _in_order(sound: Sound, name: str) -> list[dict[str, Any]]:
    return [row for _, row in sorted(sound.rows[name].values(), key=lambda item: item[0])]


def _undone(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as it was registered."""
    return {**run, "status": Status.PENDING.value, **dict.fromkeys(_UNDONE)}


def _missing(sound: Sound, run: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What a run should have by its status and has not; scores are taken again without it."""
    run_id = run["run_id"]
    found = {
        (name, key) for name, key in sound.lost if name in ("evaluations", "curves") and key.split("/")[0] == run_id
    }
    if run["status"] == Status.COMPLETED:
        splits = ("validation", "test") if run["phase"] == Phase.EVALUATION else ("validation",)
        wanted = {("plans", run_id), ("curves", run_id), *(("evaluations", f"{run_id}/{split}") for split in splits)}
        found |= {(name, key) for name, key in wanted if key not in sound.rows[name]}
    return found


def _lost_runs(sound: Sound, whole: set[str]) -> tuple[LostRun, ...]:
    """Runs that had a result, or may have had one, and have none now; or whose scores are lost."""
    lost: dict[str, set[str]] = {}
    for name, key in sound.lost:
        run_id, *part = key.split("/")
        if name == "runs":
            lost.setdefault(run_id, set()).add("all of it")
        elif name in _WORDS and run_id != BASE and (name != "plans" or run_id not in whole):
            lost.setdefault(run_id, set()).add(f"{_WORDS[name]}{f' ({part[0]})' if part else ''}")
    for run_id, (_, run) in sound.rows["runs"].items():
        for name, key in _missing(sound, run) - sound.lost:
            lost.setdefault(run_id, set()).add(f"{_WORDS[name]}{''.join(f' ({p})' for p in key.split('/')[1:])}")
    found = []
    for run_id, what in lost.items():
        row = sound.row("runs", run_id)
        label = f"{row['arm']} at {row['budget']}, seed {row['seed']}" if row else ""
        found.append(LostRun(run_id, label, tuple(sorted(what))))
    return tuple(sorted(found, key=lambda run: (run.label, run.run_id)))


def _keys(sound: Sound, name: str) -> set[str]:
    return {key for table, key in sound.lost if table == name}


def _others(sound: Sound) -> set[str]:
    measured = {f"measurement {key}" for key in _keys(sound, "measurements")}
    return measured | {f"losses of the frozen model ({k.split('/')[1]})" for k in _keys(sound, "evaluations")
                       if k.split("/")[0] == BASE}  # fmt: skip
