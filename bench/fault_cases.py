"""Every fault by itself, each beside the undisturbed study of `bench/faults.py`: how it ended, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path

from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.folder import StudyPaths
from cluster import alive, workers_at
from damage import flipped, newest, with_metadata
from fault_process import (
    Child,
    Watch,
    full_disk,
    jumping_clock,
    memory_limit,
    obey_modes,
    raised,
)
from fault_study import Cases, Place, Row, repeated

DAY = 86_400.0
MEMORY = 1 << 19
"""Bytes that a bank may have beside what its process has in the midst of training: too few for a single run."""
LEASE = 15


def signalled(number: signal.Signals) -> Callable[[Cases], Row]:
    """A signal as schedulers and terminals send it."""

    def case(cases: Cases) -> Row:
        place = cases.new(f"signal-{number}")
        child = Child(place.command("run"), Watch("run", cases.middle, raised(signal.SIGSTOP)))
        child.stopped()
        child.kill(number)
        child.kill(signal.SIGCONT)
        sent = time.monotonic()
        told = child.wait().told("stopped by", "interrupted")
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
    paths = [place.out, *place.out.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    ended = Child(place.command("run"), first=[obey_modes]).wait()
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)
    return cases.row(
        place, "folder and files of a study that is half done are read-only", ended.told("error:", "failed:")
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
    """One bit of a run's loss."""
    place = cases.copy("ledger", half=False)
    _flip(StudyPaths(place.out).ledger, "nll")
    ended = Child(place.command("run")).wait()
    recovered = Child(["recover", place.out]).wait()
    told = {**ended.told("damaged"), "recover": recovered.told("lost: run")}
    return cases.row(place, "one bit of a run's test loss in study.db flipped; `recover`", told)


def _flip(path: Path, column: str) -> None:
    """One bit of a run's test results, where the file has them."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        query = f"SELECT {column} FROM evaluations WHERE run_id != 'base' AND split = 'test' LIMIT 1"
        (value,) = db.execute(query).fetchone()
    packed, content = value if isinstance(value, bytes) else struct.pack(">d", value), path.read_bytes()
    at = content.index(packed) + len(packed) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def ledger_read(cases: Cases) -> Row:
    """Where it is only read."""
    place = cases.copy("read", half=False)
    _flip(StudyPaths(place.out).ledger, "nll_by_record")
    told = Child(["report", place.out]).wait().told("damaged")
    Child(["recover", place.out]).wait()
    return cases.row(place, "one bit of a run's losses by record flipped, read by `report`; `recover`", told)


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
    one.stopped()
    two = Child(place.command("run")).wait()
    one.kill(signal.SIGCONT)
    first = one.wait()
    row = cases.row(place, "a second `run` on the folder while the first trains", two.told("in use"))
    return {**row, "first": first.code}


def memory_short(cases: Cases) -> Row:
    """As `ulimit -v` sets it."""
    place, ended = cases.met("memory", memory_limit(MEMORY))
    done = f"{MEMORY >> 10} KiB more than in the midst of training, and no more (RLIMIT_AS)"
    return cases.row(place, done, ended.told("out of memory with"))


def worker_lost(cases: Cases) -> Row:
    """SIGKILL to one of two processes that train."""
    place = cases.new("worker")
    child = Child(_with_workers(place))
    killed = _kill_first_worker(place)
    return cases.row(place, "SIGKILL to one of two worker processes", child.wait().told("elsewhere"), killed=killed)


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
    told = {"exit": ended.code, "said": ""}
    return cases.row(place, "SIGKILL to the driver of two worker processes", told, orphans=orphans)


def _with_workers(place: Place) -> list[object]:
    return [*place.command("run"), "--executor", "processes", "--workers", 2, "--lease-seconds", LEASE]


def _kill_first_worker(place: Place) -> bool:
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
        place = cases.copy(f"refused-{words.__name__}", half=False)
        ended = Child(words(cases, place)).wait()
        return cases.row(place, done, ended.told("- ", "error:", "failed:"), seconds=round(ended.seconds, 1))

    return case


def _bomb(cases: Cases, place: Place) -> list[object]:
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    path = place.out.with_name("bomb.yaml")
    path.write_text("\n".join(lines) + "\n")
    return ["run", path, "--out", place.out]


def _seed(cases: Cases, place: Place) -> list[object]:
    path = place.out.with_name("seed.yaml")
    path.write_text(place.study.read_text().replace("evaluation: 2", f"evaluation: [0, {2**63}]"))
    return ["run", path, "--out", place.out]


def _device(cases: Cases, place: Place) -> list[object]:
    return ["results", place.out, "--out", "/dev/null"]


CASES: dict[str, Callable[[Cases], Row]] = {
    "SIGINT": signalled(signal.SIGINT),
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
