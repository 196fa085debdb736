"""Which records must stay in one split: those that ask the same thing, and those of one conversation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

from adaptive_lora.data.records import Record, Turn

_CONTINUATIONS = 10
"""What goes on in more ways than this is a greeting that many conversations share, and makes them no one."""


def without_duplicates(records: Sequence[Record]) -> list[Record]:
    """The first of equal records each, in order; case and white space count."""
    return list({record.content_key(): record for record in reversed(records)}.values())[::-1]


def group_records(records: Sequence[Record], every_answer: bool = False) -> list[list[Record]]:
    """Records together that share what they ask (`Record.prompt_key`), or of which one goes on where another ends.

    The second is a conversation that was written as one record a turn: there, the answers of its early records stand
    in the prompts of the later ones. With `every_answer` earlier questions count too, as their answers are learnt. A
    shared system prompt or greeting alone does not tie. Groups come in the order of their first records, and keep the
    order of their own.

    >>> first = Record("messages", "Which tree?", "", "An oak.")
    >>> later = Record("messages", "How old?", "", "90.", (Turn("user", "Which tree?"), Turn("assistant", "An oak.")))
    >>> [len(group) for group in group_records([first, Record("text", "", "", "Rain."), later])]
    [2, 1]
    """
    parents = list(range(len(records)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    def tie(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parents[high] = low

    first: dict[str, int] = {}
    for i, record in enumerate(records):
        tie(i, first.setdefault(record.prompt_key(), i))
    for i, j in [*_continued(records), *(_shared(records) if every_answer else ())]:
        tie(i, j)
    groups: defaultdict[int, list[Record]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[root(i)].append(record)
    return list(groups.values())


def _continued(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Pairs of records of which the second goes on where the first ends."""
    longer = [i for i, record in enumerate(records) if record.turns]
    if not longer:
        return
    ends: dict[bytes, int] = {}
    for i, record in enumerate(records):
        if states := list(_answers([*record.before(), record.answer()])):
            ends.setdefault(states[-1][0], i)
    after: defaultdict[bytes, list[tuple[int, str]]] = defaultdict(list)
    for i in longer:
        for state, following in _answers(records[i].before()):
            if state in ends:
                after[state].append((i, following))
    for state, found in after.items():
        if len({following for _, following in found}) <= _CONTINUATIONS:
            yield from ((ends[state], i) for i, _ in found)


def _shared(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Pairs of records that ask the same up to an answer that is learnt, in both or earlier in one."""
    asked: defaultdict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
    for i, record in enumerate(records):
        turns = record.before()
        said = tuple("".join(filter(str.isalnum, turn.content.casefold())) for turn in turns)
        for at, turn in enumerate(turns):
            if turn.role == "assistant" and turn.learnt and at:
                asked[said[:at]].append((i, said[at + 1] if at + 1 < len(said) else ""))
        asked[said].append((i, ""))
    for found in asked.values():
        if len({following for _, following in found}) <= _CONTINUATIONS:
            yield from ((found[0][0], i) for i, _ in found[1:])


def _answers(turns: Sequence[Turn]) -> Iterator[tuple[bytes, str]]:
    """For every answer to a user: a hash of the conversation up to it, and what is said next."""
    digest, asked = hashlib.sha256(), False
    for turn, later in zip(turns, [*turns[1:], None], strict=True):
        said = " ".join(turn.content.split()) or turn.fields  # thoughts are often left out of what came before
        digest.update(f"{turn.role}\x1f{said}\x1e".encode(errors="replace"))
        asked = asked or turn.role == "user"
        if asked and turn.role == "assistant":
            yield digest.digest(), later.content if later else ""
