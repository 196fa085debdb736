"""How banks are resumed: `bank.json` lists those in progress, each with its runs and the folder of their checkpoints.

There are several where a bank ran out of memory and was halved, and where one failed and waits for the next `run`.
The file is replaced last, so that a bank's checkpoints are all of one moment, and a folder goes when the file
names it no more.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from adaptive_lora.files import parse_json, write_atomically
from adaptive_lora.training.checkpoint import Progress, read_checkpoint, write_checkpoint
from adaptive_lora.training.slots import Slot

RunState = tuple[Progress, Callable[[], Mapping[str, Tensor]]]
"""A run's progress, and what gives its tensors: called one run at a time, as together they may not fit."""

LARGEST_SHARE = 0.05
"""The most of the training time that writing checkpoints may take, whatever interval was asked for."""


@dataclass(frozen=True)
class Composition:
    """A bank in progress, as `bank.json` has it."""

    members: tuple[str, ...]
    """Run ids in their order; a run that has diverged since is still named."""
    chunk_tokens: int | None = None
    folder: str = ""
    """Where the runs' checkpoints are; empty before the first."""


class BankCheckpoints:
    """Writes the checkpoints of one bank: all runs of one moment, or those of the moment before."""

    def __init__(self, path: Path, composition: Composition, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self.composition = composition
        """The newest on disk: what the runs resume from, whatever becomes of the bank."""
        self._saved, self._cost = time.monotonic(), 0.0

    def resume(self, run_id: str, slot: Slot) -> Progress:
        """Puts a run of the bank back to where its checkpoint has it, or to its beginning where there is none."""
        found = None
        if self.composition.folder:
            path = self._path.parent / self.composition.folder / f"{run_id}.safetensors"
            found = read_checkpoint(path, run_id)
        if found is None:
            return Progress()
        progress, tensors = found
        try:
            slot.restore(tensors)
        except (KeyError, RuntimeError):
            slot.reset()  # a checkpoint of other tensors than the plan has: the run begins anew
            return Progress()
        slot.step = progress.steps_done
        return progress

    def due(self) -> bool:
        """Whether it is time for another: after the seconds asked for, and later where writing takes long.

        Zero seconds ask for one after every update, whatever it costs.
        """
        return self._seconds == 0 or time.monotonic() - self._saved >= max(self._seconds, self._cost / LARGEST_SHARE)

    def save(self, states: Mapping[str, RunState], chunk_tokens: int) -> None:
        """Writes every run's checkpoint to a new folder, then the file that makes it count."""
        began = time.monotonic()
        before = self.composition
        folder = self._path.parent / f"bank-{max(progress.steps_done for progress, _ in states.values())}"
        folder.mkdir(parents=True, exist_ok=True)
        for run_id, (progress, tensors) in states.items():
            write_checkpoint(folder / f"{run_id}.safetensors", run_id, progress, tensors())
        self.composition = Composition(before.members, chunk_tokens, folder.name)
        replace_composition(self._path, before, self.composition)
        self._saved = time.monotonic()
        self._cost = self._saved - began


def read_compositions(path: Path) -> list[Composition]:
    """The banks in progress; none if there are none, or the file cannot be read: at worst work is repeated."""
    try:
        banks = parse_json(path.read_text())
        return [Composition(tuple(bank["members"]), bank["chunk_tokens"], bank["folder"]) for bank in banks]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def replace_composition(path: Path, old: Composition, *new: Composition) -> None:
    """Replaces a bank by others, by none once it has finished; then deletes checkpoints that no bank names."""
    banks = read_compositions(path)
    at = banks.index(old) if old in banks else 0
    # Before its first checkpoint a bank has nothing to resume from.
    banks[at : at + (old in banks)] = [bank for bank in new if bank.folder]
    if banks:
        write_atomically(path, json.dumps([asdict(bank) for bank in banks]))
    else:
        path.unlink(missing_ok=True)
    named = {bank.folder for bank in banks}
    for folder in path.parent.glob("bank-*"):
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)
