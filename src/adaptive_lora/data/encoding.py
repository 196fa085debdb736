"""Text to token ids, with the prompt masked: only the completion is learnt and measured."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from adaptive_lora.data.beginnings import LONGEST_CHAT, Tokenise, tokenised
from adaptive_lora.data.chat import DATE, ChatTemplate, Difference, shared_length
from adaptive_lora.data.control_tokens import ControlTokens, is_marked, start_tokens
from adaptive_lora.data.learnt_turns import check_turns, earlier_answers, find_turn, gaps, leaves_thoughts
from adaptive_lora.data.records import Record
from adaptive_lora.data.templates import check_template, choose_template, render
from adaptive_lora.errors import DataError

Learn = Literal["last", "all"]


@dataclass(frozen=True)
class Example:
    """One record as the model sees it."""

    ids: tuple[int, ...]
    """Token ids: document start where the tokenizer writes one, prompt, completion, end of text or of the turn."""
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

    In a chat, the model's own template writes the conversation with and without its answer, and the difference is
    learnt: the answer, the end of its turn, and whatever else the template adds. Nothing of ours is written. The
    prompt's ids are those that generation starts from; where a token of the whole text would straddle its end, prompt
    and answer are tokenised apart. `learn` says whether the last answer is learnt (the record's completion) or every
    answer of the conversation that may be learnt.

    Without a chat template prompt and completion are tokenised apart, so that the mask falls exactly between them,
    after the start that the tokenizer itself writes before text; its end token, where it has one, closes every
    completion.

    A text over `max_length` tokens loses its end; one that is much longer is tokenised as far as it counts. Control
    tokens that a record spells stay text.
    """

    tokenizer: Any
    max_length: int
    template: str = "auto"
    learn: Learn = "last"
    thoughtless: set[str] = field(default_factory=set, repr=False, compare=False, kw_only=True)
    """Records (by content) whose answers are learnt without what they thought, met here or in a `replace`d copy."""

    def __post_init__(self) -> None:
        check_template(self.template, self.tokenizer)

    def template_for(self, form: str) -> str:
        """The template in force for records of a form, as `choose_template` says."""
        return choose_template(self.template, form, self.tokenizer)

    def is_chat(self, form: str) -> bool:
        """Whether records of a form are written by a chat template of the model."""
        return self.template_for(form) not in ("alpaca", "alpaca-short", "question", "plain")

    def notes(self, form: str) -> list[str]:
        """What a user should be told of how records of a form are written, a sentence each."""
        if not self.is_chat(form):
            return []
        name = self.template_for(form)
        which = "the model's chat template" if name == "chat" else f"the model's chat template {name!r}"
        chosen = ", which `template: auto` takes for models that have one" if self.template == "auto" else ""
        return [f"Records are written by {which}{chosen}; for it, today is {DATE}."]

    def warnings(self, form: str) -> list[str]:
        """What a user should know before training on records of a form; of thoughts, what encoding has met so far."""
        found = self._chat.warnings() if self.is_chat(form) else []
        if self.tokenizer.eos_token_id is None and not self.is_chat(form):
            found.append(
                "The tokenizer has no end token: no answer ends in one, and the model does not learn where to stop. "
                "Give the tokenizer an `eos_token`, or choose a model with a chat template."
            )
        if self.thoughtless:
            found.append(
                f"The template does not write what answers thought: {len(self.thoughtless):,} of those encoded so far "
                "are learnt without. Choose a model whose template writes it, or take it out of the records."
            )
        return found

    def facts(self, form: str) -> dict[str, str]:
        """What a study records of how records of a form are written: the template, and its date if it is a chat's."""
        dated = {"template_date": DATE} if self.is_chat(form) else {}
        return {"template": self.template_for(form), **dated}

    def render(self, record: Record) -> tuple[str, str]:
        """(prompt, completion) as text, by the template in force for this record."""
        if self.is_chat(record.form):
            difference = self._difference(record)
            return difference.prompt, difference.completion
        prompt, completion = render(record, self.template_for(record.form))
        self._note_thoughts(record, completion)
        return prompt, completion

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

    def learnt_text(self, example: Example) -> str:
        """What is learnt of an example, back from its tokens; what is masked between two answers is ` [...] `."""
        learnt, ids = example.learnt.tolist(), example.ids
        cuts = [i for i in range(1, len(learnt)) if learnt[i] != learnt[i - 1] + 1]
        stretches = zip([0, *cuts], [*cuts, len(learnt)], strict=True)
        return " [...] ".join(self.tokenizer.decode([ids[at] for at in learnt[a:b]]) for a, b in stretches)

    def completion_bytes(self, examples: Sequence[Example]) -> int:
        """UTF-8 bytes of the completions as far as they were kept, control tokens apart."""
        texts = self.tokenizer.batch_decode(
            [[example.ids[i] for i in example.learnt] for example in examples],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return sum(len(text.encode()) for text in texts)

    @functools.cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    @functools.cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, None if self.template in ("auto", "chat") else self.template)

    @functools.cached_property
    def _start(self) -> tuple[int, ...]:
        return start_tokens(self.tokenizer)

    def _encode_chunk(self, records: Sequence[Record]) -> Iterator[Example]:
        """Renders all, tokenises all in one call, and cuts each into prompt and completion."""
        records = [self._control.mark(record) if self._control.spelled_in(record) else record for record in records]
        written = [self._texts(record) for record in records]
        flat = [(text, self.is_chat(r.form)) for r, texts in zip(records, written, strict=True) for text in texts]
        ids = iter(self._tokens(flat))
        found = [[next(ids) for _ in texts] for texts in written]
        tails = [
            _tail(texts, tokens) if self.is_chat(record.form) else ""
            for record, texts, tokens in zip(records, written, found, strict=True)
        ]
        apart = iter(tokenised(self._control.encode_behind, [tail for tail in tails if tail], self.max_length))
        for record, texts, tokens, tail in zip(records, written, found, tails, strict=True):
            if tail:  # the prompt's own tokens, and what comes behind them
                tokens[-1] = [*tokens[-2], *next(apart)]
            yield self._join_chat(record, texts, tokens) if self.is_chat(record.form) else self._join(*tokens)

    def _texts(self, record: Record) -> list[str]:
        """What is to be tokenised of a record: prompt and completion; of a chat, each answer without and with it."""
        earlier = earlier_answers(record) if self.learn == "all" else []
        if not self.is_chat(record.form):
            if earlier:
                raise DataError(
                    f"`learn: all` needs the model's chat template, which tells answers from questions; the template "
                    f"is `{self.template_for(record.form)}`. Write `learn: last` under `data`."
                )
            return list(self.render(record))
        pairs = [*(self._chat.earlier(record, at) for at in earlier), self._difference(record)]
        return [text for pair in pairs for text in (pair.prompt, pair.full)]

    def _difference(self, record: Record) -> Difference:
        found = self._chat.difference(record)
        check_turns(record, found.prompt)
        self._note_thoughts(record, found.completion)
        return found

    def _note_thoughts(self, record: Record, written: str) -> None:
        thinks = "</think>" in record.completion or record.fields
        if thinks and not record.is_empty and leaves_thoughts(record, written):
            self.thoughtless.add(record.content_key())

    def _tokens(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of (text, whether a chat template wrote it), all but the marked ones in one call."""
        marked = {i for i, (text, _) in enumerate(texts) if is_marked(text)}
        least, limit = LONGEST_CHAT if self.learn == "all" else 0, self.max_length
        rest = iter(tokenised(self._bare, [text for i, (text, _) in enumerate(texts) if i not in marked], limit, least))

        def literal(chat: bool) -> Tokenise:
            encode = self._control.encode if chat else self._control.encode_text
            return lambda parts: [encode(part) for part in parts]

        return [
            tokenised(literal(chat), [text], limit, least)[0] if i in marked else next(rest)
            for i, (text, chat) in enumerate(texts)
        ]

    def _bare(self, texts: Sequence[str]) -> list[list[int]]:
        # Whether an overlong text warns is the tokenizer's habit; the cut is ours.
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return list(found)

    def _join(self, prompt: list[int], completion: list[int]) -> Example:
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return self._cut([*self._start, *prompt, *completion, *end], len(self._start) + len(prompt))

    def _join_chat(self, record: Record, texts: Sequence[str], ids: Sequence[list[int]]) -> Example:
        """The whole conversation, and which of its tokens are answers."""
        full = ids[-1]
        spans = []
        for i, at in enumerate(earlier_answers(record) if len(texts) > 2 else []):
            if len(texts[2 * i]) > LONGEST_CHAT and len(ids[2 * i]) > 2 * self.max_length:
                break  # this turn and those behind it are beyond what was tokenised
            turn = (Difference(*texts[2 * i : 2 * i + 2]), ids[2 * i], ids[2 * i + 1])
            spans.append(find_turn(record, at, turn, (texts[-1], full), self._control))
        return self._cut(full, *gaps([*spans, (shared_length(ids[-2], full), len(full))]))

    def _cut(self, ids: list[int], prompt_length: int, unlearnt: Sequence[tuple[int, int]] = ()) -> Example:
        limit = self.max_length
        return Example(
            ids=tuple(ids[:limit]),
            prompt_length=min(prompt_length, limit),
            truncated=len(ids) > limit,
            unlearnt=tuple((begin, min(end, limit)) for begin, end in unlearnt if begin < limit),
        )


def _tail(texts: Sequence[str], ids: Sequence[list[int]]) -> str:
    """What stands behind the prompt, where a token of the whole text straddles its end; else nothing."""
    (prompt, full), (prompt_ids, full_ids) = texts[-2:], ids[-2:]
    straddles = shared_length(prompt_ids, full_ids) < len(prompt_ids) and full.startswith(prompt)
    return full[len(prompt) :] if straddles else ""
