"""Banks in progress on disk: `bank.json` lists them, each with its runs and the folder of their checkpoints.

There are several where a bank found no room and was halved, and where one broke and waits for the next `run`.
The file is replaced last, so that a bank's checkpoints are all of one moment, and a folder goes when the file
names it no more.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptive_lora.files import write_atomically


@dataclass(frozen=True)
class Composition:
    """A bank in progress, as `bank.json` has it."""

    members: tuple[str, ...]
    """Run ids in their order; a run that has diverged since is still named."""
    chunk_tokens: int | None = None
    folder: str = ""
    """Where the runs' checkpoints are; empty before the first."""


def read_compositions(path: Path) -> list[Composition]:
    """The banks in progress; none if there are none, or the file cannot be read: at worst work is repeated."""
    try:
        content = json.loads(path.read_text())
        banks = content if isinstance(content, list) else [content]  # earlier versions knew of one bank alone
        return [Composition(tuple(bank["members"]), bank["chunk_tokens"], bank["folder"]) for bank in banks]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def replace_composition(path: Path, old: Composition, *new: Composition) -> None:
    """Puts banks in the place of one, none where it is through; then deletes checkpoints that no bank names."""
    banks = read_compositions(path)
    at = banks.index(old) if old in banks else 0
    banks[at : at + (old in banks)] = [bank for bank in new if bank.folder]  # before its first, a bank has nothing
    if banks:
        write_atomically(path, json.dumps([asdict(bank) for bank in banks]))
    else:
        path.unlink(missing_ok=True)
    named = {bank.folder for bank in banks}
    for folder in path.parent.glob("bank-*"):
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)
