"""Whether the ledger that is written is still the file at its path: a study folder can be removed, moved or replaced
while a study runs, and the system keeps an open file that no one will find again."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from adaptive_lora.errors import FolderLostError

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class PlacedConnection(sqlite3.Connection):
    """A connection whose transactions begin only while its file is the one at `path`."""

    path: Path | None = None
    _file: tuple[int, int] | None = None
    _lost = False

    def placed_at(self, path: Path) -> None:
        """From now on the file at `path` is to be this one."""
        self.path, self._file = path, _file_at(path)

    def check_place(self) -> None:
        """FolderLostError where the file at the path is another one, or there is none."""
        if self.path is None or self._file is None:
            return
        try:
            there = _file_at(self.path)
        except OSError:  # it cannot be told now; what is written next will tell
            return
        if there != self._file:
            self._lost = True
            raise FolderLostError(_what_happened(self.path, there is not None, _now_at(self._file)))

    def __enter__(self) -> Self:
        self.check_place()
        return super().__enter__()

    def close(self) -> None:
        """Closes, but for a file that is lost: SQLite would delete the log at its path, which may be another's."""
        if not self._lost:
            super().close()
        elif self.path is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # for good: closing comes with the last reference
            self.path = None


def _file_at(path: Path) -> tuple[int, int] | None:
    """Device and inode; None where there is no file."""
    try:
        found = path.stat()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return found.st_dev, found.st_ino


def _what_happened(path: Path, replaced: bool, now: Path | None) -> str:
    folder = path.parent
    if now is not None:
        return (
            f"The study folder {folder} was moved to {now.parent} while the study ran, which has been stopped. What "
            f"was recorded is there: run the same command again with --out {now.parent}."
        )
    if replaced:
        return (
            f"{path} was replaced by another file while the study ran, which has been stopped: what it recorded is "
            "gone with the old one. To begin anew, run the same command again with a new folder in --out."
        )
    return (
        f"The study folder {folder} was removed while the study ran, which has been stopped: what it recorded is gone. "
        "Run the same command again to begin anew."
    )


def _now_at(file: tuple[int, int]) -> Path | None:
    """Where an open file has been moved to, as far as the system tells."""
    return next((path for path in _open_files() if path.is_file() and _file_at(path) == file), None)


def _open_files() -> Iterator[Path]:
    handles = Path("/proc/self/fd")
    for handle in handles.iterdir() if handles.is_dir() else ():
        try:
            yield Path(os.readlink(handle))
        except OSError:
            continue
