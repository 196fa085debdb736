"""Where the earlier answers of a conversation stand among its tokens, for `learn: all`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from adaptive_lora.data.chat import Difference, called_tools, said, shared_length, where
from adaptive_lora.data.control_tokens import ControlTokens
from adaptive_lora.data.records import Record
from adaptive_lora.errors import DataError


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
