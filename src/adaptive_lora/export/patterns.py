"""Which key of a pattern counts for a module, as PEFT decides it when it loads an adapter, in bounded time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from adaptive_lora.export.automaton import MOST_STATES, Automaton, Unmatchable, Work
from adaptive_lora.export.folder_files import shown

V = TypeVar("V")

MOST_EXPRESSIONS = 2_000
"""Keys of one pattern that are more than a name."""
_PLAIN = re.compile(r"\^?(?:[\w.\-]|\\[.\-])+\$?", re.ASCII)
_PIECES = re.compile(r"\\?.", re.ASCII)

Wild = tuple[int, ...]


class PatternTable(Generic[V]):
    """`rank_pattern` or `alpha_pattern`: the first key, in the file's order, that PEFT's `(.*\\.)?(key)$` matches.

    A key that is a name or the end of one, its dots escaped or not, is looked up; others become automata. The cost of
    a look-up hardly depends on how many keys there are.

    >>> table = PatternTable({"mlp.c_fc": 4, r"^h\\.0\\.mlp\\.c_fc": 8})
    >>> table.find("h.0.mlp.c_fc", Work(100))
    ('mlp.c_fc', 4)
    """

    def __init__(self, pattern: Mapping[str, V]) -> None:
        """Raises Unmatchable, with the key in front, where one cannot be matched."""
        self._items = list(pattern.items())
        # By length; keys with unescaped dots (which match anything) in the same places share a table.
        self._fixed: dict[int, dict[tuple[bool, Wild], dict[str, int]]] = {}
        self._others: list[tuple[int, Automaton]] = []
        room = Work(MOST_STATES)
        for index, (key, _) in enumerate(self._items):
            if _PLAIN.fullmatch(key):
                self._add_fixed(index, key)
            elif len(self._others) == MOST_EXPRESSIONS:
                raise Unmatchable(f"has more than {MOST_EXPRESSIONS:,} keys that are regular expressions")
            else:
                try:
                    self._others.append((index, Automaton(rf"(.*\.)?({key})$", room)))
                except Unmatchable as error:
                    raise Unmatchable(f"has the key {shown(key)}, which {error}") from None

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self._items]

    def find(self, name: str, work: Work) -> tuple[str, V] | None:
        """Key and value that count for a module; None where no key matches."""
        first = self._first_fixed(name, work)
        for index, automaton in self._others:
            if first is not None and index > first:
                break
            if automaton.matches(name, work):
                first = index
                break
        return None if first is None else self._items[first]

    def _add_fixed(self, index: int, key: str) -> None:
        anchored = key.startswith("^")
        pieces = _PIECES.findall(key.removeprefix("^").removesuffix("$"))
        wild = tuple(i for i, piece in enumerate(pieces) if piece == ".")
        text = "".join("\0" if piece == "." else piece[-1] for piece in pieces)
        tables = self._fixed.setdefault(len(text), {})
        tables.setdefault((anchored, wild), {}).setdefault(text, index)

    def _first_fixed(self, name: str, work: Work) -> int | None:
        found: int | None = None
        for start in starts_of(name):
            for (anchored, wild), table in self._fixed.get(len(name) - start, {}).items():
                if anchored and start:
                    continue
                work.spend(2 + len(wild))
                index = table.get(_masked(name[start:], wild))
                if index is not None and (found is None or index < found):
                    found = index
        return found


def starts_of(name: str) -> list[int]:
    """Where a name and the ends of it at its dots begin."""
    return [0, *(i + 1 for i, char in enumerate(name) if char == ".")]


def _masked(text: str, wild: Wild) -> str:
    if not wild:
        return text
    characters = list(text)
    for i in wild:
        characters[i] = "\0"
    return "".join(characters)


class NameSet:
    """`target_modules` or `exclude_modules`: a regular expression for whole names, or names and ends of names.

    >>> NameSet(["q_proj"]).has("model.layers.0.q_proj", Work(100))
    True
    """

    def __init__(self, named: str | Sequence[str]) -> None:
        """Raises Unmatchable for an expression that cannot be matched."""
        self._automaton = Automaton(named) if isinstance(named, str) else None
        self._names = frozenset(() if isinstance(named, str) else named)

    def has(self, name: str, work: Work) -> bool:
        if self._automaton:
            return self._automaton.matches(name, work, whole=True)
        starts = starts_of(name)
        work.spend(len(starts))
        return any(name[start:] in self._names for start in starts)
