"""Every fault by itself, each beside the undisturbed study of `bench/faults.py`: how it ended, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.folder import StudyPaths
from cluster import alive, workers_at
from damage import flipped, newest, with_metadata
from fault_process import (
    Act,
    Child,
    Ending,
    Watch,
    full_disk,
    jumping_clock,
    memory_limit,
    obey_modes,
    raised,
)
from fault_study import Place, repeated

DAY = 86_400.0
MIDDLE = 0.67
"""Share of the lines of all trainings after which a fault comes: in the midst of the third bank of four."""
MEMORY = 8 << 20
"""Bytes that a bank may have beside what the process has when training begins."""
LEASE = 15
Row = dict[str, Any]


class Cases:
    """The faults of one study, whose trainings have so many `lines`; `say` is told of each."""

    def __init__(self, folder: Path, whole: Place, lines: int, say: Callable[[str], None]) -> None:
        self._folder, self._whole, self._say = folder, whole, say
        self.middle = "training", int(MIDDLE * lines)
        self._results = whole.results()
        self._half: Place | None = None

    def all(self, names: Sequence[str]) -> list[Row]:
        """The rows of these faults."""
        rows = []
        for name in names:
            rows.append({"fault": name, **CASES[name](self)})
            self._say(f"{name}: {json.dumps({k: v for k, v in rows[-1].items() if k != 'fault'})}")
        return rows

    def new(self, name: str) -> Place:
        """A place of its own."""
        return Place(self._whole.study, self._folder / name)

    def copy(self, name: str, half: bool) -> Place:
        """Of the finished study, or of one that was stopped half-way with two generations of checkpoints."""
        if half and self._half is None:
            self._half = self.new("half")
            Child(self._half.command("run"), Watch("run", self.middle, raised(signal.SIGTERM))).wait()
            if not newest(self._half.out):
                raise SystemExit("the study was not stopped half-way")
        source = self._half if half and self._half is not None else self._whole
        place = self.new(name)
        shutil.copytree(source.out, place.out)
        return place

    def row(self, place: Place, done: str, ended: Row, **more: Any) -> Row:
        """The same command again, and what is there then."""
        recorded = place.records()
        again = Child(place.command("run")).wait()
        same = again.code == 0 and place.results() == self._results
        lost = repeated(place, recorded)
        return {"done": done, "ended": ended, **more, "then": again.code, "recorded": len(recorded), "identical": same,
                "lost": lost}  # fmt: skip

    def met(self, name: str, act: Act, at: tuple[str, int] | None = None) -> tuple[Place, Ending]:
        """A study that meets something while it trains."""
        place = self.new(name)
        return place, Child(place.command("run"), Watch("run", at or self.middle, act)).wait()


def signalled(number: signal.Signals) -> Callable[[Cases], Row]:
    """A signal as schedulers and terminals send it."""

    def case(cases: Cases) -> Row:
        place = cases.new(f"signal-{number}")
        child = Child(place.command("run"), Watch("run", cases.middle, raised(signal.SIGSTOP)))
        if child.stopped():
            child.kill(number)
            child.kill(signal.SIGCONT)
        sent = time.monotonic()
        told = child.wait().told("stopped by")
        grace, saved = round(time.monotonic() - sent, 1), len(newest(place.out))
        return cases.row(place, f"{number.name} while a bank trains", told, grace_seconds=grace, checkpoints=saved)

    return case


def disk_full(cases: Cases) -> Row:
    """Nothing can be written from the middle of training on."""
    place, ended = cases.met("full", full_disk)
    return cases.row(place, "no file can be written from the middle of training on (EFBIG)", ended.told("failed:"))


def read_only(cases: Cases) -> Row:
    """A folder where nobody may write; the study in it is half done."""
    place = cases.copy("read-only", half=True)
    folders = [place.out, *(path for path in place.out.rglob("*") if path.is_dir())]
    for path in place.out.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    place.out.chmod(0o555)
    ended = Child(place.command("run"), first=[obey_modes]).wait()
    for path in folders:
        path.chmod(0o755)
    for path in place.out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return cases.row(
        place, "folder and files of a study that is half done may not be written", ended.told("error:", "failed:")
    )


def checkpoint_flipped(cases: Cases) -> Row:
    """One bit of a tensor, or of the header."""
    place = cases.copy("flipped", half=True)
    path = newest(place.out)[0]
    path.write_bytes(flipped(path.read_bytes(), numpy_stream(0, "flip")))
    return _going_on(cases, place, "one bit of a newest checkpoint flipped")


def checkpoint_metadata(cases: Cases) -> Row:
    """What a checkpoint says of itself."""
    place = cases.copy("metadata", half=True)
    path = newest(place.out)[0]
    path.write_bytes(next(iter(with_metadata(path, 1, numpy_stream(0, "metadata")))))
    return _going_on(cases, place, "the progress that a newest checkpoint tells of changed")


def bank_list(cases: Cases) -> Row:
    """The file that says what is in training, and its copy."""
    place = cases.copy("bank", half=True)
    bank = StudyPaths(place.out).bank
    for path in (bank, bank.with_name(f"{bank.name}.copy")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return _going_on(cases, place, "bank.json and its copy cut in half")


def _going_on(cases: Cases, place: Place, done: str) -> Row:
    """The next command meets the damage itself."""
    recorded = place.records()
    ended = Child(place.command("run")).wait()
    lost = repeated(place, recorded)
    row = cases.row(place, done, ended.told("damaged"))
    return {**row, "recorded": len(recorded), "lost": lost + row["lost"]}


def ledger_damaged(cases: Cases) -> Row:
    """One bit of the losses by record of a run."""
    place = cases.copy("ledger", half=False)
    _flip_losses(StudyPaths(place.out).ledger)
    ended = Child(place.command("run")).wait()
    recovered = Child(["recover", place.out]).wait()
    told = {**ended.told("damaged"), "recover": recovered.told("lost: run")}
    return cases.row(place, "one bit of a run's losses in study.db flipped; `recover`", told)


def _flip_losses(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        query = "SELECT nll_by_record FROM evaluations WHERE run_id != 'base' AND split = 'test' LIMIT 1"
        (packed,) = db.execute(query).fetchone()
    content = path.read_bytes()
    at = content.index(packed) + len(packed) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def ledger_read(cases: Cases) -> Row:
    """A damaged ledger where it is only read."""
    place = cases.copy("read", half=False)
    _flip_losses(StudyPaths(place.out).ledger)
    told = Child(["report", place.out]).wait().told("damaged")
    Child(["recover", place.out]).wait()
    return cases.row(place, "the same, read by `report`", told)


def lock_rewritten(cases: Cases) -> Row:
    """What was decided, changed after the results."""
    place = cases.copy("lock", half=False)
    path = StudyPaths(place.out).decisions
    before = path.read_text()
    path.write_text(
        json.dumps({**json.loads(before), "locked": "2020-01-01T00:00:00+00:00", "hypotheses": ["another"]})
    )
    ended = Child(place.command("run")).wait()
    path.write_text(before)
    return cases.row(
        place, "hypotheses and date of study.lock.json rewritten after the results", ended.told("error:", "failed:")
    )


def folder_removed(cases: Cases) -> Row:
    """With all that was recorded."""
    out = cases.new("removed").out
    place, ended = cases.met("removed", lambda: shutil.rmtree(out))
    return cases.row(place, "study folder removed while a bank trains", ended.told("was removed"))


def clock_jumps(cases: Cases) -> Row:
    """Years back and days forth, at every call."""
    place = cases.new("clock")
    ended = Child(place.command("run"), first=[jumping_clock((0.0, DAY, -3650 * DAY, 0.5, -7 * DAY))]).wait()
    return cases.row(place, "time.time jumps by up to ten years at every call", ended.told("completed"))


def two_drivers(cases: Cases) -> Row:
    """The second while the first is in the middle."""
    place = cases.new("two")
    one = Child(place.command("run"), Watch("run", cases.middle, raised(signal.SIGSTOP)))
    stopped = one.stopped()
    two = Child(place.command("run")).wait()
    if stopped:
        one.kill(signal.SIGCONT)
    first = one.wait()
    row = cases.row(place, "a second `run` on the folder while the first trains", two.told("in use"))
    return {**row, "first": first.code}


def memory_short(cases: Cases) -> Row:
    """As `ulimit -v` sets it."""
    place, ended = cases.met("memory", memory_limit(MEMORY), ("training", 1))
    words = "out of memory", "memory"
    return cases.row(
        place, f"{MEMORY >> 20} MiB more than when training begins, and no more (RLIMIT_AS)", ended.told(*words)
    )


def worker_lost(cases: Cases) -> Row:
    """SIGKILL to one of two processes that train."""
    place = cases.new("worker")
    child = Child(_with_workers(place))
    killed = _first_worker(place)
    ended = child.wait()
    row = cases.row(place, "SIGKILL to one of two worker processes", ended.told("elsewhere"), killed=killed)
    return {**row, "ended": {**ended.told("elsewhere"), "exit": ended.code}}


def driver_lost(cases: Cases) -> Row:
    """SIGKILL to the driver of two processes; they end by themselves."""
    place = cases.new("driver")
    child = Child(_with_workers(place))
    while not list(StudyPaths(place.out).bank.parent.glob("lease-*/bank.json")) and alive(child.pid):
        time.sleep(0.1)
    child.kill()
    ended = child.wait()
    workers, until = workers_at(place.out), time.monotonic() + 120
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.2)
    orphans = sum(map(alive, workers))
    return cases.row(place, "SIGKILL to the driver of worker processes", ended.told(), orphans=orphans)


def _with_workers(place: Place) -> list[object]:
    return [*place.command("run"), "--executor", "processes", "--workers", 2, "--lease-seconds", LEASE]


def _first_worker(place: Place) -> bool:
    until = time.monotonic() + 240
    while not (pids := workers_at(place.out)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in pids[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(pids)


def kernels_cut(cases: Cases) -> Row:
    """Half of every library in the cache."""
    cache = cases.new("cache").out

    def own_cache() -> None:
        os.environ["XDG_CACHE_HOME"] = str(cache)

    Child(cases.copy("kernels-first", half=True).command("run"), first=[own_cache]).wait()
    libraries = list(cache.rglob("*.so"))
    for path in libraries:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    place = cases.copy("kernels", half=True)
    recorded = place.records()
    ended = Child(place.command("run"), first=[own_cache]).wait()
    lost = repeated(place, recorded)
    row = cases.row(
        place, "the compiled kernels in the cache cut in half", ended.told("completed"), libraries=len(libraries)
    )
    return {**row, "recorded": len(recorded), "lost": lost + row["lost"]}


def refused(done: str, words: Callable[[Cases, Place], list[object]]) -> Callable[[Cases], Row]:
    """Something that is no study, or no place: refused, and what is there stays as it was."""

    def case(cases: Cases) -> Row:
        place = cases.copy(f"refused-{abs(hash(done))}", half=False)
        ended = Child(words(cases, place)).wait()
        told = ended.told("error:", "failed:", "study")
        return cases.row(place, done, told, seconds=round(ended.seconds, 1))

    return case


def _bomb(cases: Cases, place: Place) -> list[object]:
    levels = [
        "a: &a [x, x, x, x, x, x, x, x, x]",
        *(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(8)),
    ]
    path = place.out.with_name("bomb.yaml")
    path.write_text("\n".join(levels) + "\n")
    return ["run", path, "--out", place.out]


def _seed(cases: Cases, place: Place) -> list[object]:
    path = place.out.with_name("seed.yaml")
    path.write_text(place.study.read_text().replace("evaluation: 2", f"evaluation: [0, {2**63}]"))
    return ["run", path, "--out", place.out]


def _device(cases: Cases, place: Place) -> list[object]:
    return ["results", place.out, "--out", "/dev/null"]


CASES: dict[str, Callable[[Cases], Row]] = {
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGHUP": signalled(signal.SIGHUP),
    "full disk": disk_full,
    "read-only folder": read_only,
    "checkpoint damaged": checkpoint_flipped,
    "checkpoint's metadata damaged": checkpoint_metadata,
    "list of banks damaged": bank_list,
    "ledger damaged": ledger_damaged,
    "damaged ledger read": ledger_read,
    "lock rewritten": lock_rewritten,
    "folder removed": folder_removed,
    "clock jumps": clock_jumps,
    "two drivers": two_drivers,
    "memory limit": memory_short,
    "worker lost": worker_lost,
    "driver lost": driver_lost,
    "kernels cut short": kernels_cut,
    "YAML that expands": refused("a study file of 9^9 values by aliases", _bomb),
    "seed of 2^63": refused("an evaluation seed of 2^63", _seed),
    "device as --out": refused("`results --out /dev/null`", _device),
}
