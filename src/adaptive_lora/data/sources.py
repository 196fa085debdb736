"""Where records come from: the hub or a local file, in any of the forms people have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptive_lora.data import chats, choices
from adaptive_lora.data.cells import BadRow, LeftOut, any_text, is_filled, is_missing, parsed, plain, required_text
from adaptive_lora.data.forms import (
    FORMS_IN_WORDS,
    Form,
    is_harmless,
    recognise,
    sort_columns,
    with_wanted,
    without_repeats,
)
from adaptive_lora.data.readers import ENDINGS, READERS, read_file, read_hub
from adaptive_lora.data.records import Reading, Record, RecordSet, Turn
from adaptive_lora.errors import DataError
from adaptive_lora.files import expanded

LICENCES = {
    "tatsu-lab/alpaca": "CC BY-NC 4.0",
    "yahma/alpaca-cleaned": "CC BY-NC 4.0",
    "openai/gsm8k": "MIT",
}
"""What is known of a source's licence, for reports."""

SUMMARY_PROMPT = "{text}\n\nTL;DR: "
"""How a text asks for its summary (Radford et al. 2019, section 3.6)."""


def load_records(source: str) -> RecordSet:
    """Records of a local file (`.json`, `.jsonl`, `.csv`, `.parquet`) or a hub data set (`owner/name`,
    or `owner/name:configuration` where it has several).

    Raises DataError, naming the file and the remedy, for a source that is missing, corrupt, empty or of
    no known form.
    """
    if check_source(source):
        return from_dicts(read_file(expanded(source)), name=source)
    rows, revision = read_hub(source)
    return from_dicts(rows, name=source, revision=revision)


def from_dicts(rows: Sequence[Any], name: str, revision: str | None = None, exact_answers: bool = False) -> RecordSet:
    """Records from parsed rows, their form recognised from the columns of all of them.

    Every column is used, harmless or named in `RecordSet.reading.unused`. Rows without an answer are left out and
    counted there. Raises DataError, naming the row, for what cannot be read.

    >>> found = from_dicts([{"question": "Which tree?", "answer": "An oak.", "mood": "calm"}], "trees")
    >>> found.form, found.records[0].completion, found.reading.unused
    ('question-answer', 'An oak.', ('mood',))
    """
    if not rows:
        raise DataError(f"{name} holds no records; expected {FORMS_IN_WORDS}.")
    table = [_as_row(row, i, name) for i, row in enumerate(rows)]
    form = _form(table, name)
    records: list[Record] = []
    left_out: Counter[str] = Counter()
    texts: list[str | None] = []
    for index, row in enumerate(table):
        try:
            record = replace(_record(row, form), row=index)
            texts.append(_sound(record))
            records.append(record)
        except LeftOut as reason:
            left_out[str(reason)] += 1
            texts.append(None)
        except BadRow as error:
            raise DataError(f"{name}, record {index + 1}: {error}") from None
    if not records:
        counts = ", ".join(f"{count:,} have {reason}" for reason, count in left_out.items())
        raise DataError(f"{name}: none of its {len(rows):,} records can be learnt: {counts} in `{form.answer}`.")
    harmless, unused = sort_columns(form, table, texts, name)
    assumed = () if form.counting.is_told else (choices.COUNTED_FROM_0,)
    spare = (*unused, *_unused_fields(table, form))
    reading = Reading(len(rows), dict(left_out), _missing(table, form), form.used, harmless, spare, assumed)
    return RecordSet(
        name, form.name, tuple(records), revision, LICENCES.get(name.partition(":")[0]), exact_answers, reading
    )


def check_source(source: str) -> bool:
    """Whether a source is a local file, which then exists and is of a known kind, and not a hub data set.

    Reads nothing. Raises DataError for a file that is missing, empty or of another kind.
    """
    path = expanded(source)
    if path.is_dir():
        raise DataError(f"{source} is a folder; name one {ENDINGS} file in it.")
    looks_local = path.suffix.lower() in READERS or source.count("/") != 1 or source.startswith((".", "/", "~"))
    if not path.exists():
        if not looks_local:
            return False
        raise DataError(f"{path} does not exist. Give a {ENDINGS} file, or a hub data set owner/name.")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: files ending in {path.suffix or 'nothing'} are not read; use {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected {FORMS_IN_WORDS}.")
    return True


def _form(table: Sequence[Mapping[str, Any]], name: str) -> Form:
    """The form of a source with what only all of its rows together tell."""
    form = without_repeats(recognise(table, name), table, name)
    form = with_wanted(form, table)
    if form.choices:
        form = replace(form, counting=choices.counting_of(table, form.choices, form.answer))
    return form


def _as_row(row: Any, index: int, name: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(
            f"{name}, record {index + 1}: expected an object, got a {type(row).__name__}; records have "
            f"{FORMS_IN_WORDS}."
        )
    return {str(column): plain(value) for column, value in row.items()}


def _sound(record: Record) -> str:
    """All words of a record; BadRow where a tokenizer could not read them."""
    words = "\n".join(record.texts())
    try:
        "".join((words, record.fields, record.tools, *(turn.fields for turn in record.turns))).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise BadRow(
            f"its text holds half a character (\\u{ord(half):04x}). Write both halves, as \\ud83d\\ude00, or remove it."
        ) from None
    return words


def _record(row: Mapping[str, Any], form: Form) -> Record:
    if form.answer not in row:
        raise BadRow(f"no `{form.answer}`, which the others have ({form.name} form).")
    if not form.choices and is_missing(row[form.answer]):
        raise LeftOut(chats.NO_ANSWER)
    if form.wanted and str(row.get(form.wanted)).lower() == "false":
        raise LeftOut(f"not wanted (`{form.wanted}` is false)")
    if form.name == "text":
        return Record("text", "", "", required_text(row, form.answer))
    tools = chats.read_tools(row.get(form.tools), form.tools)
    before = _before(row, form)
    if not form.question:
        return _of_turns(before, chats.read_turns(row[form.answer], form.answer), row[form.answer], tools)
    parts = [any_text(row.get(column)) for column in form.context]
    asked, said = (chats.turns_in(row.get(column), column) for column in (form.question, form.answer))
    if not form.choices and (asked or said):  # prompt and completion may each be turns, as TRL has them
        if not asked:
            question = required_text(row, form.question)
            first = next((turn for turn in chats.read_turns(said, form.answer) if turn.role == "user"), None)
            # Preferences have the question in their turns too.
            asked = [] if first and first.content == question else [{"role": "user", "content": question}]
        said = said or [{"role": "assistant", "content": _answer(row, form)}]
        record = _of_turns(before, chats.read_turns([*asked, *said], form.question), said, tools)
        return _with_context(record, "\n".join(part for part in parts if part), form)
    prompt = required_text(row, form.question)
    prompt = required_text(row, form.question)
    if any(is_filled(row.get(column)) for column in form.choices):
        labels, texts = choices.read_choices(row, form.choices)
        completion = choices.right_choice(row[form.answer], form.answer, labels, texts, form.counting)
        parts.append(choices.lettered(texts))
    else:
        completion = _answer(row, form)
    context = "\n".join(part for part in parts if part)
    if is_missing(row[form.question]) and not context:
        raise LeftOut("no question")
    if form.name == "summary":
        prompt = SUMMARY_PROMPT.replace("{text}", prompt)
    return Record(form.name, prompt, context, completion, before, tools=tools)


def _with_context(record: Record, context: str, form: Form) -> Record:
    if context and not record.prompt:
        columns = ", ".join(f"`{column}`" for column in form.context)
        raise BadRow(f"no user turn stands right before its answer that {columns} could belong to. Add one.")
    return replace(record, context=context)


def _of_turns(before: tuple[Turn, ...], turns: Sequence[Turn], messages: Any, tools: str) -> Record:
    if systems := [turn.content for turn in turns if turn.role == "system"]:
        if other := [turn.content for turn in before if turn.role == "system" and turn.content not in systems]:
            raise BadRow(f"its system turn and its own column of one differ ({other[0][:60]!r}); keep one of them.")
        before = tuple(turn for turn in before if turn.role != "system")
    record = chats.chat_record([*before, *turns], tools)
    if record.is_empty and chats.missing_contents(messages):
        raise LeftOut(chats.NO_ANSWER)
    return record


def _before(row: Mapping[str, Any], form: Form) -> tuple[Turn, ...]:
    """A system turn and earlier turns that have columns of their own."""
    system = any_text(row.get(form.system))
    turns = [Turn("system", system)] if system else []
    if is_filled(row.get(form.history)):
        turns += chats.read_history(row[form.history], form.history)
    return tuple(turns)


def _answer(row: Mapping[str, Any], form: Form) -> str:
    """An answer's text; the first where there are several, as in SQuAD."""
    value = row[form.answer]
    if isinstance(value, Mapping) and {"text", "value"} & value.keys():
        value = value.get("text", value.get("value"))
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    if is_missing(value):
        raise LeftOut(chats.NO_ANSWER)
    return required_text({form.answer: value}, form.answer)


def _missing(rows: Sequence[Mapping[str, Any]], form: Form) -> dict[str, int]:
    """Nulls and NaN by column, of those that have something elsewhere; a chat's turns count too."""
    found = {column: sum(column in row and is_missing(row[column]) for row in rows) for column in form.used}
    if form.name == "messages" and not form.question:
        found[f"{form.answer}.content"] = sum(chats.missing_contents(_turns(row, form)) for row in rows)
    return {column: count for column, count in found.items() if count > 0}


def _unused_fields(rows: Sequence[Mapping[str, Any]], form: Form) -> tuple[str, ...]:
    """Fields of turns that nothing reads, as `messages.mood`."""
    if form.question or form.name != "messages":
        return ()
    found = {field for row in rows for field in chats.unknown_fields(_turns(row, form))}
    return tuple(sorted(f"{form.answer}.{field}" for field in found if not is_harmless(field)))


def _turns(row: Mapping[str, Any], form: Form) -> Any:
    value = row.get(form.answer)
    return parsed(value, form.answer) if is_filled(value) else []
