"""The study that `bench/faults.py` breaks, where it lies, and what must be the same however it came to its end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.adapter_files import DIGESTS
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.merged_rows import numbers_of
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import load_results, ranks_table
from damage import newest
from fault_process import Act, Child, Ending, Watch, raised

STUDY = """\
name: faults
model: {name: demo}
data: {source: "demo:fine-tuning", train: 24, validation: 8, test: 24, max_length: 64}
budgets: ["rank:2"]
arms: [uniform, linear-decay, empirical]
seeds: {evaluation: 2, tuning: 1}
train: {steps: 6, batch_size: 4, learning_rate: [1e-3, 1e-2], dropout: 0.1}
analysis: {primary: [], margin: 0.01}
controls: none
report: {answers: 1}
"""
MIDDLE = 0.67
"""Share of the lines of all trainings after which a fault comes: in the midst of the third bank of four."""
BANK = 4
"""Runs of a bank: the study has several, one after another."""
PLAN = "plan.json"
RESULTS = ["run_id", "phase", "arm", "seed", "learning_rate", "status", "validation_loss", "test_loss",
           "trainable_parameters"]  # fmt: skip


Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The folders of one study and the commands that fill them."""

    study: Path
    out: Path

    @property
    def export(self) -> Path:
        """Where its export goes."""
        return self.out.with_name(f"{self.out.name}-export")

    def command(self, verb: str) -> list[object]:
        """The arguments of a verb, the same every time."""
        if verb == "run":
            never_wait = ("--device", "cpu", "--bank-size", BANK, "--checkpoint-seconds", 0)
            return ["run", self.study, "--out", self.out, *never_wait]
        return [verb, self.out, *(("--out", self.export) if verb == "results" else ())]

    def records(self) -> dict[str, float]:
        """When each finished run was finished; nothing of a ledger that has not begun."""
        if not StudyPaths(self.out).ledger.is_file():
            return {}
        with contextlib.closing(open_to_read(self.out, begun=False)) as ledger:
            done = ledger.runs(every=True, status=(Status.COMPLETED,)) if ledger.facts() else []
        return {run["run_id"]: run["finished"] for run in done}

    def results(self) -> dict[str, Any]:
        """All that must be the same however the study came to its end."""
        with contextlib.closing(open_to_read(self.out)) as ledger:
            ids = [run["run_id"] for run in ledger.runs()]
            found: dict[str, Any] = {"numbers": {name: numbers_of(ledger, name) for name in (*ids, BASE)}}
            found |= {"ranks": ranks_table(ledger).to_csv(), "rates": ledger.facts().get("chosen_rates")}
        table = load_results(self.out)[RESULTS].sort_values("run_id", ignore_index=True)
        return {**found, "table": table.to_csv(), "adapters": digests(self.out / "adapters")}

    def made(self) -> dict[str, Any]:
        """Likewise of what is made of the results: the tables of the export, the page and its files' names."""
        table = load_results(self.export)[RESULTS].sort_values("run_id", ignore_index=True)
        page = StudyPaths(self.out).report.read_text()
        names = [str(p.relative_to(self.out)) for d in ("figures", "tables") for p in (self.out / d).rglob("*")]
        exported = sorted(str(p.relative_to(self.export)) for p in self.export.rglob("*") if p.name[0] != ".")
        whole = page.rstrip().endswith("</html>")
        return {
            "export": table.to_csv(),
            "exported": exported,
            "page": whole,
            "report": sorted(n for n in names if "/." not in n),
        }


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder; of a plan not the seconds that it took."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(content_of(path)).hexdigest() for path in files}


def content_of(path: Path) -> bytes:
    """Without the seconds that a plan took, and without the digest of a file that has them."""
    if path.name not in (PLAN, DIGESTS):
        return path.read_bytes()
    found = json.loads(path.read_text())
    found.pop(PLAN, None)
    found.get("provenance", {}).get("measured", {}).pop("seconds", None)
    return json.dumps(found, sort_keys=True).encode()


def repeated(place: Place, before: dict[str, float]) -> int:
    """How many runs that were recorded before are not there, or were finished a second time."""
    after = place.records()
    return sum(after.get(run_id) != finished for run_id, finished in before.items())


class Cases:
    """What meets copies of one study, whose trainings have so many `lines`."""

    def __init__(self, folder: Path, whole: Place, lines: int) -> None:
        self.folder, self._whole = folder, whole
        self.middle = "training", int(MIDDLE * lines)
        self._results = whole.results()
        self._half: Place | None = None

    def new(self, name: str) -> Place:
        """A place of its own."""
        return Place(self._whole.study, self.folder / name)

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
