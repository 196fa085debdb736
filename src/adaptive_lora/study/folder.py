"""A study folder: every file name in it, and the lock that keeps it to one writing process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adaptive_lora.errors import StudyFolderError


@dataclass(frozen=True)
class StudyPaths:
    """Every file name of a study folder."""

    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "study.db"

    @property
    def study_file(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def decisions(self) -> Path:
        return self.folder / "study.lock.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def memory_bank(self) -> Path:
        return self.folder / "memory-bank"

    def adapter(self, run_id: str) -> Path:
        return self.folder / "adapters" / run_id

    @property
    def bank(self) -> Path:
        return self.folder / "checkpoints" / "bank.json"

    def checkpoint(self, run_id: str) -> Path:
        return self.folder / "checkpoints" / f"{run_id}.safetensors"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a study folder for one writing process; StudyFolderError where another has it.

    The lock is the operating system's and goes with the process, however it ends.
    """
    path = StudyPaths(folder).lock
    with path.open("a+") as file:
        if not _locked(file, patience_seconds=1.0):
            file.seek(0)
            raise StudyFolderError(
                f"{folder} is in use: process {file.read().strip() or 'unknown'} is running this study. "
                "Wait for it, or stop it first; nothing is lost."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a process is writing to the study folder now."""
    path = StudyPaths(folder).lock
    try:
        import fcntl
    except ImportError:
        return False
    if not path.exists():
        return False
    with path.open("r") as file:
        try:
            # Held for an instant only; `exclusive` has the patience to wait for that.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _locked(file: IO[str], patience_seconds: float) -> bool:
    import fcntl  # not on every system, and reading needs none

    until = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
