"""The rows in the pages of an SQLite file, whatever else of it is damaged: its header, its trees, its schema.

Each page is taken for a leaf of a table (https://www.sqlite.org/fileformat2.html), whatever its type says: what is none
gives rows that no digest knows. Pages that a log holds stand before those of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = tuple[int, tuple[Any, ...]]
"""The place of a row, which SQLite calls its rowid, and its values."""
USUAL_SIZE = 4096
_MAGIC = b"SQLite format 3\x00"
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Serial type -> bytes of an integer."""
_PATIENCE = 16
"""Cells of a page that are none before the rest of it is given up."""
_WRONG = (IndexError, ValueError, struct.error, OverflowError)
"""What comes of reading a page as what it is not."""


@dataclass(frozen=True)
class Pages:
    """The pages of a file, some of them replaced by those of its log."""

    content: bytes
    size: int
    newer: Mapping[int, bytes]
    """By number, from 1."""

    def page(self, number: int) -> bytes:
        """IndexError where there is none."""
        if (found := self.newer.get(number)) is not None:
            return found
        found = self.content[(number - 1) * self.size : number * self.size]
        if number < 1 or len(found) < self.size:
            raise IndexError(f"no page {number}")
        return found

    def rows(self) -> Iterator[Row]:
        """Everything that reads as a row."""
        for number in sorted({*range(1, len(self.content) // self.size + 1), *self.newer}):
            page, start = self.page(number), 100 if number == 1 else 0
            at, end, failures = start + 8, self.size, 0
            # On past the number of cells that the page claims to have: where that is damaged, rows stand there too.
            while at + 2 <= end and failures < _PATIENCE:
                (cell,) = struct.unpack_from(">H", page, at)
                at += 2
                try:
                    if cell < at:
                        raise ValueError("no place of a cell")
                    yield self._row(page, cell)
                    end = min(end, cell)
                except _WRONG:
                    failures += 1

    def _row(self, page: bytes, at: int) -> Row:
        length, at = _varint(page, at)
        place, at = _varint(page, at)
        if not 2 <= length <= len(self.content) + len(self.newer) * self.size:
            raise ValueError("no length of a row")
        local = self._local(length)
        payload = page[at : at + local]
        if local < length:
            payload += self._overflow(struct.unpack_from(">I", page, at + local)[0], length - local)
        if len(payload) < length:
            raise IndexError("the row ends beyond its page")
        return place, _values(payload)

    def _local(self, length: int) -> int:
        """How much of a row stands in its own page."""
        most, least = self.size - 35, (self.size - 12) * 32 // 255 - 23
        if length <= most:
            return length
        kept = least + (length - least) % (self.size - 4)
        return kept if kept <= most else least

    def _overflow(self, number: int, length: int) -> bytes:
        parts = []
        while length > 0:
            page = self.page(number)
            (number,) = struct.unpack_from(">I", page, 0)
            parts.append(page[4 : 4 + min(length, self.size - 4)])
            length -= self.size - 4
        return b"".join(parts)


def views_of(content: bytes, log: bytes) -> list[Pages]:
    """The file with the pages of its log, where there are such, and the file alone."""
    size = USUAL_SIZE
    if content[:16] == _MAGIC:
        (told,) = struct.unpack_from(">H", content, 16)
        told = 65536 if told == 1 else told
        size = told if told in {2**power for power in range(9, 17)} else size
    newer = pages_of_log(log, size)
    return [*([Pages(content, size, newer)] if newer else []), Pages(content, size, {})]


def pages_of_log(log: bytes, size: int) -> dict[int, bytes]:
    """The newest version of every page in the frames of the log that are of its last use, but for what it holds of a
    transaction that did not end."""
    done: dict[int, bytes] = {}
    open_: dict[int, bytes] = {}
    for at in range(32, len(log) - size - 23, size + 24):
        number, committed = struct.unpack_from(">II", log, at)
        if log[at + 8 : at + 16] != log[16:24]:  # of an earlier use
            continue
        open_[number] = log[at + 24 : at + 24 + size]
        if committed:
            done.update(open_)
            open_.clear()
    return done


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(9):
        byte = data[at + i]
        if i == 8:
            return (value << 8) | byte, at + 9
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + i + 1
    raise AssertionError("not reached")


def _values(payload: bytes) -> tuple[Any, ...]:
    header, at = _varint(payload, 0)
    body = header
    found: list[Any] = []
    while at < header:
        kind, at = _varint(payload, at)
        if kind >= 12:
            length = (kind - 12) // 2
            content = payload[body : body + length]
            if len(content) < length:
                raise IndexError("a value ends beyond its row")
            found.append(content.decode() if kind % 2 else content)
            body += length
        elif kind in _INTEGERS:
            length = _INTEGERS[kind]
            found.append(int.from_bytes(payload[body : body + length], "big", signed=True))
            body += length
        elif kind == 7:
            found.append(struct.unpack_from(">d", payload, body)[0])
            body += 8
        elif kind in (0, 8, 9):
            found.append({0: None, 8: 0, 9: 1}[kind])
        else:
            raise ValueError("no type of a value")
    return tuple(found)
