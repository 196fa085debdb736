"""Keeps what is replaced: a damaged ledger with its log, a lock that is not the one of the study."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.lock import check_lock, lock_of_ledger, read_lock, write_lock


def kept_ledger(ledger: Path) -> Path:
    """Where the ledger is read with its log: a kill between the two steps of `keep_damaged` has moved the log."""
    same = [path for path in _kept(ledger) if path.exists() and path.samefile(ledger)]
    return same[0] if same else ledger


def keep_damaged(ledger: Path) -> Path:
    """Gives the ledger a second name, and moves its log there, which would be taken for that of the new one.

    The first name goes on to name the damaged ledger until the new one takes it.
    """
    found = kept_ledger(ledger)
    if found == ledger:
        found = next(path for path in _kept(ledger) if not path.exists())
        try:
            os.link(ledger, found)
        except OSError:  # a file system without links
            shutil.copy2(ledger, found)
    log = ledger.with_name(f"{ledger.name}-wal")
    if log.exists() and log.stat().st_size:
        os.replace(log, found.with_name(f"{found.name}-wal"))
    for rest in (log, ledger.with_name(f"{ledger.name}-shm")):  # hold nothing
        rest.unlink(missing_ok=True)
    return found


def _kept(path: Path) -> list[Path]:
    """The names that a damaged file can have, in their order; one more than there are."""
    there = sum(1 for other in path.parent.iterdir() if other.name.startswith(f"{path.name}.damaged"))
    return [path.with_name(f"{path.name}.damaged{f'-{n}' if n > 1 else ''}") for n in range(1, there + 2)]


def recover_lock(folder: Path, facts: Mapping[str, str]) -> Path | None:
    """Writes the lock again from the ledger where it is missing, corrupt, or another; None where it stays.

    The one that stands there is kept under another name.
    """
    known = {key: json.loads(value) for key, value in facts.items()}
    if not known.get("lock"):
        return None
    path = StudyPaths(folder).decisions
    try:
        lock = read_lock(folder)
        if lock is not None:
            check_lock(folder, lock, known)
            return None
    except StudyFolderError:
        pass
    found = lock_of_ledger(known)
    if found is None:
        return None
    if path.exists():
        os.replace(path, next(other for other in _kept(path) if not other.exists()))
    write_lock(folder, found)
    return path
