"""Opens the ledger of a study: to read, to write, or in memory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.ledger_place import PlacedConnection
from adaptive_lora.study.plan_store import PLAN_TABLES
from adaptive_lora.study.score_store import SCORE_TABLE

_SCHEMA = f"""
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, phase TEXT NOT NULL, arm TEXT NOT NULL, strategy TEXT NOT NULL,
    budget TEXT NOT NULL, scaling TEXT NOT NULL, learning_rate REAL NOT NULL, seed INTEGER NOT NULL,
    replica INTEGER NOT NULL, status TEXT NOT NULL, step INTEGER, steps INTEGER, error TEXT,
    engine TEXT, device TEXT, kernels TEXT, trainable_parameters INTEGER, plan_seconds REAL, train_seconds REAL,
    started REAL, finished REAL
);
CREATE TABLE evaluations (
    run_id TEXT NOT NULL, split TEXT NOT NULL, nll REAL NOT NULL, tokens INTEGER NOT NULL,
    exact INTEGER NOT NULL, records INTEGER NOT NULL,
    nll_by_record BLOB NOT NULL, tokens_by_record BLOB NOT NULL, exact_by_record BLOB NOT NULL,
    PRIMARY KEY (run_id, split)
);
CREATE TABLE curves (run_id TEXT PRIMARY KEY, columns TEXT NOT NULL, points BLOB NOT NULL);
{PLAN_TABLES}
PRAGMA user_version = 2;
"""
_VERSION = 2


def in_memory(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Ledger:
    """A ledger of these `rows` that no file holds."""
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:", factory=PlacedConnection)))
        db.executescript(_SCHEMA)
        if "scores" in tables:
            db.execute(SCORE_TABLE)
        for table, rows in tables.items():
            for row in rows:
                columns = ", ".join(f":{column}" for column in row)
                db.execute(f"INSERT INTO {table} ({columns.replace(':', '')}) VALUES ({columns})", dict(row))
        db.commit()
        stack.pop_all()
        return Ledger(db)


def open_to_read(folder: Path, begun: bool = True) -> Ledger:
    """The ledger of a study folder, read only; StudyFolderError where there is none.

    `begun` refuses one without any facts too: its writer was killed before it wrote the first.
    """
    path = StudyPaths(folder).ledger
    if not path.is_file():
        raise StudyFolderError(f"{folder} is no study folder: it has no {path.name}. `adaptive-lora run` makes one.")
    log = path.with_name(f"{path.name}-wal")
    writable = os.access(folder, os.W_OK)
    if not writable and log.exists() and log.stat().st_size:
        raise StudyFolderError(
            f"{folder} cannot be written, and its last results are still in {log.name}; copy it first."
        )
    # A folder that cannot be written (a mounted archive) cannot hold WAL's side files either.
    ledger = _connect(path, f"{path.resolve().as_uri()}?mode=ro{'' if writable else '&immutable=1'}")
    if begun and not ledger.facts():
        ledger.close()
        raise StudyFolderError(f"{folder} holds a study that never began; run it again with `adaptive-lora run`.")
    return ledger


def create_or_open(folder: Path) -> Ledger:
    """The ledger of a study folder, to write; call under `exclusive`."""
    path = StudyPaths(folder).ledger
    ledger = _connect(path, path.resolve().as_uri())
    db = ledger._db
    db.placed_at(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if db.execute("PRAGMA user_version").fetchone()[0] == 0:
        db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    return ledger


def _connect(path: Path, uri: str) -> Ledger:
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=30, factory=PlacedConnection)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise StudyFolderError(f"{path} cannot be read as a ledger: {error}.") from None
    if (version, bool(tables)) not in ((0, False), (_VERSION, True)):
        connection.close()
        raise StudyFolderError(
            f"{path}: unsupported ledger version {version}; this adaptive-lora reads version {_VERSION}. Open it "
            "with the version that made it, or name a new folder."
        )
    return Ledger(connection)
