"""Tables of one row an item: CSV or TSV, JSON Lines, Parquet with the columns of `COLUMNS`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptive_lora.errors import UsageError, nearest_hint
from adaptive_lora.foreign.lines import json_lines, number, shortened, text_of
from adaptive_lora.foreign.metrics import higher_is_better
from adaptive_lora.foreign.scores import Item, Question, Run
from adaptive_lora.study.seeds import LARGEST_SEED

COLUMNS = ("arm", "seed", "record", "value", "weight", "cluster", "task", "metric")
"""`value` is needed; without `arm` a file is one arm; without `record` a row is a run's mean."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(path: Path, metric: str | None = None, better: str | None = None) -> list[Run]:
    """Every run of a table, in the order of its rows; `metric` names the values where no column does."""
    items: dict[tuple[str, int | None], dict[Question, dict[str, Item]]] = {}
    means: dict[tuple[str, int | None], dict[Question, float]] = {}
    told: set[str] = set()
    for where, row in _rows(path):
        run = row.get("arm") or path.stem, _seed(where, row.get("seed"))
        told |= {row["arm"]} if row.get("arm") else set()
        name = row.get("metric") or metric or "value"
        question = Question(row.get("task") or "", name, higher_is_better(name, better))
        value, record = number(row["value"], f"{where}: `value`"), row.get("record")
        own = items.setdefault(run, {}).setdefault(question, {}) if record else means.setdefault(run, {})
        if (record or question) in own:
            what = f"record {record!r}" if record else "a mean"
            raise UsageError(f"{where}: {what} of arm {run[0]!r}, seed {run[1]}, is there a second time.")
        if record:
            weight = number(row.get("weight") or 1, f"{where}: `weight`")
            if weight <= 0:
                raise UsageError(f"{where}: `weight` is {weight:g}; it counts tokens, and is above 0.")
            items[run][question][record] = Item(value, weight, row.get("cluster") or "")
        else:
            means[run][question] = value
    both = next((arm for arm, _ in items if arm in {arm for arm, _ in means}), None)
    if both is not None:
        raise UsageError(f"{path}: some rows of {both!r} have a `record` and some have none.")
    return [
        Run(
            arm,
            seed,
            str(path),
            items.get((arm, seed), {}),
            means.get((arm, seed), {}),
            named=arm in told or seed is not None,
        )
        for arm, seed in dict.fromkeys([*items, *means])
    ]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, cells as text) of every row; UsageError for a file without rows or columns that it needs."""
    rows = _parquet(path) if path.suffix == ".parquet" else json_lines(path) if path.suffix == ".jsonl" else _csv(path)
    empty = True
    for where, row in rows:
        if empty:
            _check(path, row)
        empty = False
        if "value" not in row:
            raise UsageError(f"{where}: no `value`.")
        yield where, {str(key): _cell(where, cell) for key, cell in row.items()}
    if empty:
        raise UsageError(f"{path} has no rows; its columns may be {', '.join(COLUMNS)}.")


def _cell(where: str, cell: Any) -> str:
    if isinstance(cell, list | dict):
        raise UsageError(f"{where}: a cell holds {shortened(cell)}; a text or a number is needed.")
    return "" if cell is None else str(cell).strip()


def _check(path: Path, row: Mapping[str, Any]) -> None:
    unknown = [str(key) for key in row if key not in COLUMNS]
    if "value" not in row:
        near = next((hint for key in unknown if (hint := nearest_hint(key, COLUMNS))), "")
        raise UsageError(
            f"{path} has no column `value`{near}; it has: {', '.join(map(str, row))}. "
            f"Columns are {', '.join(COLUMNS)}; only `value` is needed."
        )
    if unknown:
        hint = nearest_hint(unknown[0], COLUMNS)
        raise UsageError(f"{path}: unknown column {unknown[0]!r}{hint}; columns are {', '.join(COLUMNS)}.")


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = io.StringIO(text_of(path), newline="")
    reader = csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ",", restval=None)
    try:
        for row in reader:
            if None in row:
                raise UsageError(f"{path}, line {reader.line_num}: more cells than the first line has names.")
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num + 1}: no readable CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (ImportError, ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors and OSErrors
        raise UsageError(f"{path}: not readable as Parquet: {error}") from None
    for at, row in enumerate(table.to_dict("records"), 1):
        yield f"{path}, row {at}", {str(key): None if cell != cell else cell for key, cell in row.items()}


def _seed(where: str, text: str | None) -> int | None:
    if not text:
        return None
    # Beyond 2^53 a float is not exact.
    found = int(text) if re.fullmatch("-?[0-9]{1,19}", text) else number(text, f"{where}: `seed`")
    if found != int(found) or abs(found) > LARGEST_SEED:
        raise UsageError(f"{where}: `seed` is {text[:40]!r}; a seed is a whole number below 2^63.")
    return int(found)
