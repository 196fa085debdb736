"""Opens the ledger of a study: to read, to write, or in memory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.errors import LedgerDamaged, StudyFolderError
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.ledger_place import PlacedConnection
from adaptive_lora.study.plan_store import PLAN_TABLES
from adaptive_lora.study.score_store import PARTS_TABLE, SCORE_TABLE
from adaptive_lora.study.sealed import DIGEST_TABLE, Rows, is_damage, seal

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
_VERSION = 3
"""With digests; `in_memory` and versions before have none."""
VERSIONS = (2, 3)
"""That are read."""
_FULL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
"""What SQLite says of a disk that is full, and SQLITE_CANTOPEN where it can make no new file there."""


def in_memory(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Ledger:
    """A ledger of these `rows` that no file holds."""
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:", factory=PlacedConnection)))
        db.executescript(_SCHEMA)
        _fill(db, tables)
        stack.pop_all()
        return Ledger(db)


def write_ledger(folder: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A new ledger of these `rows` in a folder that has none, with digests."""
    with contextlib.closing(create_or_open(folder)) as ledger:
        _fill(ledger._db, tables)


def columns_of() -> dict[str, dict[str, str]]:
    """Table -> column -> type, of all tables that a ledger may have, in their order."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(f"{_SCHEMA}; {SCORE_TABLE}; {PARTS_TABLE}; {DIGEST_TABLE}")
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: {row[1]: row[2] for row in db.execute(f"PRAGMA table_info({name})")} for name in names}


def _fill(db: sqlite3.Connection, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    if "scores" in tables:
        db.execute(SCORE_TABLE)
        if Rows(db).sealed:
            seal(db)
    with db:
        for table, rows in tables.items():
            for row in rows:
                columns = ", ".join(f":{column}" for column in row)
                db.execute(f"INSERT INTO {table} ({columns.replace(':', '')}) VALUES ({columns})", dict(row))


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
    with contextlib.ExitStack() as stack:
        ledger = Ledger(stack.enter_context(contextlib.closing(_to_read(path, writable, log))))
        if begun and not ledger.facts():
            raise StudyFolderError(f"{folder} holds a study that never began; run it again with `adaptive-lora run`.")
        stack.pop_all()
        return ledger


def _to_read(path: Path, writable: bool, log: Path) -> PlacedConnection:
    """A folder that cannot be written (a mounted archive), or is on a full disk, cannot hold WAL's side files: a ledger
    without a log is read without them."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    if writable:
        try:
            return _connection(path, uri)
        except StudyFolderError as error:
            code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
            if code not in (*_FULL, sqlite3.SQLITE_CANTOPEN) or (log.exists() and log.stat().st_size):
                raise
    return _connection(path, f"{uri}&immutable=1")


def create_or_open(folder: Path) -> Ledger:
    """The ledger of a study folder, to write; call under `exclusive`."""
    path = StudyPaths(folder).ledger
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(contextlib.closing(_connection(path, path.resolve().as_uri())))
        db.placed_at(path)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            _seal(db, path)
        except (sqlite3.DatabaseError, UnicodeError) as error:
            if not is_damage(error):
                raise
            raise LedgerDamaged(str(path), str(error)) from None
        ledger = Ledger(db)
        stack.pop_all()
        return ledger


def _seal(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of a new ledger; gives one of a version before its digests, where it is sound as it stands."""
    version, rows = db.execute("PRAGMA user_version").fetchone()[0], Rows(db)
    if version != _VERSION and not rows.sealed:  # else it is the version alone that is damaged
        if version and (wrong := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise LedgerDamaged(str(path), str(wrong).replace("\n", " "))
        if version:
            rows.check_unsealed()
        db.executescript(f"BEGIN; {'' if version else _SCHEMA} {DIGEST_TABLE};")
        seal(db, every=True)
    if version != _VERSION:
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.commit()
    seal(db)


def _connection(path: Path, uri: str) -> PlacedConnection:
    try:
        with contextlib.ExitStack() as stack:
            connection = sqlite3.connect(uri, uri=True, timeout=30, factory=PlacedConnection)
            stack.enter_context(contextlib.closing(connection))
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            stack.pop_all()
    except (sqlite3.DatabaseError, UnicodeError) as error:
        if is_damage(error):
            raise LedgerDamaged(str(path), f"it cannot be read as a ledger: {error}") from None
        full = "; is the disk full?" if getattr(error, "sqlite_errorcode", 0) & 0xFF in _FULL else "."
        raise StudyFolderError(f"{path} cannot be opened: {error}{full}") from error
    if (version, bool(tables)) not in ((0, False), *((version, True) for version in VERSIONS)):
        connection.close()
        raise StudyFolderError(
            f"{path}: unsupported ledger version {version}; this adaptive-lora reads versions {VERSIONS[0]} and "
            f"{VERSIONS[1]}. Open it with the version that made it, or name a new folder; if this one made it, it is "
            f"damaged: `adaptive-lora recover {path.parent}`."
        )
    return connection
