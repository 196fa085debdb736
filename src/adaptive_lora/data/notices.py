"""What a user must know of the data before trusting what is learnt from them: counted, and in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.data.control_tokens import ControlTokens
from adaptive_lora.data.records import Reading, Record

_CHUNK = 256
_MOST_NAMES = 12
_PART = 1_000_000
"""Characters that are tokenised at once: what is counted needs no more of a text than its parts."""


@dataclass(frozen=True)
class TextCounts:
    """What a tokenizer makes of the texts of records, templates apart."""

    unknown_records: int = 0
    """Records with characters or words that the tokenizer does not know."""
    unknown_tokens: int = 0
    control_records: int = 0
    """Records whose text spells one of the tokenizer's control tokens, as `<|im_end|>`."""

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return dict(vars(self))


def count_texts(records: Iterable[Record], tokenizer: Any) -> TextCounts:
    """Counts over the texts of records: turns, question, context and answer."""
    records = tuple(records)
    texts = ["\n".join(record.texts()) for record in records]
    unknown = [found for found in _unknown(texts, tokenizer) if found]
    return TextCounts(len(unknown), sum(unknown), sum(map(ControlTokens(tokenizer).spelled_in, records)))


def source_notices(reading: Reading) -> list[str]:
    """What became of a source's rows and columns, as far as someone must know it."""
    found = []
    if reading.unused:
        names = ", ".join(_named(name) for name in reading.unused[:_MOST_NAMES])
        if len(reading.unused) > _MOST_NAMES:
            names += f" and {len(reading.unused) - _MOST_NAMES} more"
        columns = "the column" if len(reading.unused) == 1 else "the columns"
        found.append(f"not used of the data: {columns} {names}; rename to `context` what belongs to the question")
    for reason, count in reading.left_out.items():
        found.append(f"{_counted(count, 'record')} of {reading.rows:,} left out: {reason}")
    for column, count in reading.missing.items():
        found.append(
            f"{_counted(count, 'record')} of {reading.rows:,} with null or NaN in {_named(column)}, read as empty"
        )
    return [*found, *reading.assumed]


def text_notices(counts: TextCounts, empty: int, where: str = "") -> list[str]:
    """Empty answers, tokens that the tokenizer does not know, and control tokens in the text.

    >>> text_notices(TextCounts(), empty=1)
    ['1 record has an empty answer; it is neither learnt nor measured']
    """
    found = []
    if empty:
        its = "has an empty answer; it is" if empty == 1 else "have an empty answer; they are"
        found.append(f"{_counted(empty, 'record')} {its} neither learnt nor measured")
    if counts.unknown_tokens:
        unknown = f"{_counted(counts.unknown_tokens, 'token')} unknown to the tokenizer"
        records = _counted(counts.unknown_records, "record")
        found.append(f"{records}{where} with {unknown}; all of these look alike to the model")
    if counts.control_records:
        found.append(
            f"{_counted(counts.control_records, 'record')}{where} with a control token of the tokenizer in the text, "
            "where it stays text"
        )
    return found


def _named(column: str) -> str:
    """A column's name without what could drive a terminal, in 40 characters."""
    return f"`{''.join(c if c.isprintable() else '?' for c in column[:40])}`"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _unknown(texts: Sequence[str], tokenizer: Any) -> Iterator[int]:
    """How many tokens of each text are the unknown one; one that the text spells out is none."""
    unknown, spelled = tokenizer.unk_token_id, tokenizer.unk_token
    if unknown is None:
        return
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        parts = [[text[at : at + _PART] for at in range(0, max(len(text), 1), _PART)] for text in chunk]
        flat = [part for own in parts for part in own]
        ids = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        for text, own in zip(chunk, parts, strict=True):
            yield max(sum(next(ids).count(unknown) for _ in own) - text.count(spelled), 0)
