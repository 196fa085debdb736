"""Findings from exported text, the same as from the ledger that it came from.

What only a ledger can answer is answered when exporting, and the answers are written beside the tables: `costs.csv`
has what plans say of their cost, `stability.csv` what whole curves say of every run, `records.csv` the intervals over
test records. Losses by record themselves, megabytes of numbers that nobody reads, stay in the ledger. Exports of
earlier versions have none of the three, and nothing is told from what is not there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.findings import Findings, findings_of, read_findings
from adaptive_lora.stats.effect_sizes import OverRecords
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.run_table import RUN_COLUMNS, Phase, Status
from adaptive_lora.stats.stability import STABILITY_COLUMNS
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger, open_to_read
from adaptive_lora.study.results import COST_COLUMNS, export

RECORD_COLUMNS = ("arm", "budget", "difference", "low", "high", "records", "level", "tokens")
"""Arm minus baseline in nats per token, its interval over test records at `level`, and their completion tokens."""


def export_all(ledger: Ledger, folder: Path) -> list[Path]:
    """`study.results.export`, and what else it takes to tell the study from the text alone."""
    found = read_findings(ledger)
    rows = [
        (arm, budget, interval.mean, interval.low, interval.high, interval.n, interval.level, tokens)
        for (arm, budget), (interval, tokens) in found.over_records.items()
    ]
    tables = {
        "costs.csv": found.costs,
        "stability.csv": found.stability,
        "records.csv": pd.DataFrame(rows, columns=list(RECORD_COLUMNS)),
    }
    for name, table in tables.items():
        write_atomically(folder / name, table.to_csv(index=False))
    return [*export(ledger, folder), *(folder / name for name in tables)]


@contextlib.contextmanager
def open_findings(folder: Path) -> Iterator[Findings]:
    """Of a study folder, or of one that `export_all` wrote; StudyFolderError where it is neither."""
    if not StudyPaths(folder).ledger.is_file() and (folder / "facts.json").is_file():
        yield read_exported(folder)
        return
    with contextlib.closing(open_to_read(folder)) as ledger:
        yield read_findings(ledger)


def read_exported(folder: Path) -> Findings:
    """The findings of an export; StudyFolderError where it is torn."""
    source = _OfText(folder)
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        runs = source.table("runs", RUN_COLUMNS).astype({"trainable_parameters": "Int64", "step": "Int64"})
        _check_losses(runs)
        return findings_of(facts, runs, source)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise StudyFolderError(
            f"{folder} holds no whole export: {error}. Export it again with `results --out`."
        ) from None


def _check_losses(runs: pd.DataFrame) -> None:
    """ValueError with the name of a number that a completed run must have; a ledger has it or no such run."""
    done = runs["status"] == Status.COMPLETED
    for phase, loss in ((Phase.EVALUATION, "test_loss"), (Phase.TUNING, "validation_loss")):
        for run in runs[done & (runs["phase"] == phase) & runs[loss].isna()].itertuples():
            raise ValueError(f"`runs.{run.run_id}.{loss}` ({run.arm} at {run.budget}, seed {run.seed}) is missing")


@dataclass(frozen=True)
class _OfText:
    """An export's folder."""

    folder: Path

    def table(self, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
        """As written; without rows where there is no such file. Columns of earlier versions may be missing."""
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            return pd.DataFrame(columns=list(columns))
        found = pd.read_csv(path, keep_default_na=False, na_values=[""])
        return found.reindex(columns=[*columns, *(c for c in found if c not in columns)])

    def _with_ids(self, table: pd.DataFrame) -> pd.DataFrame:
        arm, budget, seed = (table[key].astype(str) for key in ("arm", "budget", "seed"))
        return table.assign(run_id=arm + "/" + budget + "/" + seed)

    def ranks(self) -> pd.DataFrame:
        return self._with_ids(self.table("ranks", ("phase", "arm", "budget", "seed", "module", "kind", "depth", "rank",
                                                   "scaling", "parameters", "score", "update")))  # fmt: skip

    def curves(self) -> pd.DataFrame:
        return self._with_ids(self.table("curves", ("arm", "budget", "seed", "step", "loss", "gradient_norm",
                                                    "learning_rate", "tokens")))  # fmt: skip

    def costs(self) -> pd.DataFrame:
        return self.table("costs", COST_COLUMNS).astype({"measure_seconds": float, "score_bytes": float})

    def stability(self, found: Findings) -> pd.DataFrame:
        return self.table("stability", STABILITY_COLUMNS).astype({"diverged": bool, "spikes": "Int64"})

    def over_records(self, found: Findings) -> OverRecords:
        answers: dict[tuple[str, str], tuple[Interval, int]] = {}
        for arm, budget, difference, low, high, records, level, tokens in self.table("records", RECORD_COLUMNS).values:
            interval = Interval(float(difference), float(low), float(high), int(records), float(level), "test records")
            answers[(str(arm), str(budget))] = interval, int(tokens)
        return answers

    def period(self) -> tuple[float, float] | None:
        return None
