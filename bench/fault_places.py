"""Where things are written: disks that are full or may only be read, links, and the cache of compiled kernels.

Tries as in `fault_inputs.py`, of every verb that writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fault_inputs import Try, several, summed, tried
from fault_process import Act, Child, full_disk, obey_modes
from fault_study import Cases, Place, Row, repeated

OTHER_USER = 65534
"""`nobody`, to whom a superuser can give a file."""


def verbs(place: Place, study: Path, out: Path) -> dict[str, Sequence[object]]:
    """Every verb that writes, to a folder."""
    done = place.out
    return {
        "plan --out": ("plan", "--model", "demo", "--strategy", "uniform", "--out", out / "plan.json"),
        "plan --peft": ("plan", "--model", "demo", "--strategy", "uniform", "--peft", out / "peft"),
        "init": ("init", "demo", "--out", out / "study.yaml"),
        "report": ("report", done, "--out", out / "page"),
        "results": ("results", done, "--out", out / "text"),
        "memory": ("memory", done, "--out", out / "bank"),
        "paper": ("paper", done, "--out", out / "paper"),
        "judge": ("judge", done, "--baseline", "uniform", "--out", out / "judged"),
        "export": ("export", done, "--arm", "uniform", "--form", "peft", "--out", out / "export"),
        "run": ("run", study, "--out", out / "run", "--device", "cpu"),
    }


def every_verb(done: str, name: str, code: int, first: Act, read_only: bool) -> Callable[[Cases], Row]:
    """Each verb where it cannot write, and the same where it can."""

    def case(cases: Cases) -> Row:
        place, out = cases.copy(f"{name}-own", half=False), cases.folder / name
        out.mkdir()
        made = []
        for verb, words in verbs(place, place.study, out).items():
            with unwritable(out) if read_only else _as_it_is():
                made.append(tried(Try(verb, words, code, [first])))
            # Of a study that goes on later there are the files that it goes on from.
            left = sum(path.is_file() and path.parent != out / "run" for path in out.rglob("*"))
            made[-1] |= {"left_files": left, "right": made[-1]["right"] and not left}
        ended, again = summed(made), cases.new(f"{name}-again").out
        # Reading and drawing is the same again for a folder that is read-only.
        elsewhere = {} if read_only else verbs(place, place.study, again)
        made += [tried(Try(f"{verb}, elsewhere", words, 0)) for verb, words in elsewhere.items()]
        return cases.row(place, done, ended, tries=made, right=all(own["right"] for own in made))

    return case


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Where nobody may write, for a while."""
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def links(cases: Cases, place: Place) -> list[Try]:
    """Links that are named as --out: what is behind them is written, and they stay; those that lead nowhere."""
    folder = cases.folder / "links"
    behind, other = folder / "behind", folder / "plan-behind.json"
    behind.mkdir(parents=True)
    other.write_text("{}\n")
    for name, target in (("folder", behind), ("plan.json", other), ("circle.json", "circle.json")):
        (folder / name).symlink_to(target)
    plan = ["plan", "--model", "demo", "--strategy", "uniform", "--out"]
    return [
        Try("results --out a link to a folder", ["results", place.out, "--out", folder / "folder"], 0),
        Try("status of the folder behind it", ["status", behind], 0),
        Try("plan --out a link to a file", [*plan, folder / "plan.json"], 0),
        Try("the file behind it, as a plan", ["plan", "--model", "demo", "--plan", other, "--for", "peft"], 0),
        Try("plan --out a link in a circle", [*plan, folder / "circle.json"]),
        Try("plan --out /dev/null", [*plan, "/dev/null"]),
        Try("report --out /dev/null", ["report", place.out, "--out", "/dev/null"]),
    ]


def linked(cases: Cases) -> Row:
    """Links, and whether they still are."""
    row = several("links and devices named as --out", links, "links-own")(cases)
    stay = [path.is_symlink() for path in (cases.folder / "links").iterdir() if path.name not in ("behind",)]
    return {**row, "links": sum(stay), "right": row["right"] and sum(stay) == 3}


def kernels(done: str, name: str, spoil: Callable[[Path], None] = lambda cache: None,
            compiler: str | None = None) -> Callable[[Cases], Row]:  # fmt: skip
    """The cache of compiled kernels, spoilt between two runs, in the middle of a study; what `doctor` says of it."""

    def case(cases: Cases) -> Row:
        cache, temporary = cases.new(f"{name}-cache").out, cases.new(f"{name}-temporary").out
        temporary.mkdir()

        def own() -> None:
            os.environ.update(XDG_CACHE_HOME=str(cache), TMPDIR=str(temporary))
            tempfile.tempdir = None
            if compiler:
                os.environ["CC"] = compiler
            obey_modes()

        Child(cases.copy(f"{name}-first", half=True).command("run"), first=[own]).wait()
        libraries = len(list(cache.rglob("*.so")))
        spoil(cache / "adaptive-lora" / "kernels")
        place = cases.copy(name, half=True)
        recorded = place.records()
        ended = Child(place.command("run"), first=[own]).wait()
        lost = repeated(place, recorded)
        doctor = Child(["doctor"], first=[own]).wait().told("kernels", "attention:")
        row = cases.row(place, done, ended.told("completed"), libraries=libraries, doctor=doctor["said"][:300])
        elsewhere = [str(path.parent.name) for path in temporary.rglob("*.so")]
        kept = bool(elsewhere) == (spoil in (of_another_user, not_writable))
        right = ended.code == 0 and libraries == 3 and kept and "compiled" in doctor["said"]
        return {**row, "recorded": len(recorded), "lost": lost + row["lost"], "right": right}

    return case


def garbage(cache: Path) -> None:
    """Every library becomes other bytes, under its own name."""
    for path in cache.glob("*.so"):
        path.write_bytes(b"no library\n" * 1000)


def of_another_user(cache: Path) -> None:
    """The folder belongs to someone else, or (where that cannot be had) may be written by anybody."""
    for path in (cache, *cache.glob("*.so")):
        if os.geteuid() == 0:
            os.chown(path, OTHER_USER, OTHER_USER)
        path.chmod(0o777)


def not_writable(cache: Path) -> None:
    """Nothing is there, and nothing can be put there."""
    shutil.rmtree(cache)
    cache.parent.chmod(0o555)


CASES: dict[str, Callable[[Cases], Row]] = {
    "full disk, every verb": every_verb(
        "each verb that writes, where no file can grow (EFBIG); then elsewhere", "full-verbs", 1, full_disk, False
    ),
    "read-only folder, every verb": every_verb(
        "each verb that writes, to a folder that is read-only", "read-verbs", 2, obey_modes, True
    ),
    "links as --out": linked,
    "kernels that are garbage": kernels("compiled kernels in the cache replaced by other bytes", "garbage", garbage),
    "kernels of another user": kernels("cache of compiled kernels given to another user", "another", of_another_user),
    "kernels' folder read-only": kernels("cache of compiled kernels gone, its folder read-only", "none", not_writable),
    "CC of two words": kernels('CC="env cc", as of `ccache cc`', "two-words", compiler="env cc"),
}
