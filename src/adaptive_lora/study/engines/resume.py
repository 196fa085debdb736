"""How banks are resumed: `bank.json` lists those in progress, each with its runs and the folder of their checkpoints.

There are several where a bank ran out of memory and was halved, and where one failed and waits for the next `run`.
The file is replaced last, so that a bank's checkpoints are all of one moment, and a folder goes when the file
names it no more. Two generations are kept: where one file of the newer is damaged, all of the bank goes on from the
older, so that it ends in the same bits. The file itself has a digest and a copy beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptive_lora.files import write_atomically
from adaptive_lora.training.checkpoint import DamagedCheckpoint, Progress, read_checkpoint, write_checkpoint
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
    before: str = ""
    """Where those of the generation before are; empty before the second."""
    before_chunk_tokens: int | None = None

    def half(self, members: Sequence[str]) -> Composition:
        """A bank of some of the members, with the checkpoints of the whole; its chunks are its own to find."""
        return replace(self, members=tuple(members), chunk_tokens=None, before_chunk_tokens=None)


class BankCheckpoints:
    """Writes the checkpoints of one bank: all runs of one moment, or those of the moment before.

    `run_ids` are those that go on; `say` is told where their newest checkpoints are damaged.
    """

    def __init__(
        self,
        path: Path,
        composition: Composition,
        seconds: float,
        run_ids: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._path, self._seconds = path, seconds
        self.composition = self._sound(composition, run_ids, say)
        """The newest on disk: what the runs resume from, whatever becomes of the bank."""
        self._saved, self._cost = time.monotonic(), 0.0

    def _sound(self, newest: Composition, run_ids: Sequence[str], say: Callable[[str], None]) -> Composition:
        """The newest generation of which every file is what was written; none of a folder where there is none."""
        found = newest
        if found.folder and run_ids:
            say(f"checking {len(run_ids)} checkpoints of update {found.folder.removeprefix('bank-')}")
        while found.folder and (wrong := self._damage(found.folder, run_ids)):
            at, older = found.folder.removeprefix("bank-"), found.before.removeprefix("bank-")
            then = f"going on from the one before, of update {older}" if older else "starting these runs over"
            say(f"warning: the checkpoint of update {at} is damaged ({wrong}); {then}")
            found = replace(found, chunk_tokens=found.before_chunk_tokens, folder=found.before, before="",
                            before_chunk_tokens=None)  # fmt: skip
        if found != newest:
            replace_composition(self._path, newest, found)
        return found

    def _damage(self, folder: str, run_ids: Sequence[str]) -> str | None:
        """What is wrong with the first file that is not sound; a file that is not there is damage too.

        Reads every file, one at a time.
        """
        for run_id in run_ids:
            path = self._path.parent / folder / f"{run_id}.safetensors"
            try:
                if read_checkpoint(path, run_id) is None:
                    return f"{path.name} is missing"
            except DamagedCheckpoint as error:
                return f"{path.name}: {error}"
        return None

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
        now = self.composition
        folder = self._path.parent / f"bank-{max(progress.steps_done for progress, _ in states.values())}"
        folder.mkdir(parents=True, exist_ok=True)
        for run_id, (progress, tensors) in states.items():
            write_checkpoint(folder / f"{run_id}.safetensors", run_id, progress, tensors())
        older = (now.before, now.before_chunk_tokens) if now.folder == folder.name else (now.folder, now.chunk_tokens)
        self.composition = Composition(now.members, chunk_tokens, folder.name, *older)
        replace_composition(self._path, now, self.composition)
        self._saved = time.monotonic()
        self._cost = self._saved - began


def read_compositions(path: Path, say: Callable[[str], None] = lambda text: None) -> list[Composition]:
    """The banks in progress; none if there are none.

    Where the file is damaged, its copy is read; where both are, `say` is told: at worst work is repeated.
    """
    there = [place for place in (path, _copy(path)) if place.exists()]
    for place in there:
        try:
            found = json.loads(place.read_bytes())
            if isinstance(found, list):  # of a version before
                return [Composition(tuple(bank["members"]), bank["chunk_tokens"], bank["folder"]) for bank in found]
            if found["digest"] == _digest(found["banks"]):
                return [Composition(**{**bank, "members": tuple(bank["members"])}) for bank in found["banks"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    if there:
        say(f"warning: {path.name}, which says what is in training, is damaged; starting over what was in training")
    return []


def _copy(path: Path) -> Path:
    return path.with_name(f"{path.name}.copy")


def _digest(banks: Any) -> str:
    return hashlib.sha256(json.dumps(banks, sort_keys=True).encode()).hexdigest()


def replace_composition(path: Path, old: Composition, *new: Composition) -> None:
    """Replaces a bank by others, by none once it has finished; then deletes checkpoints that no bank names."""
    banks = read_compositions(path)
    at = banks.index(old) if old in banks else 0
    # Before its first checkpoint a bank has nothing to resume from.
    banks[at : at + (old in banks)] = [bank for bank in new if bank.folder]
    if banks:
        written = [{**asdict(bank), "members": list(bank.members)} for bank in banks]
        text = json.dumps({"banks": written, "digest": _digest(written)})
    for place in (path, _copy(path)):
        if banks:
            write_atomically(place, text)
        else:
            place.unlink(missing_ok=True)
    named = {folder for bank in banks for folder in (bank.folder, bank.before)}
    for folder in path.parent.glob("bank-*"):
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)
