"""Findings from an export, the same as from the ledger that it came from.

They are read from its archive, which has all of the ledger. Where that is left away its tables answer: `costs.csv` has
what plans say of their cost, `stability.csv` what whole curves say of every run, `records.csv` the intervals over test
records. What is in neither is missing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.findings import Findings, findings_of, read_findings
from adaptive_lora.reporting.memory.memory_bank import export_memory_bank
from adaptive_lora.stats.effect_sizes import OverRecords
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.stability import STABILITY_COLUMNS, with_outcomes
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import check_lock, read_lock
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import (
    COST_COLUMNS,
    CURVE_COLUMNS,
    RANK_COLUMNS,
    export,
    exported_table,
    read_export,
    whole,
)

RECORD_COLUMNS = ("arm", "budget", "difference", "low", "high", "records", "level", "tokens")
"""Arm minus baseline by the study's metric, its interval over test records at `level`, and what these weigh together:
their completion tokens, or of another metric than test loss their number."""


def export_study(folder: Path, to: Path, answers: bool = True) -> list[Path]:
    """All of a study folder that is to be kept: `export_all`, the lock, the memory bank with what people wrote."""
    lock, decided = StudyPaths(folder).decisions, read_lock(folder)
    with contextlib.closing(open_to_read(folder)) as ledger:
        if decided is not None:
            check_lock(folder, decided, ledger.facts())
        written = export_all(ledger, to, answers)
    if lock.is_file():
        written.append(StudyPaths(to).decisions)
        write_atomically(written[-1], lock.read_bytes())
    return [*written, *export_memory_bank(folder, to)]


def export_all(ledger: Ledger, folder: Path, answers: bool = True) -> list[Path]:
    """`study.results.export`, and the tables that tell what only the whole ledger can."""
    found = read_findings(ledger)
    rows = [(*key, i.mean, i.low, i.high, i.n, i.level, tokens) for key, (i, tokens) in found.over_records.items()]
    tables = {
        "costs.csv": found.costs,
        "stability.csv": found.stability,
        "records.csv": pd.DataFrame(rows, columns=list(RECORD_COLUMNS)),
    }
    for name, table in tables.items():
        write_atomically(folder / name, table.to_csv(index=False))
    return [*export(ledger, folder, answers), *(folder / name for name in tables)]


@contextlib.contextmanager
def open_findings(folder: Path) -> Iterator[Findings]:
    """Of a study folder, or of one that `export_study` wrote; StudyFolderError where it is neither."""
    if (ledger := open_recorded(folder)) is None:
        with whole(folder):
            yield findings_of(*read_export(folder), folder, FindingsOfText)
        return
    with contextlib.closing(ledger), whole(folder):
        yield read_findings(ledger)


class FindingsOfText(Findings):
    """An export without its archive, by its tables."""

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        return _with_ids(exported_table(self.source, "ranks", RANK_COLUMNS))

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        return _with_ids(exported_table(self.source, "curves", CURVE_COLUMNS))

    @functools.cached_property
    def costs(self) -> pd.DataFrame:
        costs = exported_table(self.source, "costs", COST_COLUMNS)
        return costs.astype({"measure_seconds": float, "score_bytes": float})

    @functools.cached_property
    def stability(self) -> pd.DataFrame:
        table = exported_table(self.source, "stability", STABILITY_COLUMNS).astype(
            {"diverged": bool, "spikes": "Int64"}
        )
        return with_outcomes(table, self.runs)[list(STABILITY_COLUMNS)]

    @functools.cached_property
    def over_records(self) -> OverRecords:
        found: dict[tuple[str, str], tuple[Interval, int]] = {}
        rows = exported_table(self.source, "records", RECORD_COLUMNS).values
        for arm, budget, difference, low, high, records, level, tokens in rows:
            interval = Interval(float(difference), float(low), float(high), int(records), float(level), "test records")
            found[str(arm), str(budget)] = interval, int(tokens)
        return found

    @property
    def period(self) -> None:
        return None


def _with_ids(table: pd.DataFrame) -> pd.DataFrame:
    arm, budget, seed = (table[key].astype(str) for key in ("arm", "budget", "seed"))
    return table.assign(run_id=arm + "/" + budget + "/" + seed)
