"""Collects the rows of a damaged ledger that are what was written, and the names of those that are not.

First what SQLite still reads, from either end of every table; then, where something is missing, every page by itself.
A row is sound where a digest of the ledger says so. A ledger of before has no digests: there SQLite's word is taken,
and that its packed numbers can be unpacked and add up.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptive_lora.recovery.pages import Pages, views_of
from adaptive_lora.study.open_ledger import VERSIONS, columns_of
from adaptive_lora.study.sealed import TABLES, adds_up, content_digest, facts_digest

Key = tuple[str, str]
"""A table and what finds a row in it."""
_DIGESTS = "digests"


@dataclass
class Sound:
    """What a damaged ledger still tells."""

    rows: dict[str, dict[str, tuple[int, dict[str, Any]]]] = field(
        default_factory=lambda: {name: {} for name in TABLES}
    )
    """Table -> key -> place and row."""
    lost: set[Key] = field(default_factory=set)
    """Rows that were there and are not what was written, or cannot be found."""
    proven: bool = True
    """Whether the ledger had digests."""
    intact: bool = False
    """Whether SQLite found nothing wrong with the file either."""

    def row(self, name: str, key: str) -> dict[str, Any] | None:
        """A sound row; None where there is none."""
        found = self.rows[name].get(key)
        return found[1] if found else None


@dataclass
class _Found:
    """All that was read, from what is sure to what is not."""

    rows: dict[Key, list[tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    by_sqlite: set[Key] = field(default_factory=set)
    """Of `rows`, those that SQLite gave; pages give things that are none too."""
    digests: dict[Key, list[tuple[bytes, bytes | None]]] = field(default_factory=dict)
    types: Mapping[str, Mapping[str, str]] = field(default_factory=columns_of)

    def add(self, name: str, place: int, values: Iterable[Any]) -> Key:
        """A row of a table, or a digest, with its values in the order of the schema; returns what finds it."""
        types = self.types[name]
        row = dict(zip(types, values, strict=True))
        for column, kind in types.items():
            if kind == "REAL" and isinstance(row[column], int):  # as which SQLite keeps whole ones
                row[column] = float(row[column])
        key = (row["name"], row["key"]) if name == _DIGESTS else (name, "/".join(str(row[c]) for c in TABLES[name].key))
        if name != _DIGESTS:
            self.rows.setdefault(key, []).append((place, row))
        elif row["name"] in TABLES:
            self.digests.setdefault(key, []).append((row["facts"], row["content"]))
        return key

    def sound(self) -> Sound:
        """By digests where there are any."""
        found = Sound(proven=bool(self.digests))
        for key in self.digests.keys() | self.by_sqlite if found.proven else self.by_sqlite:
            row = self._proven(key) if found.proven else _plausible(key[0], self.rows[key])
            if row is None:
                found.lost.add(key)
            else:
                found.rows[key[0]][key[1]] = row
        return found

    def _proven(self, key: Key) -> tuple[int, dict[str, Any]] | None:
        table = TABLES[key[0]]
        for facts, content in self.digests.get(key, ()):
            for place, row in self.rows.get(key, ()):
                packed = [row[column] for column in table.packed]
                if all(isinstance(own, bytes) for own in packed):
                    said = facts_digest(key[0], place, *(row[column] for column in (*table.key, *table.says)))
                    if said == facts and (content_digest(*packed) if packed else None) == content:
                        return place, row
        return None


def read_sound(ledger: Path) -> Sound:
    """Reads the ledger at a path, with the log that lies beside it; neither is touched."""
    log = ledger.with_name(f"{ledger.name}-wal")
    found = _Found()
    with tempfile.TemporaryDirectory(dir=ledger.parent, prefix=".recover-") as folder:
        copy = Path(folder) / ledger.name
        for place in (ledger, log):
            if place.exists():
                shutil.copyfile(place, copy.with_name(place.name))
        intact = _by_sqlite(copy, found)
    sound = found.sound()
    if intact and not sound.lost:
        sound.intact = True
        return sound
    for view in views_of(ledger.read_bytes(), log.read_bytes() if log.exists() else b""):
        _by_pages(view, found)
    return found.sound()


def _by_sqlite(path: Path, found: _Found) -> bool:
    """All that SQLite reads before it gives up, from both ends of each table; whether it found nothing wrong."""
    intact = True
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.text_factory = lambda text: text.decode(errors="replace")
        for name, types in found.types.items():
            seen: set[int] = set()
            for order in ("ASC", "DESC"):
                query = f"SELECT rowid, {', '.join(types)} FROM {name} ORDER BY rowid {order}"
                for place, *values in _until_error(db, query):
                    if place not in seen:
                        seen.add(place)
                        key = found.add(name, place, values)
                        if name in TABLES:
                            found.by_sqlite.add(key)
        for (said,) in _until_error(db, "PRAGMA integrity_check(1)", ("an error",)):
            intact &= said == "ok"
        for (version,) in _until_error(db, "PRAGMA user_version"):
            intact &= version in VERSIONS
    return intact


def _until_error(db: sqlite3.Connection, query: str, then: tuple[Any, ...] | None = None) -> Iterator[tuple[Any, ...]]:
    try:
        yield from db.execute(query)
    except (sqlite3.DatabaseError, UnicodeError):
        if then is not None:
            yield then


def _by_pages(view: Pages, found: _Found) -> None:
    """Every row of a page that could be one of ours; those of tables alike in size are tried as each."""
    for place, values in view.rows():
        for name, types in found.types.items():
            if len(types) == len(values) and isinstance(values[0], str):
                with contextlib.suppress(TypeError, OverflowError):
                    found.add(name, place, values)


def _plausible(name: str, rows: list[tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]] | None:
    """The first that adds up."""
    return next(((place, row) for place, row in rows if adds_up(name, row)), None)
