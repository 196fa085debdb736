"""The turns before an answer: whether a prompt holds them, and which tokens the answers among them have."""

from __future__ import annotations

import collections
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from adaptive_lora.data.chat import Difference, called_tools, said, shared_length, where
from adaptive_lora.data.control_tokens import ControlTokens
from adaptive_lora.data.records import Record, Turn
from adaptive_lora.errors import DataError

_THINK = re.compile("</?think>")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def earlier_answers(record: Record) -> list[int]:
    """Which turns before the answer are answers that may be learnt.

    One that nothing stands before is no answer, and one that says nothing and calls no tool would teach silence; what
    it thought is no answer either, and most templates drop it once other turns follow.
    """
    return [
        i
        for i, turn in enumerate(record.before())
        if i > 0 and turn.role == "assistant" and turn.learnt and (said(turn) or called_tools(record, turn))
    ]


def check_turns(record: Record, prompt: str) -> None:
    """DataError unless a prompt holds what each turn says, in order, and each call; white space and thoughts apart.

    System turns may stand anywhere (Mistral puts them before the last question), a turn that calls tools and what they
    answer in any order (Gemma 4 writes the turn's text behind the answers), and a text as JSON has it.
    """
    text, turns = _squeezed(prompt), record.before()
    end = begin = 0  # of what was found; where to look, which is the same for tools and the turn that called them
    for at, turn in enumerate(turns):
        if turn.role != "tool":
            begin = end
        ends = [found for way in _ways(turn) if (found := _end(text, way, 0 if turn.role == "system" else begin))]
        if not ends and said(turn):
            raise _unwritten(record, _first_lost(turns, text, at), "says")
        if turn.role != "system":
            end = max(end, min(ends, default=0))
    called = [(_squeezed(name), at) for at, turn in enumerate(turns) for name in called_tools(record, turn)]
    calls = collections.Counter(name for name, _ in called)
    for name, at in dict(reversed(called)).items():
        # The name may stand in what is said as well: there must be one more for each call.
        if text.count(name) < calls[name] + sum(_squeezed(said(turn)).count(name) for turn in turns):
            raise _unwritten(record, at, "calls")


def leaves_thoughts(record: Record, written: str) -> bool:
    """Whether what is written for an answer lacks what it thought; DataError where its end alone would be learnt.

    >>> leaves_thoughts(Record("messages", "2+2?", "", "<think>Twice two.</think>4"), "4<end>")
    True
    """
    text, fields = _squeezed(written), json.loads(record.fields or "{}")
    inside = [part for part in _THINK.split(record.completion.rpartition("</think>")[0]) if part.strip()]
    beside = [part for name in _THOUGHTS if isinstance(part := fields.get(name), str) and part.strip()]
    lacks = not all(_squeezed(part) in text for part in inside)
    if lacks and not said(record.answer()) and "tool_calls" not in fields:
        raise DataError(
            f"{where(record)}the answer is a thought alone, and the model's chat template does not write it: the model "
            "would learn to say nothing. Leave such records out, or write `template: plain` under `data`."
        )
    return lacks or (bool(beside) and not any(_squeezed(part) in text for part in beside))


def find_turn(
    record: Record,
    at: int,
    turn: tuple[Difference, list[int], list[int]],
    whole: tuple[str, list[int]],
    control: ControlTokens,
) -> tuple[int, int]:
    """(begin, end) of the answer that is turn `at` of a record, among the tokens of the whole conversation.

    `turn`: the conversation before the answer and with it, and the tokens of both; `whole`: text and tokens of all.
    Templates may write an answer otherwise once others follow: Phi-3 ends the text after the last one alone, Qwen3
    drops what earlier ones thought. What the whole conversation holds is learnt, but for a token that straddles the
    beginning of the answer. DataError where the answer is not found there.
    """
    (written, before, until), (text, full) = turn, whole
    begin, same = shared_length(before, full), shared_length(until, full)
    if begin < len(before):
        if text.startswith(written.prompt):
            begin += _covering(full[begin:], before[begin:], control.tokenizer)
        elif begin != shared_length(before, until):  # it is not the prompt alone that is written otherwise
            raise _rewritten(record, at)
    if same > begin and (text.startswith(written.full) or control.holds(until[same:])):
        return begin, same
    answer = record.before()[at]
    needed = [control.plain(text) for text in (said(answer), *called_tools(record, answer))]
    added = until[shared_length(before, until) :]
    for dropped in range(1, len(added)):
        kept = added[dropped:]
        if full[begin : begin + len(kept)] == kept and _holds(control.tokenizer.decode(kept), needed):
            return begin, begin + len(kept)
    raise _rewritten(record, at)


def _holds(text: str, needed: Sequence[str]) -> bool:
    return all(part in text for part in needed)


def _covering(full: Sequence[int], end: Sequence[int], tokenizer: Any) -> int:
    """How many tokens of the whole text it takes to cover the end of a prompt, which was tokenised otherwise alone."""
    length = len(tokenizer.decode(end))
    covers = (n for n in range(1, len(full)) if len(tokenizer.decode(full[:n])) >= length)
    return next(covers, len(full))


def gaps(spans: Sequence[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """What is masked where `spans` are learnt: the length before the first, and (begin, end) between them.

    >>> gaps([(3, 5), (9, 12)])
    (3, [(5, 9)])
    """
    between = [(end, begin) for (_, end), (begin, _) in itertools.pairwise(spans)]
    return spans[0][0], between


def _rewritten(record: Record, at: int) -> DataError:
    return DataError(
        f"{where(record)}the model's chat template writes turn {at + 1} otherwise once other turns follow, so that "
        "`learn: all` cannot tell it in the whole conversation. Write `learn: last` under `data`."
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _ways(turn: Turn) -> list[str]:
    """What a turn says, as it is and as JSON strings have it, without white space."""
    text = said(turn)
    return [_squeezed(way) for way in (text, *(json.dumps(text, ensure_ascii=only)[1:-1] for only in (False, True)))]


def _end(text: str, part: str, begin: int) -> int:
    """Where the first `part` of a text ends; 0 if there is none."""
    return found + len(part) if (found := text.find(part, begin)) >= 0 else 0


def _first_lost(turns: Sequence[Turn], text: str, at: int) -> int:
    """Which turn up to `at` a text lacks: a later turn may say the same, and was taken for it."""
    parts = [_squeezed(said(turn)) for turn in turns]
    if parts[at] not in text:
        return at
    lacks = (i for i in range(at) if parts[i] and text.count(parts[i]) < sum(other.count(parts[i]) for other in parts))
    return next(lacks, at)


def _unwritten(record: Record, at: int, does: str) -> DataError:
    turn = record.before()[at]
    remedy = "or choose a model whose template knows tools."
    calls = any("tool_calls" in other.fields for other in (*record.turns, record.answer()))
    if does == "says" and not calls and not record.tools:
        remedy = "choose another model, or write `template: plain` under `data`, which shows the turns without roles."
    return DataError(
        f"{where(record)}the model's chat template does not write what turn {at + 1} ({turn.role}) {does}: the model "
        f"would learn to answer without it. Leave such records out, {remedy}"
    )
