"""Text to token ids, with the prompt masked: only the completion is learnt and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptive_lora.data.records import Record
from adaptive_lora.data.templates import TemplateName, choose_template, render


@dataclass(frozen=True)
class Example:
    """One record as the model sees it."""

    ids: tuple[int, ...]
    """Token ids: document start where the model has one, prompt, completion, end of text."""
    prompt_length: int
    """How many of the first ids are masked; the rest are the completion."""
    truncated: bool
    """Whether the end of the completion was cut to fit `max_length`."""
    unlearnt: tuple[tuple[int, int], ...] = ()
    """Further masked ids behind the prompt, as (begin, end): later questions where every answer is learnt."""

    @property
    def completion_tokens(self) -> int:
        """Tokens that count in the loss (the very first token of a text is never predicted)."""
        return len(self.learnt)

    @property
    def learnt(self) -> np.ndarray:
        """Indices of the ids that count in the loss, in order."""
        counted = np.arange(max(self.prompt_length, 1), len(self.ids))
        for begin, end in self.unlearnt:
            counted = counted[(counted < begin) | (counted >= end)]
        return counted


@dataclass(frozen=True)
class Encoder:
    """Encodes records for one model.

    The prompt and the completion are tokenised apart, so that the mask falls exactly between them.
    A start token is written where the tokenizer has one that differs from its end token (Llama yes,
    GPT-2 no); the end token closes every completion, and a text over `max_length` loses its end.
    """

    tokenizer: Any
    max_length: int
    template: TemplateName = "auto"

    def render(self, record: Record) -> tuple[str, str]:
        """(prompt, completion) as text, by the template in force for this record."""
        has_chat = bool(getattr(self.tokenizer, "chat_template", None))
        chosen = choose_template(self.template, record.form, has_chat)
        return render(record, chosen, self.tokenizer)

    def encode(self, record: Record) -> Example:
        """One record; `completion_tokens` is 0 where the prompt alone fills `max_length`."""
        return next(self.encode_all([record]))

    def encode_all(self, records: Iterable[Record]) -> Iterator[Example]:
        """Records in order, tokenised a few hundred at a time."""
        chunk: list[Record] = []
        for record in records:
            chunk.append(record)
            if len(chunk) == 256:
                yield from self._encode_chunk(chunk)
                chunk = []
        yield from self._encode_chunk(chunk)

    def completion_bytes(self, examples: Sequence[Example]) -> int:
        """UTF-8 bytes of the completions as far as they were kept, the end token apart."""
        texts = self.tokenizer.batch_decode(
            [example.ids[max(example.prompt_length, 1) :] for example in examples],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return sum(len(text.encode()) for text in texts)

    def _encode_chunk(self, records: Sequence[Record]) -> Iterator[Example]:
        if not records:
            return
        texts = [self.render(record) for record in records]
        # Whether an overlong text warns is the tokenizer's habit; the cut below is ours.
        ids = self.tokenizer(
            [prompt for prompt, _ in texts] + [completion for _, completion in texts],
            add_special_tokens=False,
            verbose=False,
        )["input_ids"]
        for prompt, completion in zip(ids[: len(texts)], ids[len(texts) :], strict=True):
            yield self._join(prompt, completion)

    def _join(self, prompt: list[int], completion: list[int]) -> Example:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        start = [bos] if bos is not None and bos != eos and prompt[:1] != [bos] else []
        end = [eos] if eos is not None else []
        ids = [*start, *prompt, *completion, *end]
        return Example(
            ids=tuple(ids[: self.max_length]),
            prompt_length=min(len(start) + len(prompt), self.max_length),
            truncated=len(ids) > self.max_length,
        )
