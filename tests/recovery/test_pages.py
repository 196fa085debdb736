"""Pages are read as SQLite writes them: every type of value, rows that overflow, pages that only the log has."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from adaptive_lora.recovery.pages import views_of

VALUES = [
    None,
    0,
    1,
    -1,
    127,
    -129,
    40_000,
    -(2**23),
    2**31,
    -(2**47),
    2**62,
    0.5,
    -1e300,
    "",
    "é" * 40,
    b"",
    b"\x00" * 9,
]


def rows_of(path: Path) -> list[list[tuple[int, tuple[object, ...]]]]:
    log = path.with_name(f"{path.name}-wal")
    return [list(view.rows()) for view in views_of(path.read_bytes(), log.read_bytes() if log.exists() else b"")]


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_every_row_is_found(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {size}")
        db.execute("CREATE TABLE t (a, b)")
        for place, value in enumerate(VALUES):
            db.execute("INSERT INTO t (rowid, a, b) VALUES (?, ?, ?)", (place * 1000, value, "x"))
        for length in range(100, 9000, 700):  # within the page, partly, on many others
            db.execute("INSERT INTO t VALUES (?, ?)", (bytes(range(100)) * (length // 100), "y"))
        db.commit()
        wanted = db.execute("SELECT rowid, a, b FROM t").fetchall()
    (found,) = rows_of(path)
    assert {(place, *values) for place, values in found if len(values) == 2} == set(wanted)


def test_a_page_is_read_whatever_it_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (a, b)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(f"row {i}", i) for i in range(20)])
        db.commit()
    content = bytearray(path.read_bytes())
    content[:100] = bytes(100)  # the header of the file
    content[4096:4104] = bytes(8)  # that of the page: its type, how many rows it has
    content[4096 + 10 : 4096 + 12] = b"\x00\x01"  # the place of one row
    path.write_bytes(content)
    (found,) = rows_of(path)
    assert {values for _, values in found} >= {(f"row {i}", i) for i in range(20) if i != 1}


def test_pages_of_the_log_stand_before_those_of_the_file(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a, b)")
        db.execute("INSERT INTO t VALUES ('old', 1)")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("UPDATE t SET a = 'new'")
        db.commit()
        newer, older = rows_of(tmp_path / "a.db")
    assert (1, ("new", 1)) in newer and (1, ("old", 1)) in older
