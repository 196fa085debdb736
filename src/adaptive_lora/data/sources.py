"""Where records come from: the hub or a local JSON, JSONL or Parquet file, in one of five forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.data.records import Record, RecordSet, Turn
from adaptive_lora.errors import DataError

FORMS: Mapping[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "messages": ("messages",),
    "text": ("text",),
}
"""Form -> the keys that every record of it has (`input` is optional in Alpaca)."""

LICENCES = {
    "tatsu-lab/alpaca": "CC BY-NC 4.0",
    "yahma/alpaca-cleaned": "CC BY-NC 4.0",
    "openai/gsm8k": "MIT",
}
"""What is known of a source's licence, for reports."""


def load_records(source: str) -> RecordSet:
    """Records of a local file (`.json`, `.jsonl`, `.parquet`) or a hub data set (`owner/name`,
    or `owner/name:configuration` where it has several).

    Raises DataError, naming the file and the remedy, for a source that is missing, corrupt, empty or of
    no known form.
    """
    if check_source(source):
        path = Path(source).expanduser()
        return from_dicts(READERS[path.suffix](path), name=source)
    rows, revision = _read_hub(source)
    return from_dicts(rows, name=source, revision=revision)


def from_dicts(rows: Sequence[Any], name: str, revision: str | None = None, exact_answers: bool = False) -> RecordSet:
    """Records from parsed rows, their form recognised from the first one."""
    if not rows:
        raise DataError(f"{name} holds no records; expected a list of {_forms_in_words()}.")
    form = recognise(rows[0], name)
    records = tuple(_record(row, form, i, name) for i, row in enumerate(rows))
    return RecordSet(name, form, records, revision, LICENCES.get(name.partition(":")[0]), exact_answers)


def recognise(row: Any, name: str) -> str:
    """The form of a row by its keys, or DataError with what was found and what would do."""
    if isinstance(row, Mapping):
        for form, keys in FORMS.items():
            if all(key in row for key in keys):
                return form
        found = ", ".join(f"`{key}`" for key in list(row)[:8]) or "no keys"
    else:
        found = f"a {type(row).__name__}"
    raise DataError(f"{name}: the first record has {found}; expected {_forms_in_words()}.")


def check_source(source: str) -> bool:
    """Whether a source is a local file, which then exists and is of a known kind, and not a hub data set.

    Reads nothing. Raises DataError for a file that is missing, empty or of another kind.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{source} is a folder; name one .json, .jsonl or .parquet file in it.")
    looks_local = path.suffix in READERS or source.count("/") != 1 or source.startswith((".", "/", "~"))
    if not path.exists():
        if not looks_local:
            return False
        raise DataError(f"{path} does not exist. Give a .json, .jsonl or .parquet file, or a hub data set owner/name.")
    if path.suffix not in READERS:
        raise DataError(f"{path}: files ending in {path.suffix or 'nothing'} are not read; use {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected {_forms_in_words()}.")
    return True


def _read_json(path: Path) -> Sequence[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        # People name JSON lines .json; only a file whose first line parses alone is taken as such.
        first = path.read_text(encoding="utf-8-sig").lstrip().split("\n", 1)[0]
        if first.startswith("{") and _parses(first):
            return _read_jsonl(path)
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); the file may be cut short. Fetch it again."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if isinstance(rows, Mapping):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(lists) == 1 else [rows]
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; expected a list of records.")
    return rows


def _read_jsonl(path: Path) -> Sequence[Any]:
    rows, number = [], 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    rows.append(json.loads(line))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON ({error.msg}); the file may be cut short. Fetch it again."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    return rows


def _read_parquet(path: Path) -> Sequence[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None


READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _read_hub(source: str) -> tuple[Sequence[Any], str | None]:
    import datasets
    import huggingface_hub

    name, _, configuration = source.partition(":")
    try:
        rows = list(datasets.load_dataset(name, configuration or None, split="train"))
    except Exception as error:
        # The hub libraries raise a dozen unrelated classes for "cannot be had".
        reason = " ".join(str(error).splitlines()[:2]).rstrip(".") or "no reason given"
        raise DataError(
            f"The data set {source} could not be loaded from the hub: {type(error).__name__}: {reason}. Check the "
            "name (owner/name, or owner/name:configuration where it has several) and the network "
            "(`adaptive-lora doctor`), or give a local .json, .jsonl or .parquet file."
        ) from None
    try:
        return rows, huggingface_hub.dataset_info(name).sha
    except Exception:
        return rows, None  # read from the cache while offline; the content's own fingerprint still tells


def _record(row: Any, form: str, index: int, name: str) -> Record:
    if not isinstance(row, Mapping):
        raise DataError(f"{name}, record {index}: expected an object, got a {type(row).__name__}.")
    missing = [key for key in FORMS[form] if key not in row]
    if missing:
        raise DataError(f"{name}, record {index}: no `{missing[0]}`, which the first record ({form} form) has.")
    if form == "messages":
        return _chat_record(row["messages"], index, name)
    if form == "text":
        return Record(form, "", "", _text(row, "text", index, name))
    prompt_key, completion_key = FORMS[form]
    if form == "prompt-completion" and isinstance(row["prompt"], list):
        return _chat_record([*row["prompt"], *row["completion"]], index, name)
    context = _text(row, "input", index, name) if row.get("input") else ""
    return Record(
        form,
        _text(row, prompt_key, index, name),
        context if form == "alpaca" else "",
        _text(row, completion_key, index, name),
    )


def _chat_record(messages: Any, index: int, name: str) -> Record:
    """The last assistant turn is the completion; all turns before it are the prompt."""
    try:
        turns = [Turn(str(turn["role"]), _content(turn["content"])) for turn in messages]
    except (TypeError, KeyError):
        raise DataError(
            f"{name}, record {index}: `messages` must be a list of {{role, content}} objects whose content is text."
        ) from None
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise DataError(f"{name}, record {index}: `messages` has no assistant turn to learn from.")
    before, answer = turns[: answers[-1]], turns[answers[-1]]
    asked = before.pop().content if before and before[-1].role == "user" else ""
    return Record("messages", asked, "", answer.content, tuple(before))


def _content(content: Any) -> str:
    """Text, or the text parts of a list of parts; TypeError for anything else (an image, a tool call)."""
    if isinstance(content, list):
        return "".join(_content(part["text"]) for part in content)
    if not isinstance(content, str):
        raise TypeError
    return content


def _text(row: Mapping[str, Any], key: str, index: int, name: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{name}, record {index}: `{key}` must be text, got a {type(value).__name__}.")
    return value


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _forms_in_words() -> str:
    return " or ".join(f"{form} records ({' + '.join(f'`{k}`' for k in keys)})" for form, keys in FORMS.items())
