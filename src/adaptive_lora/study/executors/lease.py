"""A lease: one attempt at a bank, in a folder of its own under `checkpoints/`.

The folder holds the checkpoints of this attempt (`bank.json` and what it names), the worker's messages, and the
driver's wish that it stop. No two attempts share one, so that a worker which was given up and wakes again disturbs
nobody: where its folder is gone it stops by itself.

Messages are lines of JSON that are only ever added to. Each is written by opening and closing the file, which is when
network file systems show it to others. The driver takes any new message for a sign of life and holds its own
monotonic clock against it, so that clocks of machines need not agree.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.study.engines.resume import Composition, read_compositions, replace_composition
from adaptive_lora.study.folder import StudyPaths

_PREFIX, _BANK = "lease-", "bank.json"


@dataclass(frozen=True)
class LeaseFolder:
    """The files of one lease."""

    folder: Path

    @property
    def bank(self) -> Path:
        """As `StudyPaths.bank`, of this attempt."""
        return self.folder / _BANK

    @property
    def token(self) -> str:
        """What tells this attempt from others."""
        return self.folder.name.removeprefix(_PREFIX)

    @property
    def _messages(self) -> Path:
        return self.folder / "messages.jsonl"

    @property
    def _stop(self) -> Path:
        return self.folder / "stop"

    def send(self, kind: str, **content: Any) -> None:
        """Adds a message; raises OSError where the folder is gone."""
        line = json.dumps({"kind": kind, **content}) + "\n"
        handle = os.open(self._messages, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def ask_to_stop(self) -> None:
        """Asks the worker to save a checkpoint and end."""
        if self.folder.is_dir():
            self._stop.touch()

    def must_stop(self) -> bool:
        """Whether the worker was asked to, or its lease is over."""
        return self._stop.exists() or not self.folder.is_dir()

    def read(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Whole messages from a byte on, and the byte to go on from."""
        try:
            with self._messages.open("rb") as file:
                file.seek(offset)
                text = file.read()
        except OSError:
            return [], offset
        whole = text[: text.rfind(b"\n") + 1]
        return list(_parsed(whole)), offset + len(whole)

    def remove(self) -> None:
        """Ends the lease: a worker that still has it stops when it sees that."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _parsed(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            message = json.loads(line)
        except ValueError:  # a line cut by a full disk says nothing, and is a sign of life all the same
            message = {}
        yield message if isinstance(message, dict) else {}


def new_lease(paths: StudyPaths, composition: Composition, source: Path | None) -> LeaseFolder:
    """A folder for an attempt at a bank, with the checkpoints that it goes on from; `source` is the file that names
    them, and goes on to do so."""
    lease = LeaseFolder(paths.bank.parent / f"{_PREFIX}{uuid.uuid4().hex[:12]}")
    lease.folder.parent.mkdir(exist_ok=True)  # in a study folder that is there, and not in one that was removed
    lease.folder.mkdir()
    if composition.folder and source is not None:
        copy_bank(source, composition, lease.bank)
    return lease


def copy_bank(source: Path, composition: Composition, target: Path) -> None:
    """Has a second file name a bank too, with the same checkpoints beside it."""
    for folder in source.parent.glob("bank-*"):
        shutil.copytree(folder, target.parent / folder.name, copy_function=_linked, dirs_exist_ok=True)
    replace_composition(target, composition, composition)


def drop(source: Path, composition: Composition) -> None:
    """A bank is over, or goes on elsewhere: its file names it no more; a lease that has no other ends."""
    replace_composition(source, composition)
    if source.parent.name.startswith(_PREFIX) and not source.exists():
        LeaseFolder(source.parent).remove()


def banks_in_progress(
    paths: StudyPaths, say: Callable[[str], None] = lambda text: None
) -> list[tuple[Path, Composition]]:
    """Every bank that can go on, and the file that names it; of two attempts at one bank the further comes first.
    `say` is told of files that are damaged.

    Folders of leases that have no checkpoint are removed, and so is what workers made and nobody took.
    """
    found = [(paths.bank, composition) for composition in read_compositions(paths.bank, say)]
    for folder in sorted(paths.bank.parent.glob(f"{_PREFIX}*")):
        lease = LeaseFolder(folder)
        own = [(lease.bank, composition) for composition in read_compositions(lease.bank, say)]
        found += own
        if not own:
            lease.remove()
    for left in paths.adapter("x").parent.glob(".*-*"):
        shutil.rmtree(left, ignore_errors=True)
    return sorted(found, key=lambda bank: -updates(bank[1]))  # stable: others stay in their order


def updates(composition: Composition) -> int:
    """Updates of the newest checkpoint; 0 before the first."""
    digits = composition.folder.removeprefix("bank-")
    return int(digits) if digits.isdecimal() else 0


def _linked(source: str, target: str) -> None:
    """A second name for a file that is only ever replaced as a whole; a copy where the file system has no links."""
    if os.path.exists(target):
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
