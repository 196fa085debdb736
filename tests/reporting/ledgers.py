"""Synthetic ledgers for the tests of reports, by the measurement's own maker."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.stats.run_table import Status
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.ledger import SplitResult
from adaptive_lora.study.lock import lock_of
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.study_file import Study, parse_study


def bench() -> ModuleType:
    """`bench/ledger.py`."""
    if "bench_ledger" not in sys.modules:
        path = Path(__file__).parents[2] / "bench" / "ledger.py"
        spec = importlib.util.spec_from_file_location("bench_ledger", path)
        assert spec is not None and spec.loader is not None
        sys.modules["bench_ledger"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench_ledger"])
    return sys.modules["bench_ledger"]


def make_ledger(folder: Path, arms: int = 3, seeds: int = 7) -> Path:
    """A study of `uniform`, `decay-01`, ...; of the last arm one run diverged."""
    folder.mkdir(parents=True, exist_ok=True)
    maker = bench()
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger._db.execute("PRAGMA synchronous = OFF")
        maker.fill(ledger, maker.study_of(maker.Size(arms, 1, seeds, 150)))
        last = [run for run in ledger.runs() if run["arm"] == f"decay-{arms - 1:02d}"][-1]
        ledger.fail(last["run_id"], Status.DIVERGED, "loss is not finite at step 3", 3)
    return folder


def make_report(folder: Path) -> str:
    """Writes the report of a folder and returns the page."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return write_report(ledger, folder).read_text(encoding="utf-8")


STUDY = """\
name: made
model: {{name: demo}}
data: {{source: "demo:fine-tuning", train: 100, validation: 100, test: 400}}
budgets: {budgets}
arms: {arms}
seeds: {{evaluation: {seeds}, tuning: 3}}
train: {{steps: 150, learning_rate: {rates}}}
analysis: {{margin: 0.01, primary: {primary}}}
controls: {controls}
"""


@dataclass(frozen=True)
class Made:
    """A study that nobody trained: which arm is how much better or worse than uniform, and what went wrong."""

    effects: Mapping[str, float] = field(default_factory=lambda: {"uniform": 0.0, "linear-decay": -0.03})
    """Arm -> nats per token above uniform, the same at every budget."""
    budgets: Sequence[str] = ("rank:4",)
    seeds: int = 8
    spread: float = 0.002
    """Standard deviation over seeds of an arm's difference."""
    noise: float = 0.001
    """Of a record's loss from arm to arm, nats per token."""
    worth: float = 0.1
    """How much a doubled budget is better."""
    best_rate: float = 3e-3
    primary: Sequence[str] | None = None
    controls: str = "all"
    rates: str = "3e-3"

    @property
    def study(self) -> Study:
        """Its study file."""
        primary = "null" if self.primary is None else json.dumps(list(self.primary))
        text = STUDY.format(budgets=json.dumps(list(self.budgets)), arms=json.dumps(list(self.effects)),
                            seeds=self.seeds, rates=self.rates, primary=primary, controls=self.controls)  # fmt: skip
        return parse_study(text, Path("made.yaml"))

    def result(self, run: Run) -> SplitResult:
        """Losses by record: the records' own, the seed's, the arm's, and what is left."""
        tokens = numpy_stream(0, "tokens").integers(5, 60, 400)
        rank = parse_budget(run.budget)[1]
        level = 2.0 - self.worth * math.log2(rank) + self.effects.get(run.arm.name, 0.0)
        level += 0.05 * abs(math.log10(run.learning_rate / self.best_rate))
        level += 0.01 * numpy_stream(run.seed, "seed").standard_normal()
        level += self.spread * numpy_stream(run.seed, run.arm.name, run.budget).standard_normal()
        own = numpy_stream(0, "records").standard_normal(400) * 0.3
        own += self.noise * numpy_stream(0, "noise", run.arm.name).standard_normal(400)
        return SplitResult(tokens * (level + own), tokens, np.zeros(400, dtype=np.bool_))


def make_study(folder: Path, made: Made, stop_after: int | None = None) -> Path:
    """Its folder with all results, or with those of the first `stop_after` runs and one more under way."""
    folder.mkdir(parents=True, exist_ok=True)
    maker, rng = bench(), numpy_stream(0, "made")
    matrix = made.study.matrix
    chosen = matrix.fixed_rates or {cell.key: made.best_rate for cell in matrix.cells}
    runs = {f"{i:016x}": run for i, run in enumerate([*matrix.tuning_runs(), *matrix.evaluation_runs(chosen)])}
    facts = maker.facts_of(made.study, len(runs))
    lock = {**lock_of(made.study, facts), "locked": "2026-03-01T10:00:00+00:00"}
    kept = ("locked", "hypotheses", "primary", "controls", "deviations")
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger._db.execute("PRAGMA synchronous = OFF")  # nobody kills a test's machine
        ledger.set_facts({**facts, "lock": {name: lock[name] for name in kept}})
        ledger.register(runs)
        for i, (run_id, run) in enumerate(runs.items()):
            if stop_after is not None and i >= stop_after:
                if i == stop_after and i:
                    ledger.begin(run_id, "bank", "cpu", 150)
                continue
            result = made.result(run)
            splits = {"validation": result} if run.phase == "tuning" else {"validation": result, "test": result}
            plan = maker.plan_of(run, rng).to_json()
            ledger.begin(run_id, "bank", "cpu", 150)
            ledger.complete(run_id, plan, maker.curve_of(rng, 150), splits, {"plan": 0.1, "train": 9.0})
        ledger._db.execute("UPDATE runs SET started = 1.7e9 WHERE started IS NOT NULL")
        ledger._db.execute("UPDATE runs SET finished = 1.7e9 + 3600 WHERE finished IS NOT NULL")
        ledger._db.commit()
    return folder
