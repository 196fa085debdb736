"""Right answers: test records answered greedily, by the frozen model and by every adapter, and held against their own.

A record whose own answer was cut to fit `max_length` may lack what counts, and is left out for all.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adaptive_lora.data.answer_forms import READERS, AnswerForm, form_of, is_right
from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.engines.scorer import Scoring
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.schema_metric import AnswersPart
from adaptive_lora.training.generation import can_answer_together, greedy_together, question_of, stop_tokens

TOGETHER = 16
"""Prompts of a batch."""
_TRIED = 4
"""Prompts, from the shortest to the longest, that show whether this model can be asked in batches."""


class AnswerScorer:
    """By the text of greedy answers; see `data.answer_forms` for what counts of it."""

    by, frozen = "`answer_match`", True

    def __init__(self, prepared: PreparedStudy) -> None:
        asked = prepared.study.spec.analysis.metric
        part = asked if isinstance(asked, AnswersPart) else AnswersPart(answers="auto")
        self._form: AnswerForm = part.answers
        self.base = prepared.base
        whole = {i: e for i, e in enumerate(prepared.splits.test) if not _is_cut(e)}
        self._questions = {place: question_of(example) for place, example in whole.items()}
        self._references = {place: self._text(q.reference) for place, q in self._questions.items()}
        self._check(prepared)
        self.tokens = part.tokens or max(len(q.reference) for q in self._questions.values())
        self.stops = stop_tokens(self.base, list(self._questions.values()))
        self.batches = list(self._batched())
        forms = Counter(form_of(reference, self._form) for reference in self._references.values())
        self.facts: Mapping[str, Any] = {
            "tokens": self.tokens, "records": len(whole), "left_out": len(prepared.splits.test) - len(whole),
            "forms": dict(sorted(forms.items())),
        }  # fmt: skip

    def _check(self, prepared: PreparedStudy) -> None:
        """StudyFileError where there is nothing to hold answers against."""
        data, at = prepared.study.spec.data, ("analysis", "metric")
        if not self._questions:
            why = f"every answer of the test records was cut to fit {data.max_length} tokens; raise `data.max_length`"
            raise StudyFileError(str(prepared.study.path), [prepared.study.complaint(at, why)])
        read = READERS.get(self._form)
        lost = [text for text in self._references.values() if read is not None and read(text) in (None, "")]
        if lost:
            why = (
                f"`answers: {self._form}` finds nothing in {len(lost):,} of {len(self._references):,} answers of the "
                f"test records, such as {lost[0][:60]!r}; write `answers: auto`, or another form"
            )
            raise StudyFileError(str(prepared.study.path), [prepared.study.complaint(at, why)])

    def _text(self, ids: Sequence[int]) -> str:
        text = self.base.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def _batched(self) -> Iterator[tuple[int, list[int]]]:
        """(longest answer, places) of each batch: the same for every adapter, and none is cut by its neighbours."""
        context = self.base.outline.context
        room = {
            place: min(self.tokens, context - len(question.prompt)) if context else self.tokens
            for place, question in self._questions.items()
        }
        for limit in sorted(set(room.values()), reverse=True):
            own = sorted((p for p in room if room[p] == limit), key=lambda p: len(self._questions[p].prompt))
            for begin in range(0, len(own), TOGETHER):
                yield limit, own[begin : begin + TOGETHER]

    def expected_tokens(self) -> list[int]:
        """Of each batch: it goes on until the longest of its answers is there, which the references tell of."""
        return [min(limit, max(len(self._questions[p].reference) for p in places)) for limit, places in self.batches]

    def prompts(self, places: Sequence[int]) -> list[tuple[int, ...]]:
        """Of these test records."""
        return [self._questions[place].prompt for place in places]

    def values(self, scoring: Scoring, told: Callable[[int, int], None]) -> dict[str, float]:
        """1 for every test record that is answered right, 0 for the others, by their rows in the data."""
        engine, right, whole = scoring.engine, dict[int, float](), len(self._questions)
        _ = self._together  # tried on the frozen model
        with scoring.attached():
            for limit, places in self.batches:
                make = functools.partial(self._answered, places, limit, engine.should_stop)
                found = scoring.part(f"{limit}:{','.join(map(str, places))}", make)
                right |= dict(zip(places, found, strict=True))
                told(len(right), whole)
        rows = engine.prepared.splits.records["test"]
        return {_name(place, rows[place].row): right[place] for place in sorted(right)}

    def _answered(self, places: Sequence[int], limit: int, should_stop: Callable[[], bool]) -> list[float]:
        """Whether each is right, 1 or 0."""
        prompts = self.prompts(places)
        groups = [prompts] if self._together else [[prompt] for prompt in prompts]
        answers = [own for some in groups for own in greedy_together(self.base, some, limit, self.stops, should_stop)]
        return [
            float(is_right(self._text(answer.ids), self._references[place], self._form))
            for place, answer in zip(places, answers, strict=True)
        ]

    @functools.cached_property
    def _together(self) -> bool:
        order = sorted(self._questions, key=lambda place: len(self._questions[place].prompt))
        some = {order[round(i * (len(order) - 1) / (_TRIED - 1))] for i in range(_TRIED)}
        return can_answer_together(self.base, self.prompts(sorted(some)), self.stops)


def _name(place: int, row: int | None) -> str:
    """Of a test record: its place in the split, and its row in the source where that is known."""
    return str(place) if row is None else f"{place}:{row}"


def _is_cut(example: Example) -> bool:
    """Whether what is answered, the first stretch that is learnt, lost its end."""
    return example.truncated and not example.unlearnt
