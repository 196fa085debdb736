"""What damage of stored bytes does to a study: of its ledger, its lock, a bank's checkpoints. Prints JSON.

Each part has the number of damaged versions that were read (`flips`, `zeroed_pages`, `mutated`), and of them how many
were `refused` with an error that says so, how many read `identical` to what was written (the damage is where nothing
stands, or a copy was read), and how many were `silently_changed`. `other_errors` are no errors of this package.

ledger       every table of a finished study: facts, runs, ranks, curves, costs, losses by record
recovered    the new ledgers that `recover` writes of some of these: `runs` finished in all, of `of`; what differs from
             what was written is `changed`
checkpoint   files of a bank that was stopped half-way; `resumed` studies went on with a flipped bit in their newest
             checkpoint and ended in the results of an undisturbed run
metadata     the text of a checkpoint's metadata, cut, doubled, flipped
bank         bank.json, beside its copy
lock         study.lock.json, held against the ledger

python bench/damage.py [--flips 400] [--resumed 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from adaptive_lora.errors import AdaptiveLoraError, StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.recovery.recovering import recover
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.engines.resume import read_compositions
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import check_lock, read_lock
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import costs_table, curves_table, load_results, ranks_table, runs_table
from adaptive_lora.study.runner import Limits, Silent, run_study
from adaptive_lora.study.study_file import Study, parse_study
from adaptive_lora.training.checkpoint import DamagedCheckpoint, StepRecord, read_checkpoint

STUDY = """\
name: damage
model: {name: demo}
data: {source: "demo:fine-tuning", train: 24, validation: 10, test: 40, max_length: 64}
budgets: ["rank:2"]
arms: [uniform, linear-decay, empirical]
seeds: {evaluation: 4}
train: {steps: 6, batch_size: 4, learning_rate: 1e-2}
analysis: {margin: 0.01, primary: [linear-decay]}
controls: none
"""
PAGE = 4096
RECOVERED_OF = 10
"""One damaged ledger in so many is recovered."""
HALF = 3
"""Updates after which a bank is stopped; it is saved after each."""
Read = Callable[[], Any]


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """With one bit changed."""
    damaged = bytearray(content)
    damaged[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def mutated(text: str, random: np.random.Generator) -> str:
    """A character changed, a piece cut out, or a piece doubled."""
    at, end = sorted(int(i) for i in random.integers(0, len(text), 2))
    changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
    return [changed, text[:at] + text[end + 1 :], text[:end] + text[at:]][int(random.integers(3))]


def judged(path: Path, versions: Iterable[bytes], read: Read, refusals: tuple[type[Exception], ...]) -> dict[str, int]:
    """Reads each version of a file in its place, and puts back what was there."""
    whole, told, found = path.read_bytes(), read(), Counter[str]()
    for version in versions:
        path.write_bytes(version)
        try:
            found["identical" if read() == told else "silently_changed"] += 1
        except refusals:
            found["refused"] += 1
        except Exception as error:  # what must not be: a traceback for a user
            sys.stderr.write(f"{path.name}: {error!r}\n")
            found["other_errors"] += 1
    path.write_bytes(whole)
    return {name: found[name] for name in ("refused", "identical", "silently_changed", "other_errors")}


def everything(ledger: Ledger) -> str:
    """All that anyone reads of a ledger, as text."""
    found: list[Any] = [ledger.facts(), ledger.runs(every=True), ledger.totals(), ledger.planning.measurements()]
    tables = [runs_table(ledger), ranks_table(ledger), costs_table(ledger), *(curves_table(ledger, p) for p in Phase)]
    found += [table.to_csv() for table in tables]
    for run_id, split in ledger.totals():
        if (own := ledger.by_record(run_id, split)) is not None:
            found.append([own.nll.tolist(), own.tokens.tolist(), own.exact.tolist()])
    return repr(found)


def read_ledger(folder: Path) -> str:
    """`everything` of a study folder."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return everything(ledger)


def of_ledger(folder: Path, flips: int) -> dict[str, Any]:
    """Flipped bits and zeroed pages; some versions are recovered too."""
    path, random = StudyPaths(folder).ledger, numpy_stream(0, "flips")
    whole = path.read_bytes()
    bits = [flipped(whole, random) for _ in range(flips)]
    pages = [whole[:at] + bytes(PAGE) + whole[at + PAGE :] for at in range(0, len(whole), PAGE)]
    found = {"flips": flips, "zeroed_pages": len(pages), "bytes": len(whole)}
    found |= judged(path, [*bits, *pages], lambda: read_ledger(folder), (StudyFolderError,))
    return {"ledger": found, "recovered": of_recovery(folder, [*bits, *pages][::RECOVERED_OF])}


def of_recovery(folder: Path, versions: Iterable[bytes]) -> dict[str, int]:
    """What `recover` makes of damaged ledgers."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        whole = {run["run_id"]: run for run in ledger.runs()}, ledger.totals(), dict(ledger.plans())
    found = Counter[str]()
    for version in versions:
        with tempfile.TemporaryDirectory() as made:
            StudyPaths(Path(made)).ledger.write_bytes(version)
            told = recover(Path(made))
            found += Counter(ledgers=1, runs=told.runs, of=len(whole[0]), whole=told.runs == len(whole[0]))
            with contextlib.closing(open_to_read(Path(made), begun=False)) as ledger:
                done = {r["run_id"]: r for r in ledger.runs() if r["status"] == "completed"}
                pairs = (done, whole[0]), (ledger.totals(), whole[1]), (dict(ledger.plans()), whole[2])
                found["changed"] += not all(own.items() <= there.items() for own, there in pairs)
    return {name: found[name] for name in ("ledgers", "whole", "runs", "of", "changed")}


def of_lock(folder: Path, flips: int) -> dict[str, int]:
    """Flipped bits of the lock; those in blanks change nothing that it says."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        facts = ledger.facts()

    def read() -> Any:
        lock = read_lock(folder)
        assert lock is not None
        check_lock(folder, lock, facts)
        return lock

    path, random = StudyPaths(folder).decisions, numpy_stream(1, "flips")
    whole = path.read_bytes()
    versions = [flipped(whole, random) for _ in range(flips)]
    return {"flips": flips, **judged(path, versions, read, (StudyFolderError,))}


class Counting(Silent):
    """How many updates were made."""

    steps = 0

    def step(self, record: StepRecord) -> None:
        self.steps += 1


def stopped(study: Study, folder: Path) -> None:
    """A study whose bank was stopped half-way; after each update it has a checkpoint."""
    seen = Counting()
    with contextlib.suppress(KeyboardInterrupt):
        run_study(study, folder, seen, checkpoint_seconds=0, limits=Limits(lambda: seen.steps >= HALF))


def newest(folder: Path) -> list[Path]:
    """The newest checkpoint of every run of the bank that was stopped."""
    bank = StudyPaths(folder).bank
    return sorted(path for own in read_compositions(bank) for path in (bank.parent / own.folder).iterdir())


def of_checkpoints(folder: Path, flips: int) -> dict[str, Any]:
    """Flipped bits of files, of their metadata, and of the file that lists them."""
    random, bank = numpy_stream(2, "flips"), StudyPaths(folder).bank
    path = newest(folder)[0]

    def read() -> str:
        found = read_checkpoint(path, path.stem)
        return repr((found[0], {k: v.tolist() for k, v in found[1].items()})) if found else "another run's"

    whole, listed = path.read_bytes(), bank.read_bytes()
    files = judged(path, [flipped(whole, random) for _ in range(flips)], read, (DamagedCheckpoint,))
    texts = judged(path, with_metadata(path, flips, random), read, (DamagedCheckpoint,))
    lists = judged(bank, [flipped(listed, random) for _ in range(flips)], lambda: read_compositions(bank), ())
    return {
        "checkpoint": {"flips": flips, "bytes": len(whole), **files},
        "metadata": {"mutated": flips, **texts},
        "bank": {"flips": flips, **lists},
    }


def with_metadata(path: Path, count: int, random: np.random.Generator) -> Iterator[bytes]:
    """The checkpoint with metadata that were mutated."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in list(file.keys())}
    for number in range(count):
        name = ("progress", "run_id", "digest")[number % 3]
        text = metadata[name]
        while text == metadata[name]:
            text = mutated(metadata[name], random)
        yield safetensors.torch.save(tensors, {**metadata, name: text})


def of_resumed(study: Study, stopped_at: Path, whole: Path, count: int) -> dict[str, int]:
    """Studies that go on with a flipped bit in the newest checkpoint of one of their runs."""
    random, found = numpy_stream(3, "flips"), Counter[str](resumed=count)
    for number in range(count):
        with tempfile.TemporaryDirectory() as made:
            shutil.copytree(stopped_at, Path(made) / "study")
            paths = newest(Path(made) / "study")
            path = paths[number % len(paths)]
            path.write_bytes(flipped(path.read_bytes(), random))
            run_study(study, Path(made) / "study")
            found["identical" if losses(Path(made) / "study") == losses(whole) else "silently_changed"] += 1
    return {name: found[name] for name in ("resumed", "identical", "silently_changed")}


def losses(folder: Path) -> str:
    """What every run ended in, to the last digit."""
    columns = ["run_id", "status", "validation_loss", "test_loss"]
    return str(load_results(folder)[columns].sort_values("run_id").to_csv(index=False))


def main() -> None:
    """A study that is whole, one that was stopped, and all their damaged versions; then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--resumed", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        whole, cut, study = Path(made) / "whole", Path(made) / "cut", parse_study(STUDY, Path("damage.yaml"))
        run_study(study, whole)
        stopped(study, cut)
        if not newest(cut):
            raise AdaptiveLoraError("the bank was not stopped half-way, so that there is no checkpoint to damage")
        found = {
            **of_ledger(whole, asked.flips), "lock": of_lock(whole, asked.flips), **of_checkpoints(cut, asked.flips),
            "resumed": of_resumed(study, cut, whole, asked.resumed),
        }  # fmt: skip
    parts = [part for part in found.values() if "silently_changed" in part]
    totals = {name: sum(part.get(name, 0) for part in parts) for name in ("flips", "zeroed_pages", "mutated")}
    ends = {name: sum(part.get(name, 0) for part in parts) for name in ("refused", "identical", "silently_changed")}
    errors = {"other_errors": sum(part.get("other_errors", 0) for part in parts)}
    text = (
        json.dumps({**totals, **ends, **errors, **found, "seconds": round(time.monotonic() - began)}, indent=2) + "\n"
    )
    if asked.out:
        write_atomically(asked.out, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
