"""Rows of study.db that are known to be what was written: each has a digest beside it, held against it on reading.

A digest is written by a trigger, in the transaction of its row and from what is read back, so that no way of writing
can leave it out. What a row says in numbers and words has one, `facts`; what it holds packed (losses by record, plans,
curves) another, `content`, so that a table is read without its arrays. A ledger of a version before has none, and is
read as it is until the next `run` gives it some.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.errors import LedgerDamaged
from adaptive_lora.stats.run_table import Phase, Status

DIGEST_TABLE = """
CREATE TABLE digests (
    name TEXT NOT NULL, key TEXT NOT NULL, facts BLOB NOT NULL, content BLOB, PRIMARY KEY (name, key)
)
"""


@dataclass(frozen=True)
class Table:
    """The columns of a table: what finds a row, what it says, and what it holds packed."""

    key: tuple[str, ...]
    says: tuple[str, ...]
    packed: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, in the order of the schema."""
        return (*self.key, *self.says, *self.packed)

    @property
    def key_sql(self) -> str:
        """The key as one text."""
        return " || '/' || ".join(self.key)


TABLES: Mapping[str, Table] = {
    "study": Table(("key",), ("value",)),
    "runs": Table(
        ("run_id",),
        ("phase", "arm", "strategy", "budget", "scaling", "learning_rate", "seed", "replica", "status", "step", "steps",
         "error", "engine", "device", "kernels", "trainable_parameters", "plan_seconds", "train_seconds", "started",
         "finished"),
    ),
    "evaluations": Table(
        ("run_id", "split"), ("nll", "tokens", "exact", "records"),
        ("nll_by_record", "tokens_by_record", "exact_by_record"),
    ),
    "curves": Table(("run_id",), ("columns",), ("points",)),
    "plans": Table(("run_id",), ("seconds",), ("plan",)),
    "measurements": Table(("key",), ("description", "taken"), ("content",)),
    "scores": Table(("run_id", "metric"), ("mean", "records"), ("value_by_record",)),
    "score_parts": Table(("run_id", "metric", "part"), ("found",)),
}  # fmt: skip
"""Every table of a ledger; `scores` is there from the first score on, `score_parts` from the first in parts."""


def facts_digest(*values: Any) -> bytes:
    """Of the name of a table, the place of a row in it, and what the row says."""
    return hashlib.blake2b(repr(values).encode(errors="surrogatepass"), digest_size=8).digest()


def content_digest(*packed: bytes) -> bytes:
    """Of what a row holds packed."""
    found = hashlib.blake2b(digest_size=8)
    for content in packed:
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.digest()


def seal(db: sqlite3.Connection, every: bool = False) -> None:
    """Lets each row that is written from now on have a digest; with `every`, those that are there too.

    Call again, once a table was made that was not there yet.
    """
    db.create_function("facts_digest", -1, facts_digest, deterministic=True)
    db.create_function("content_digest", -1, content_digest, deterministic=True)
    there = _tables_of(db)
    for name, table in TABLES.items():
        if name not in there:
            continue
        packed = f"content_digest({', '.join(table.packed)})" if table.packed else "NULL"
        says = ", ".join((*table.key, *table.says))
        digests = f"SELECT '{name}', {table.key_sql}, facts_digest('{name}', rowid, {says}), {packed} FROM {name}"
        if every:
            db.execute(f"INSERT INTO digests {digests}")
        for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            key = " || '/' || ".join(f"{row}.{column}" for column in table.key)
            write = f"INSERT INTO digests {digests} WHERE rowid = NEW.rowid;" if row == "NEW" else ""
            db.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS seal_{name}_{event} AFTER {event} ON main.{name} BEGIN"
                f" DELETE FROM digests WHERE name = '{name}' AND key = {key}; {write} END"
            )


def _tables_of(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'")}


def adds_up(name: str, row: Mapping[str, Any]) -> bool:
    """Whether what a row holds can be unpacked, and is what its sums say: all that a row without a digest can show."""
    with contextlib.suppress(ValueError, KeyError, TypeError, zlib.error):
        if name == "runs":
            _ = Status(row["status"]), Phase(row["phase"])
        elif name in ("study", "score_parts"):
            json.loads(row["value" if name == "study" else "found"])
        elif name in ("plans", "measurements"):
            json.loads(zlib.decompress(row["plan" if name == "plans" else "content"]))
        elif name in ("curves", "scores"):
            zlib.decompress(row["points" if name == "curves" else "value_by_record"])
        else:
            kinds = {"nll": "<f8", "tokens": "<i8", "exact": "u1"}
            own = {column: np.frombuffer(zlib.decompress(row[f"{column}_by_record"]), t) for column, t in kinds.items()}
            # An archive keeps losses by record in single precision, and their exact sum.
            return all(len(v) == row["records"] and np.isclose(v.sum(), row[c], 1e-6, 0) for c, v in own.items())
        return True
    return False


def _named(columns: Sequence[str]) -> str:
    """Columns under their own names, whatever the schema in the file makes of them (a letter in the other case)."""
    return ", ".join(f"{column} AS {column}" for column in columns)


class Rows:
    """The rows of an open ledger, each held against its digest where the ledger has digests.

    Whatever is not as it was written, or cannot be read at all, is LedgerDamaged, which names the run.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        db.row_factory = sqlite3.Row
        self._db = db
        with self.explained():
            self.sealed = "digests" in _tables_of(db)

    def has(self, name: str) -> bool:
        """Whether there is such a table, or was: digests tell of one whose name is lost."""
        with self.explained():
            if name in _tables_of(self._db):
                return True
            known = self.sealed and self._db.execute("SELECT 1 FROM digests WHERE name = ?", (name,)).fetchone()
        if known:
            raise LedgerDamaged(str(self._path), f"its table `{name}` is gone")
        return False

    def all(self, name: str, packed: bool = False) -> list[sqlite3.Row]:
        """A table in the order it was written; `packed`: with what its rows hold packed."""
        table = TABLES[name]
        columns = table.columns if packed else (*table.key, *table.says)
        with self.explained(name), self._moment():
            rows = self._db.execute(f"SELECT rowid AS place, {_named(columns)} FROM {name} ORDER BY rowid").fetchall()
            if self.sealed:
                query = "SELECT key, facts, content FROM digests WHERE name = ?"
                digests = {key: (facts, content) for key, facts, content in self._db.execute(query, (name,))}
                for row in rows:
                    self._check(
                        name, row, digests.pop("/".join(str(row[column]) for column in table.key), None), packed
                    )
                if digests:
                    raise self._damaged(name, next(iter(digests)), "is gone")
        return rows

    def one(self, name: str, *key: str) -> sqlite3.Row | None:
        """A row with all that it holds; None where there is none."""
        table = TABLES[name]
        where = " AND ".join(f"{column} = ?" for column in table.key)
        with self.explained(name, "/".join(key)), self._moment():
            query = f"SELECT rowid AS place, {_named(table.columns)} FROM {name} WHERE {where}"
            row: sqlite3.Row | None = self._db.execute(query, key).fetchone()
            if self.sealed:
                found = self._db.execute(
                    "SELECT facts, content FROM digests WHERE name = ? AND key = ?", (name, "/".join(key))
                ).fetchone()
                if row is None and found is not None:
                    raise self._damaged(name, "/".join(key), "is gone")
                if row is not None:
                    self._check(name, row, found, packed=bool(table.packed))
        return row

    def _check(self, name: str, row: sqlite3.Row, digest: Any, packed: bool) -> None:
        table, values = TABLES[name], tuple(row)
        said = 1 + len(table.key) + len(table.says)
        key = "/".join(map(str, values[1 : 1 + len(table.key)]))
        if digest is None:
            raise self._damaged(name, key, "has no digest")
        if digest[0] != facts_digest(name, *values[:said]):
            raise self._damaged(name, key, "is not what was written")
        if packed and table.packed and digest[1] != content_digest(*values[said:]):
            raise self._damaged(name, key, "is not what was written")

    def _damaged(self, name: str, key: str, what: str) -> LedgerDamaged:
        if name in ("study", "measurements"):
            return LedgerDamaged(str(self._path), f"{key!r} in its table `{name}` {what}")
        run_id, *part = key.split("/")
        if name == "runs":
            return LedgerDamaged(str(self._path), f"run {run_id} {what}")
        row = f"its row in `{name}`{f' ({part[0]})' if part else ''}"
        return LedgerDamaged(str(self._path), f"run {run_id}{self._label(run_id)}, {row} {what}")

    def _label(self, run_id: str) -> str:
        """What people call the run, where that is known to be so."""
        with contextlib.suppress(sqlite3.Error, LedgerDamaged):
            if (found := self.one("runs", run_id)) is not None:
                return f" ({found['arm']} at {found['budget']}, seed {found['seed']})"
        return ""

    def check_unsealed(self) -> None:
        """LedgerDamaged where a row does not add up; before the rows of a ledger of before get digests."""
        for name in TABLES:
            for row in self.all(name, packed=True) if self.has(name) else ():
                if not adds_up(name, dict(row)):
                    raise self._damaged(name, "/".join(str(row[c]) for c in TABLES[name].key), "does not add up")

    @property
    def _path(self) -> Path:
        with contextlib.suppress(sqlite3.Error):
            return Path(self._db.execute("PRAGMA database_list").fetchone()[2])
        return Path("study.db")

    @contextlib.contextmanager
    def _moment(self) -> Iterator[None]:
        """Rows and digests of one moment, whatever a writer does meanwhile."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    @contextlib.contextmanager
    def explained(self, name: str = "", key: str = "") -> Iterator[None]:
        """Turns what goes wrong while a table, or a row of it, is read or unpacked into LedgerDamaged."""
        try:
            yield
        except LedgerDamaged:
            raise
        except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not is_damage(error):
                raise
            run = key.split("/")[0] if name not in ("", "study", "measurements") else ""
            at = f"run {run} cannot be read" if run else f"its table `{name}` cannot be read" if name else "it is torn"
            raise LedgerDamaged(str(self._path), f"{at}: {error}") from None


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file itself is not sound: no full disk, no lock, no broken constraint.

    Where it says so with words from the file, they may be none, and Python cannot read its message.
    """
    if isinstance(error, UnicodeError):
        return True
    text = str(error)
    known = ("malformed", "not a database", "no such column", "no such table", "UTF-8", "unsupported file format")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the details that the higher bits hold
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or any(words in text for words in known)
