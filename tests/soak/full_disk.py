"""Every verb that writes, on disks that are full at different moments: a clear message, exit 1, nothing half-written.

    python tests/soak/full_disk.py [--folder DIR]   prints JSON; exits with 1 where a verb does otherwise

Really full: `--folder` names a file system of about a megabyte (`mount -t tmpfs -o size=1m tmpfs DIR`), which is filled
so that a verb has so many bytes left. Without one the limit of this process's file sizes stands for it (EFBIG at the
same calls), which SQLite and matplotlib meet as they meet a full disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from adaptive_lora.cli.main import app

STUDY = """\
name: small
model: {name: demo}
data: {source: "demo:fine-tuning", train: 24, validation: 10, test: 20, max_length: 64}
budgets: ["rank:2"]
arms: [uniform, linear-decay, random]
seeds: {evaluation: 4}
train: {steps: 8, batch_size: 4, learning_rate: 1e-2}
analysis: {primary: [linear-decay], margin: 0.01}
controls: none
report: {answers: 1}
"""
LEFT = (0, 8_000, 60_000, 250_000)
"""Bytes that a verb may write."""


def verbs(done: Path, study: Path, out: Path) -> dict[str, Sequence[object]]:
    """Arguments of every verb that writes, to a place on the full disk."""
    export = ("export", done, "--arm", "uniform", "--out", out / "export")
    judged = ("judge", done, "--baseline", "uniform", "--out", out / "judged")
    return {
        "plan --out": ("plan", "--model", "demo", "--strategy", "uniform", "--out", out / "plan.json"),
        "plan --peft": ("plan", "--model", "demo", "--strategy", "uniform", "--peft", out / "peft"),
        "init": ("init", "demo", "--out", out / "study.yaml"),
        "report": ("report", done, "--out", out / "page"),
        "results": ("results", done, "--out", out / "text"),
        "memory": ("memory", done, "--out", out / "bank"),
        "paper": ("paper", done, "--out", out / "paper"),
        "judge": judged,
        "export peft": (*export, "--form", "peft"),
        "export merged": (*export, "--form", "merged"),
        "export padded": (*export, "--form", "padded"),
        "run": ("run", study, "--out", out / "run"),
    }


@contextmanager
def limited(folder: Path | None, left: int) -> Iterator[Path]:
    """A folder in which so many bytes can be written, on a disk that is full or under a limit of file sizes."""
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
            try:
                yield Path(place)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    place, ballast = folder / "out", folder / "ballast"
    place.mkdir()
    ballast.write_bytes(b"x" * max(0, shutil.disk_usage(folder).free - left))
    yield place


def tried(arguments: Sequence[object], out: Path, left: int) -> dict[str, Any]:
    """How a verb ended."""
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    error = found.exception if not isinstance(found.exception, SystemExit | None) else None
    words = [line for line in found.stderr.splitlines() if line.strip()]
    half = [str(path.relative_to(out)) for path in out.rglob("*") if is_half(path)]
    return {
        "left": left, "exit_code": found.exit_code, "said": words[-1][:240] if words else "",
        **({"traceback": f"{type(error).__name__}: {str(error)[:200]}"} if error else {}),
        **({"half_written": half} if half else {}),
    }  # fmt: skip


def is_half(path: Path) -> bool:
    """Whether a file is one that a reader would take for whole and is not, or that nobody will remove."""
    if not path.is_file() or "run" in path.parts:
        return False
    if path.name.startswith(".") and path.name != ".lock":
        return True
    if path.suffix == ".json":
        try:
            json.loads(path.read_text())
        except ValueError:
            return True
    return path.stat().st_size == 0


def main() -> None:
    """Prints what every verb did; exits with 1 where one had a traceback, the wrong code or left half a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as work:
        study, done = Path(work) / "study.yaml", Path(work) / "done"
        study.write_text(STUDY)
        assert CliRunner().invoke(app, ["run", str(study), "--out", str(done)]).exit_code == 0
        for name in verbs(done, study, Path(work)):
            if asked.only and asked.only not in name:
                continue
            for left in LEFT:
                with limited(asked.folder, left) as out:
                    found.setdefault(name, []).append(tried(verbs(done, study, out)[name], out, left))
            print(f"{name}: {[own['exit_code'] for own in found[name]]}", file=sys.stderr, flush=True)
    bad = {
        name: [own for own in tries if "traceback" in own or "half_written" in own or own["exit_code"] not in (0, 1)]
        for name, tries in found.items()
    }
    full = "a full tmpfs" if asked.folder else "RLIMIT_FSIZE"
    told = json.dumps({"full": full, "verbs": found, "bad": {k: v for k, v in bad.items() if v}}, indent=2) + "\n"
    print(told, end="")
    if asked.out:
        asked.out.write_text(told)
    sys.exit(1 if any(bad.values()) else 0)


if __name__ == "__main__":
    main()
