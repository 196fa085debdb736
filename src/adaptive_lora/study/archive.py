"""The ledger of an exported study in one compact file, `ledger.npz`: for intervals over records, and for going on.

A zip that `numpy.load` reads. `tables.json` has every row of the ledger; what is a blob there is a length here, and
the values stand end to end in an array of their own. Losses by record have single precision, all else is exact, their
sums too. Scores of a command of the study's own are there where it has one. The same ledger gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import parse_json, read_bounded, write_atomically
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.folder import StudyPaths, exclusive, make_folder
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import differences
from adaptive_lora.study.open_ledger import in_memory, open_to_read
from adaptive_lora.study.plan_store import packed, unpacked
from adaptive_lora.study.study_file import Study, content_of

LARGEST_ARCHIVE = 2**34
"""Bytes; a study of 10,000 runs with curves of 1,000 points has 0.5 GB."""
_TABLES = ("study", "runs", "plans", "evaluations", "curves")
_BLOBS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "evaluations": {
        "nll_by_record": ("<f8", "<f4"),
        "tokens_by_record": ("<i8", "<i4"),
        "exact_by_record": ("u1", "u1"),
    },
    "curves": {"points": ("<f8", "<f8")},
    "scores": {"value_by_record": ("<f8", "<f8")},
}
"""Table -> column -> type in the ledger and in the file."""


def write_archive(ledger: Ledger, path: Path, without: Collection[str] = ()) -> None:
    """Writes a ledger as an archive, but for the facts `without`."""
    tables = {table: ledger.rows(table) for table in (*_TABLES, *(["scores"] if ledger.scores.there else []))}
    tables["study"] = [row for row in tables["study"] if row["key"] not in without]
    for row in tables["plans"]:
        row["plan"] = unpacked(row["plan"])
    arrays = {}
    for table, columns in ((table, own) for table, own in _BLOBS.items() if table in tables):
        for column, (stored, kept) in columns.items():
            parts = [np.frombuffer(zlib.decompress(row[column]), dtype=stored) for row in tables[table]]
            for row, part in zip(tables[table], parts, strict=True):
                row[column] = len(part)
            with np.errstate(over="ignore"):  # a loss beyond single precision is infinite in it
                arrays[f"{table}.{column}"] = np.concatenate([np.zeros(0, stored), *parts]).astype(kept)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        _add(file, "tables.json", json.dumps(tables).encode())
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            _add(file, f"{name}.npy", content.getvalue())
    write_atomically(path, buffer.getvalue())


def _add(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    # ZipInfo's own date is a fixed one.
    file.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_LZMA)


def read_archive(path: Path) -> Ledger:
    """The ledger in an archive, held in memory; StudyFolderError where the file is corrupt."""
    try:
        content = read_bounded(path, LARGEST_ARCHIVE)
        _check_unpacked(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            tables: dict[str, list[dict[str, Any]]] = parse_json(file["tables.json"])
            _check_names(tables)
            for table, columns in ((table, own) for table, own in _BLOBS.items() if table in tables):
                for column, (stored, _) in columns.items():
                    ends = np.cumsum([row[column] for row in tables[table]], dtype=np.int64)
                    parts = np.split(file[f"{table}.{column}"].astype(stored), ends)
                    if len(parts.pop()):
                        raise ValueError(f"{table}.{column} has another length than its rows say")
                    for row, part in zip(tables[table], parts, strict=True):
                        row[column] = zlib.compress(part.tobytes())
        for row in tables["plans"]:
            row["plan"] = packed(row["plan"])
        return in_memory(tables)
    except Exception as error:  # of zipfile, lzma, numpy, json and sqlite, each with its own
        raise StudyFolderError(
            f"{path} is corrupt: {error or type(error).__name__}. Export the study again with `results --out`, or "
            "delete the file: the tables beside it can be read without it."
        ) from None


def _check_unpacked(content: bytes) -> None:
    """ValueError where little content says that it unpacks to more than any study; zipfile reads no more than that."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        size = sum(info.file_size for info in file.infolist())
    if size > LARGEST_ARCHIVE:
        raise ValueError(f"it says that it unpacks to {size:,} bytes, and at most {LARGEST_ARCHIVE:,} are read")


def _check_names(tables: Mapping[str, list[dict[str, Any]]]) -> None:
    """ValueError for a table or a column by another name than a word: SQL is made of them."""
    for name in {*tables, *(column for rows in tables.values() for row in rows for column in row)}:
        if not re.fullmatch(r"[a-z_]{1,64}", name):
            raise ValueError(f"it names a table or a column {name[:40]!a}")


def open_recorded(folder: Path) -> Ledger | None:
    """The ledger of a study folder or of an export, to read; None for an export that has only tables.

    StudyFolderError where the folder is neither.
    """
    paths = StudyPaths(folder)
    if not paths.is_export:
        return open_to_read(folder)
    return read_archive(paths.archive) if paths.archive.is_file() else None


def continue_from(export: Path, study: Study, folder: Path, deviation: str | None = None) -> int:
    """Makes `folder` the study folder that was exported, for `run_study` to go on with; how many runs it has finished.

    Runs that `study` asks for are taken as they are, all others are kept and set aside. A folder that is not empty is
    left as it is, so that the same command again goes on where it stopped.

    Raises StudyFolderError, with nothing written, where the export cannot be continued, or is of another model or other
    data, or of another version of the study and there is no reason for a `deviation`.
    """
    source, paths = StudyPaths(export), StudyPaths(folder)
    partial = paths.ledger.with_name(f".{paths.ledger.name}.new")
    # What a kill of this very function leaves is written again.
    if folder.is_dir() and not {*folder.iterdir()} <= {paths.lock, paths.decisions, partial}:
        return 0
    if not source.archive.is_file() or not source.decisions.is_file():
        raise StudyFolderError(
            f"{export} cannot be continued: it has no {source.archive.name} with {source.decisions.name} beside it. "
            "Name a folder that `results --out` wrote."
        )
    with contextlib.closing(read_archive(source.archive)) as ledger:
        _check_same(export, ledger.facts(), study, deviation)
        make_folder(folder)
        with exclusive(folder):
            write_atomically(paths.decisions, source.decisions.read_bytes())
            partial.unlink(missing_ok=True)
            ledger.copy_to(partial)
            os.replace(partial, paths.ledger)
        return sum(Status(run["status"]).is_finished for run in ledger.runs())


def _check_same(export: Path, facts: Mapping[str, Any], study: Study, deviation: str | None) -> None:
    there, here = content_of(facts["spec"]), study.content
    for part in ("model", "data"):
        if found := "; ".join(differences(there[part], here[part], ("there", "here"), part)):
            raise StudyFolderError(
                f"{export} has another {part} than {study.path}: {found}. Results on both would be mixed; leave out "
                "--continue-from to begin anew."
            )
    if found := "" if deviation else "; ".join(differences(there, here, ("there", "here"))):
        raise StudyFolderError(
            f"{export} is of another version of this study: {found}. To go on with this one, say why: --deviation "
            "REASON; the report will show it."
        )
