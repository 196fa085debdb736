"""Files and hub data sets as rows: JSON, JSON Lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.data.forms import recognise
from adaptive_lora.data.json_errors import too_much, what_is_wrong
from adaptive_lora.errors import DataError
from adaptive_lora.files import read_bounded

Rows = Sequence[Any]
"""One mapping from column to value per row, where the source is as it should be; `forms` checks that."""

_LARGEST = 2**35
"""Bytes of one file of records."""
_LARGEST_CELL = 2**31 - 1
"""Of a CSV file, in characters: the library's own limit is 131,072, less than some documents have."""


def read_file(path: Path) -> Rows:
    """The rows of a file by its ending; DataError with line, column and cause where it cannot be read."""
    return READERS[path.suffix.lower()](path)


def read_hub(source: str) -> tuple[Rows, str | None]:
    """The rows of the split `train` of `owner/name[:configuration]` and the hub's commit, None where it is not told.

    DataError where it cannot be had.
    """
    import datasets
    import huggingface_hub

    name, _, configuration = source.partition(":")
    try:
        rows = [_without_nulls(row) for row in datasets.load_dataset(name, configuration or None, split="train")]
    except Exception as error:
        # The hub libraries raise a dozen unrelated classes for "cannot be had".
        reason = " ".join(str(error).splitlines()[:2]).rstrip(".") or "no reason given"
        raise DataError(
            f"The data set {source} could not be loaded from the hub: {type(error).__name__}: {reason}. Check the "
            "name (owner/name, or owner/name:configuration where it has several) and the network "
            f"(`adaptive-lora doctor`), or give a local {ENDINGS} file."
        ) from None
    try:
        return rows, huggingface_hub.dataset_info(name).sha
    except Exception:
        return rows, None  # read from the cache while offline; the content's own fingerprint still tells


def _text_of(path: Path) -> str:
    try:
        content = read_bounded(path, _LARGEST)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        # As it is: a text file's own reading of line ends would change what stands inside quotes.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        looks = ", but looks like UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}){looks}. Save it as UTF-8."
        ) from None


def _read_json(path: Path) -> Rows:
    text = _text_of(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        # People name JSON lines .json; only a file whose first line parses alone is taken as such.
        first = text.lstrip().split("\n", 1)[0].rstrip().removesuffix(",")
        if first.startswith("{") and _parses(first):
            return _json_lines(text, path)
        raise DataError(f"{path}, {what_is_wrong(text, error)}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {too_much(error)}.") from None
    if isinstance(rows, Mapping):
        if _is_by_columns(rows):
            raise DataError(
                f"{path} holds one list or mapping a column, as pandas writes it; expected a list of records. Write "
                'it with `frame.to_json(path, orient="records")`.'
            )
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(lists) == 1 and not _is_record(rows) else [rows]
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; expected a list of records.")
    return rows


def _is_record(row: Mapping[str, Any]) -> bool:
    """Whether a file's only mapping is a record that has a list, and not a wrapping of records (`{"data": [...]}`)."""
    lists = [value for value in row.values() if isinstance(value, list)]
    if form := _form_of([row]):
        return form != "text" or not all(_form_of([v for v in own if isinstance(v, Mapping)]) for own in lists)
    return any(own and not isinstance(own[0], Mapping) for own in lists)


def _form_of(rows: Rows) -> str:
    """The form of rows by their keys; empty where it is not known."""
    try:
        return recognise(rows, "").name if rows else ""
    except DataError:
        return ""


def _is_by_columns(rows: Mapping[str, Any]) -> bool:
    """Whether each key has the cells of all records: numbered, or as lists of as many texts."""
    own = list(rows.values())
    if len(own) < 2:
        return False
    if all(isinstance(column, Mapping) and column for column in own):
        return all(column.keys() == own[0].keys() and all(map(str.isdigit, column)) for column in own)
    return all(isinstance(c, list) and c and len(c) == len(own[0]) and isinstance(c[0], str) for c in own)


def _read_jsonl(path: Path) -> Rows:
    text = _text_of(path)
    # One list of all records, as .json files have it, is taken as such.
    return _read_json(path) if text.lstrip().startswith("[") else _json_lines(text, path)


def _json_lines(text: str, path: Path) -> Rows:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, {what_is_wrong(line, error, number)}.") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {too_much(error)}.") from None
    return rows


def _read_csv(path: Path) -> Rows:
    """A header and rows; the delimiter is what the header is split by most often of comma, semicolon and tab."""
    text = _text_of(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=header.count)
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        return _csv_rows(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), path)
    except csv.Error as error:
        raise DataError(f"{path} is not readable CSV: {error}. A quote inside a cell is written twice.") from None
    finally:
        csv.field_size_limit(before)


def _csv_rows(reader: Any, path: Path) -> Rows:
    columns: list[str] = []
    rows = []
    for cells in reader:
        if not cells or cells == [""]:
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
            if twice:
                raise DataError(f"{path}: the header names the column `{twice[0]}` twice. Name columns apart.")
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(cells)} cells, but the header names {len(columns)} columns. A "
                "cell that holds the delimiter or a line break stands in double quotes."
            )
        # The column without a name is the row number that pandas writes.
        rows.append({name: cell for name, cell in zip(columns, cells, strict=True) if name})
    return rows


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        return [_without_nulls(row) for row in pyarrow.parquet.read_table(path).to_pylist()]
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the nulls inside its values: Arrow gives every mapping of a list the keys of all others."""
    return {name: _pruned(value) for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
ENDINGS = f"{', '.join([*READERS][:-1])} or {[*READERS][-1]}"
