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
    def splits(self) -> Path:
        """Which row of the source went to which split."""
        return self.folder / "splits.csv"

    @property
    def facts(self) -> Path:
        """Of an export alone, as is the next."""
        return self.folder / "facts.json"

    @property
    def archive(self) -> Path:
        return self.folder / "ledger.npz"

    @property
    def is_export(self) -> bool:
        """Whether it is a folder that `results --out` wrote."""
        return self.facts.is_file() and not self.ledger.is_file()

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


def make_folder(folder: Path) -> None:
    """Makes a study folder where there is none; StudyFolderError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyFolderError(
            f"The study folder {folder} cannot be made: {error.strerror}. Name another one with --out."
        ) from None


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a study folder for one writing process; StudyFolderError where another has it, or it cannot be held.

    The lock is the operating system's and goes with the process, however it ends.
    """
    path = StudyPaths(folder).lock
    try:
        file = path.open("a+")
    except OSError as error:
        raise StudyFolderError(
            f"{folder} cannot be written: {error.strerror}. Name another study folder with --out, or copy this one to "
            "where it can be."
        ) from None
    with file:
        if not _locked(file, patience_seconds=1.0):
            file.seek(0)
            raise StudyFolderError(
                f"{folder} is in use: process {file.read().strip() or 'unknown'} is running this study. "
                "Wait for it, or stop it first; nothing is lost."
            )
        try:
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())  # of a full disk closing would complain again
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a process is writing to the study folder now; none can be where `exclusive` cannot hold it."""
    path = StudyPaths(folder).lock
    if not path.exists():
        return False
    try:
        import fcntl

        with path.open("r") as file:
            # Held for an instant only; `exclusive` has the patience to wait for that.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _locked(file: IO[str], patience_seconds: float) -> bool:
    until = time.monotonic() + patience_seconds
    while True:
        try:
            import fcntl  # not on every system, and reading needs none

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        except (ImportError, OSError) as error:
            raise StudyFolderError(
                f"{file.name} cannot be locked ({error}), so that two processes could write to one study. Network file "
                "systems may be without locks: name a folder on a local disk with --out and copy it when the study "
                "is done."
            ) from None
