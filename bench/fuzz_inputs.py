"""Files that come from others, with random damage, each read as the package reads it: read, or refused in clear words.

Study files, records (JSON, JSON Lines, CSV, Parquet), rank plans, checkpoints, exported studies and results of other
tools, all sound at first. Each case damages one of them once to four times: bytes, values and keys of its JSON, whole
files. A case fails by any other error than one of the package's own, by a message that is long or not printable, by
its time, or by asking for more than `MEMORY` of address space beyond what the process has when it begins.

    python bench/fuzz_inputs.py [--count N] [--seed S] [--only KIND] [--jobs N] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from ruamel.yaml import YAML

from adaptive_lora.errors import AdaptiveLoraError
from adaptive_lora.files import write_atomically
from fuzz_adapters import limited
from fuzz_sources import SOURCES

MEMORY = 2 * 1024**3
"""Bytes of address space."""
SECONDS, PATIENCE = 10.0, 180.0
"""One case: of the processor, and by the clock, which goes on while other work is done or nothing comes."""
LONGEST_MESSAGE = 20_000
WEIGHTS = {"study": 9, "data": 37, "plan": 20, "checkpoint": 10, "export": 1, "results": 23}
"""Share of the cases, in percent."""

_LONG = ["a" * 5_000, "../" * 2_000, "[" * 3_000, '{"a":' * 3_000, "9" * 5_000, "- " * 500, "\\" * 300, "{a: " * 200]
_SIGNS = ["\0", "\x1b[31m", "\ud83d", "\u202e", "\ufeff", "${HOME}", "~nobody/x", "/dev/zero", "a\0b", "../../x", "",
          "<script>", "=1+1", "{{ 7 * 7 }}", "nan", "1e999", "0x10", "NULL", "2001-13-45", "!!binary x", "*a",
          "&a"]  # fmt: skip
_NUMBERS = [0, -1, 1, 2, 0.5, 1e300, -1e-300, math.inf, math.nan, 2**31, 2**53 + 1, 2**63, -(2**64), 10**400]
_BYTES = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b'"', b"'", b"[", b"{", b"}", b":", b"\n", b"- ",
          b"&a [*a, *a]", b"<<: ", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"null", b"1e999",
          b"!!python/none"]  # fmt: skip


def some_value(rng: random.Random, depth: int = 0) -> Any:
    """A random value of JSON, most of them wrong in most places."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice([None, True, False, [], {}])
    if kind in (1, 2):
        return rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.randrange(1000)
    if kind == 3:
        return rng.choice(_SIGNS)
    if kind == 4:
        return rng.choice(_LONG) if rng.random() < 0.3 else "".join(rng.choice(_SIGNS) for _ in range(3))
    if kind == 5:
        return "".join(chr(rng.randrange(1, 0x2FF)) for _ in range(rng.randrange(30)))
    if kind == 6:
        return nested(rng.choice([3, 100, 3_000]))
    if kind == 7:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {str(some_value(rng, 3))[:80]: some_value(rng, depth + 1) for _ in range(rng.randrange(5))}


def nested(depth: int) -> Any:
    """A list in a list in a list, written so that no writer has to go down into it."""
    return f"\ue000{'[' * depth}{']' * depth}\ue001"


def written(value: Any) -> str:
    """JSON of a damaged value, with nesting as deep as `nested` says."""
    text = json.dumps(value, default=str)
    return text.replace('"\\ue000', "").replace('\\ue001"', "")


def damaged_value(value: Any, rng: random.Random) -> Any:
    """A value of JSON with one place in it replaced, removed, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return some_value(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.7 and isinstance(value[key], dict | list):
        value[key] = damaged_value(value[key], rng)
        return value
    way = rng.randrange(6)
    if way == 0:
        del value[key]
    elif way == 1 and isinstance(value, list):
        value.extend([value[key]] * rng.choice([1, 2, 300]))
    elif way == 1 and isinstance(value, dict):
        value[str(some_value(rng, 3))[:200]] = value.pop(key)
    elif way == 2 and isinstance(value, dict):
        value[rng.choice([*keys, "format", "seed", "name"])] = value[key]
    else:
        value[key] = some_value(rng)
    return value


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a piece replaced, put in, cut off, doubled or swapped."""
    found = bytearray(content)
    place = rng.randrange(len(found) + 1)
    piece = rng.choice(_BYTES) if rng.random() < 0.7 else bytes(rng.randrange(256) for _ in range(rng.choice([1, 8])))
    way = rng.randrange(6)
    if way == 0:
        found[place : place + len(piece)] = piece
    elif way == 1:
        found[place:place] = piece * rng.choice([1, 1, 3, 500])
    elif way == 2:
        del found[place:]
    elif way == 3:
        found[place:place] = found[place : place + rng.randrange(1, 3_000)] * rng.randrange(1, 20)
    elif way == 4:
        found[place:place] = rng.choice(_LONG).encode()
    elif found:
        found[place % len(found)] ^= 1 << rng.randrange(8)
    return bytes(found)


def damage(path: Path, rng: random.Random) -> None:
    """Damages one file in one way; JSON and YAML half of the time as values."""
    content = path.read_bytes()
    if path.suffix in (".json", ".yaml", ".jsonl") and rng.random() < 0.6:
        with contextlib.suppress(Exception):  # of what earlier damage has left
            path.write_text(_damaged_text(content.decode(), path.suffix, rng), "utf-8", "surrogatepass")
            return
    path.write_bytes(damaged_bytes(content, rng))


def _damaged_text(text: str, suffix: str, rng: random.Random) -> str:
    if suffix == ".jsonl":
        lines = text.split("\n")
        place = rng.randrange(len(lines))
        lines[place] = written(damaged_value(json.loads(lines[place]), rng))
        return "\n".join(lines)
    value = json.loads(text) if suffix == ".json" else json.loads(_yaml_as_json(text))
    return written(damaged_value(value, rng))


@functools.lru_cache(maxsize=100)
def _yaml_as_json(text: str) -> str:
    return json.dumps(YAML(typ="safe", pure=True).load(text))


def damage_files(folder: Path, rng: random.Random) -> None:
    """Removes, doubles or replaces a file of a folder, or puts another thing in its place."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path = rng.choice(files)
    way = rng.randrange(5)
    if way == 0:
        path.unlink()
    elif way == 1:
        shutil.copy(path, path.with_name(f"samples_other_{path.name}"))
    elif way == 2:
        path.write_bytes(rng.choice(files).read_bytes())
    else:
        path.unlink()
        path.symlink_to("/dev/zero" if way == 3 else path.name)


@dataclass
class Outcomes:
    """What became of all cases."""

    read: int = 0
    refused: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)
    """Kind of input -> how many were read and refused."""
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


class TooLong(BaseException):
    """A case that takes more than its time; no reader takes it for an error of its own."""


def fuzz(cases: range, seed: int, kinds: Sequence[str], root: Path) -> Outcomes:
    """Damages and reads an input a case; nothing is raised, failures are in what is returned."""
    found = Outcomes()
    sources = {kind: SOURCES[kind].make(root / "sound" / kind) for kind in kinds}
    weights = [WEIGHTS[kind] for kind in kinds]
    for case in cases:
        rng = random.Random(f"{seed}-{case}")
        kind = rng.choices(kinds, weights)[0]
        place = root / "case"
        shutil.copytree(rng.choice(sources[kind]), place)
        for _ in range(rng.choice([1, 1, 2, 4])):
            files = [path for path in sorted(place.rglob("*")) if path.is_file()]
            if rng.random() < 0.06 or not files:
                with contextlib.suppress(Exception):
                    damage_files(place, rng)
            else:
                damage(rng.choice(files), rng)
        _judge(kind, place, case, found)
        shutil.rmtree(place)
    return found


def _judge(kind: str, place: Path, case: int, found: Outcomes) -> None:
    """Reads one input and counts what became of it."""
    began, told, problem = time.process_time(), "", ""
    counts = found.kinds.setdefault(kind, [0, 0])
    try:
        with _alarm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SOURCES[kind].read(place)
        counts[0] += 1
        found.read += 1
    except AdaptiveLoraError as error:
        counts[1] += 1
        found.refused += 1
        told = str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = f"{type(error).__name__}: {error}"[:500]
    found.slowest_s = max(found.slowest_s, time.process_time() - began)
    if len(told) > LONGEST_MESSAGE or not told.replace("\n", "").isprintable():
        problem = f"a message of {len(told)} characters: {told[:200]!r}"
    if problem:
        found.failures.append(f"case {case} ({kind}): {problem}")


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise TooLong("more than its time")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(WEIGHTS), help="one kind of input")
    parser.add_argument("--out", type=Path, help="write the outcome as JSON")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    kinds, began = [args.only] if args.only else list(WEIGHTS), time.perf_counter()
    parts = [(range(first, args.count, args.jobs), args.seed, kinds) for first in range(args.jobs)]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        found, grown = zip(*pool.map(_part, parts), strict=True)
    told = {"cases": args.count, "seed": args.seed, **asdict(_together(found))}
    told |= {"seconds": round(time.perf_counter() - began), "peak_memory_grew_mb": round(max(grown))}
    print(json.dumps(told, indent=2))
    if args.out:
        write_atomically(args.out, json.dumps(told, indent=2) + "\n", named=True)
    return 1 if told["failures"] else 0


def _part(asked: tuple[range, int, list[str]]) -> tuple[Outcomes, float]:
    """Outcomes of some cases, and by how many megabytes the process grew."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked[2]:  # what they import counts as what the process has
            SOURCES[kind].read(SOURCES[kind].make(Path(folder) / "first" / kind)[0])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with limited(MEMORY):
            found = fuzz(*asked, Path(folder))
    return found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _together(parts: Sequence[Outcomes]) -> Outcomes:
    found = Outcomes(slowest_s=round(max(part.slowest_s for part in parts), 2))
    for part in parts:
        found.read, found.refused = found.read + part.read, found.refused + part.refused
        found.failures += part.failures
        for kind, counts in part.kinds.items():
            found.kinds[kind] = [a + b for a, b in zip(found.kinds.get(kind, [0, 0]), counts, strict=True)]
    return found


if __name__ == "__main__":
    sys.exit(main())
