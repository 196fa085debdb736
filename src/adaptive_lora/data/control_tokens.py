"""Control tokens of a tokenizer, and text of records that only spells them: it stays text."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.data.records import Record
from adaptive_lora.errors import DataError

# Two code points that Unicode never gives to a character (a "noncharacter" may mean anything inside a program).
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_LEADS = ("\n", "|")
"""Read before a text that stands behind others and dropped again, lest SentencePiece put a space before the text."""
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


@dataclass(frozen=True)
class ControlTokens:
    """Which strings a tokenizer reads as control tokens, and how to encode text that only spells them.

    Control tokens are the tokenizer's special tokens. Added tokens that are not special (`<think>`, `<tool_call>`) are
    words that an answer may use, and stay what they are.

    A record that spells one is marked before its template is filled: each spelling becomes a number between two
    noncharacters. What the template writes itself is then told from what the record says, and the number becomes
    ordinary characters again. transformers 5 does the same for `sanitize_control_tokens`.
    """

    tokenizer: Any

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The spellings, longest first, so that none hides another."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        found = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        return tuple(sorted((name for name in found if name.strip()), key=lambda name: (-len(name), name)))

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.names)) or "(?!)")

    @functools.cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids(list(self.names)))

    def spelled_in(self, record: Record) -> bool:
        """Whether any text of a record spells a control token."""
        search = self._pattern.search
        texts = (record.prompt, record.context, record.completion, record.fields, record.tools)
        return any(map(search, texts)) or any(search(turn.content) or search(turn.fields) for turn in record.turns)

    def mark(self, record: Record) -> Record:
        """The record with every spelling of a control token replaced by its mark."""
        turns = tuple(
            dataclasses.replace(turn, content=self._marked(turn.content), fields=self._marked(turn.fields))
            for turn in record.turns
        )
        return dataclasses.replace(
            record,
            prompt=self._marked(record.prompt),
            context=self._marked(record.context),
            completion=self._marked(record.completion),
            turns=turns,
            fields=self._marked(record.fields),
            tools=self._marked(record.tools),
        )

    def plain(self, text: str) -> str:
        """A marked text as it reads."""
        return _MARK.sub(lambda mark: self.names[int(mark[1])], text)

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether all of some ids are control tokens; so it is with none."""
        return self._ids.issuperset(ids)

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Token ids of a marked text: outside the marks control tokens are control tokens, in the marks characters.

        `continued`: the text stands behind other text, so no space is put before it (SentencePiece does at a start).
        Raises DataError where the tokenizer makes a control token of its characters whatever one does.
        """
        pieces = _MARK.split(text)
        ids: list[int] = []
        for at, piece in enumerate(pieces):
            if at % 2:
                ids += self._as_characters(self.names[int(piece)])
            elif piece:
                ids += self._continued(piece, False) if at or continued else self._encode(piece, False)
        return ids

    def encode_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, marked or not, that stand behind other text, tokenised in one call."""
        if not texts:
            return []
        lead, *found = self.tokenizer(
            [_LEADS[0], *(_LEADS[0] + text for text in texts)], add_special_tokens=False, verbose=False
        )["input_ids"]
        return [
            ids[len(lead) :] if ids[: len(lead)] == lead and not is_marked(text) else self.encode(text, continued=True)
            for text, ids in zip(texts, found, strict=True)
        ]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a marked text in which every control token is only spelled."""
        ids = self._encode(self.plain(text), True)
        return ids if self._ids.isdisjoint(ids) else self.encode(text)

    def _marked(self, text: str) -> str:
        return self._pattern.sub(lambda found: f"{_OPEN}{self.names.index(found[0])}{_CLOSE}", text)

    def _as_characters(self, name: str) -> list[int]:
        """A spelling as ordinary tokens; some vocabularies hold it as a word too, which its first character breaks."""
        for pieces in ((name,), (name[0], name[1:])):
            ids = [token for piece in pieces if piece for token in self._continued(piece, True)]
            if self._ids.isdisjoint(ids):
                return ids
        raise DataError(
            f"A record spells the control token {name!r}, and this tokenizer cannot write it as ordinary text. Leave "
            "such records out."
        )

    def _continued(self, text: str, literal: bool) -> list[int]:
        for lead in _LEADS:
            before, ids = self._encode(lead, literal), self._encode(lead + text, literal)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._encode(text, literal)

    def _encode(self, text: str, literal: bool) -> list[int]:
        # `split_special_tokens` is told each time: fast tokenizers keep the last one.
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)
        return list(found["input_ids"])


def is_marked(text: str) -> bool:
    """Whether `ControlTokens.mark` left a mark in a text."""
    return _OPEN in text and _MARK.search(text) is not None


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids that a tokenizer itself writes before plain text; none for GPT-2, `<s>` for Llama, `</s>` for OPT.

    Asked of its post-processing and not of `bos_token`, which Yi and SmolLM2 define and do not write.
    """
    bare: Sequence[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole: Sequence[int] = tokenizer("x")["input_ids"]
    for begin in range(len(whole) - len(bare) + 1):
        if list(whole[begin : begin + len(bare)]) == list(bare):
            return tuple(whole[:begin])
    return ()
