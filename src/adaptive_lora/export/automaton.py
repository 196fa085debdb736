"""Regular expressions from a foreign file, matched in bounded time: all ways at once, without backtracking.

PEFT matches such expressions with `re`, which can take exponential time on a crafted one. Here an expression is parsed
by Python's own parser and becomes states of an automaton, at most `MOST_STATES` for all keys of a pattern. A name of n
characters costs at most n · states steps, and all steps of one adapter come out of one allowance (`Work`). The language
is that of `re` on names of printable ASCII, but for back references, look-behind, flags and possessive parts, which are
refused.
"""

from __future__ import annotations

import importlib
import re
import string
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Private names of the standard library since 3.11, without type stubs.
_parser: Any = importlib.import_module("re._parser")
_sre: Any = importlib.import_module("re._constants")

LONGEST_EXPRESSION = 4096
MOST_STATES = 100_000
_MOST_KNOWN = 2_000
"""Steps that an automaton remembers, of each of its two kinds."""
ALPHABET = frozenset(chr(code) for code in range(33, 127))
"""The characters of a module's name."""
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_CATEGORIES = {
    "CATEGORY_DIGIT": frozenset(string.digits),
    "CATEGORY_NOT_DIGIT": ALPHABET - frozenset(string.digits),
    "CATEGORY_WORD": _WORD,
    "CATEGORY_NOT_WORD": ALPHABET - _WORD,
    "CATEGORY_SPACE": frozenset[str](),
    "CATEGORY_NOT_SPACE": ALPHABET,
}
_PLACES: dict[str, Callable[[str, str], bool]] = {
    "AT_BEGINNING": lambda before, after: not before,
    "AT_BEGINNING_STRING": lambda before, after: not before,
    "AT_END": lambda before, after: not after,
    "AT_END_STRING": lambda before, after: not after,
    "AT_BOUNDARY": lambda before, after: (before in _WORD) != (after in _WORD),
    "AT_NON_BOUNDARY": lambda before, after: (before in _WORD) == (after in _WORD),
}
"""Whether a position between two characters (empty at the ends) is such a place."""


class Unmatchable(ValueError):
    """An expression that is not matched here; the message says why, to go after the expression."""


class Work:
    """An allowance of steps; Unmatchable when it is spent."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Unmatchable("takes too many steps to match; write the modules' names out")


@dataclass(slots=True)
class _State:
    """Consumes one of `chars`, or passes on where `place` or `ahead` allows; a plain fork has none of the three."""

    to: tuple[int, ...]
    chars: frozenset[str] | None = None
    place: Callable[[str, str], bool] | None = None
    ahead: tuple[Automaton, bool] | None = None


class Automaton:
    """A compiled expression.

    >>> Automaton(r".*\\.(q|v)_proj").matches("model.q_proj", Work(1000), whole=True)
    True
    """

    def __init__(self, expression: str, room: Work | None = None) -> None:
        """Raises Unmatchable for an expression that `re` refuses too, or that is not supported or too large.

        `room` is what several expressions may have of states together; one alone may have `MOST_STATES`.
        """
        self._room = room or Work(MOST_STATES)
        if len(expression) > LONGEST_EXPRESSION:
            raise Unmatchable(f"is longer than {LONGEST_EXPRESSION:,} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about sets that a future version may read otherwise
                tree = _parser.parse(expression)
            if tree.state.flags & re.IGNORECASE:
                raise Unmatchable("has the flag i, which is not supported here; write both cases")
            self._build(tree)
        except re.error as error:
            raise Unmatchable(f"is no regular expression ({error})") from None
        except (RecursionError, OverflowError):
            raise Unmatchable("is nested or repeated too deeply") from None

    @classmethod
    def _inside(cls, tree: Any, room: Work) -> Automaton:
        """The automaton of a part, for looking ahead."""
        part = cls.__new__(cls)
        part._room = room
        part._build(tree)
        return part

    def _build(self, tree: Any) -> None:
        self._states: list[_State] = []
        self._accept = self._add(_State(()))
        self._start = self._sequence(tree, self._accept)
        self._known: dict[tuple[frozenset[int], str, str], frozenset[int]] = {}
        self._after: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, name: str, work: Work, *, whole: bool = False, start: int = 0) -> bool:
        """Whether it matches from `start` on, up to the end of the name if `whole`: `re.match` or `re.fullmatch`."""
        active = frozenset((self._start,))
        for i in range(start, len(name) + 1):
            before, after = name[i - 1 : i] if i else "", name[i : i + 1]
            active = self._reached(active, before, after, name, i, work)
            if self._accept in active and not (whole and after):
                return True
            active = self._consumed(active, after, work)
            if not active:
                return False
        return False

    def _consumed(self, active: frozenset[int], char: str, work: Work) -> frozenset[int]:
        """The states after one more character."""
        key = (active, char)
        work.spend(1)
        if (known := self._after.get(key)) is not None:
            return known
        work.spend(len(active))
        states = self._states
        result = frozenset(states[s].to[0] for s in active if (chars := states[s].chars) and char in chars)
        if len(self._after) < _MOST_KNOWN:
            self._after[key] = result
        return result

    def _reached(
        self, active: frozenset[int], before: str, after: str, name: str, i: int, work: Work
    ) -> frozenset[int]:
        """All states that can be reached from some without consuming a character."""
        key = (active, before, after)
        if (known := self._known.get(key)) is not None:
            return known
        found, open_, looked = set(active), list(active), False
        while open_:
            state = self._states[open_.pop()]
            if state.chars is not None or (state.place and not state.place(before, after)):
                continue
            if state.ahead:
                looked = True  # what lies ahead is not in the key
                part, wanted = state.ahead
                if part.matches(name, work, start=i) != wanted:
                    continue
            new = [to for to in state.to if to not in found]
            found.update(new)
            open_.extend(new)
        work.spend(len(found))
        result = frozenset(found)
        if not looked and len(self._known) < _MOST_KNOWN:
            self._known[key] = result
        return result

    def _add(self, state: _State) -> int:
        if not self._room.left:
            raise Unmatchable(f"brings the automaton's states above {MOST_STATES:,}; write the modules' names out")
        self._room.left -= 1
        self._states.append(state)
        return len(self._states) - 1

    def _sequence(self, tree: Any, to: int) -> int:
        """States for a sequence of parts that go on at `to`; returns where it starts. Built from its end."""
        for kind, value in reversed(list(tree)):
            to = self._part(str(kind), value, to)
        return to

    def _part(self, kind: str, value: Any, to: int) -> int:
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._add(_State((to,), chars=_characters(kind, value)))
        if kind == "AT" and str(value) in _PLACES:
            return self._add(_State((to,), place=_PLACES[str(value)]))
        if kind == "SUBPATTERN" and not value[1] and not value[2]:
            return self._sequence(value[3], to)
        if kind == "BRANCH":
            return self._add(_State(tuple(self._sequence(branch, to) for branch in value[1])))
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, repeated = value
            return self._repeat(least, most, repeated, to)
        if kind in ("ASSERT", "ASSERT_NOT") and value[0] > 0:
            return self._add(_State((to,), ahead=(Automaton._inside(value[1], self._room), kind == "ASSERT")))
        raise Unmatchable(
            "has a back reference, a look-behind, flags or a possessive part, which are not supported here; "
            "write the modules' names out"
        )

    def _repeat(self, least: int, most: int, tree: Any, to: int) -> int:
        """`most` or any number of the same part, `least` of them required."""
        if most == _sre.MAXREPEAT:
            loop = self._add(_State((to,)))
            self._states[loop].to = (self._sequence(tree, loop), to)
            to = loop
        else:
            last = to
            for _ in range(most - least):
                to = self._add(_State((self._sequence(tree, to), last)))
        for _ in range(least):
            to = self._sequence(tree, to)
        return to


def _characters(kind: str, value: Any) -> frozenset[str]:
    """Which characters a part of length one matches."""
    if kind == "ANY":
        return ALPHABET
    if kind == "LITERAL":
        return frozenset((chr(value),))
    if kind == "NOT_LITERAL":
        return ALPHABET - {chr(value)}
    items: Sequence[tuple[Any, Any]] = list(value)
    found: set[str] = set()
    for item, content in items:
        if str(item) == "LITERAL":
            found.add(chr(content))
        elif str(item) == "RANGE":
            found.update(char for char in ALPHABET if content[0] <= ord(char) <= content[1])
        elif str(item) == "CATEGORY":
            found |= _CATEGORIES[str(content)]
    return ALPHABET - found if str(items[0][0]) == "NEGATE" else frozenset(found)
