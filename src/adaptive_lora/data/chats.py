"""Conversations in the forms people have them, as turns: `role` and `content`, ShareGPT's `from` and `value`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_lora.data.cells import BadRow, LeftOut, any_text, as_json, is_filled, is_missing, parsed
from adaptive_lora.data.records import Record, Turn

SPEAKERS: Mapping[str, str] = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "claude": "assistant", "bot": "assistant", "function_call": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
}  # fmt: skip
"""What a turn may call its speaker -> its role."""

TEMPLATE_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")
"""What chat templates read of a turn beside its text."""

_WEIGHTS = {"weight": True, "train": True, "trainable": True, "learn": True, "loss": True, "mask": False}
"""Words for whether a turn is learnt -> whether a yes means that it is (OpenAI, Axolotl, LLaMA-Factory, ms-swift)."""
_KNOWN = {"role", "from", "content", "value", "function_call", *TEMPLATE_FIELDS, *_WEIGHTS}
_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
_YES_OR_NO = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}

NO_ASSISTANT, NOT_LEARNT, NO_ANSWER = "no assistant turn", "no turn that may be learnt", "no answer"


def read_turns(value: Any, column: str) -> list[Turn]:
    """A conversation's turns; BadRow with the reason where it is no list of turns, or a speaker is unknown."""
    messages = parsed(value, column)
    shape = f"`{column}` must be a list of {{role, content}} or {{from, value}} objects whose content is text"
    if isinstance(messages, Mapping) and messages and all(isinstance(own, list) for own in messages.values()):
        # The hub's sequences of mappings come as a mapping of lists.
        messages = [dict(zip(messages, own, strict=True)) for own in zip(*messages.values(), strict=False)]
    if not isinstance(messages, list | tuple):
        raise BadRow(f"{shape}, got a {type(messages).__name__}.")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or not _speaker(message):
            raise BadRow(f"{shape}, got {any_text(message)[:60]!r}.")
        turns.append(_turn(message, shape))
    return turns


def turns_in(value: Any, column: str) -> list[Any] | None:
    """The turns that a cell of a question or an answer holds, as a list or as its JSON; None where it is text."""
    if isinstance(value, str):
        if not _TURNS.match(value):
            return None
        value = parsed(value, column)
    is_turns = isinstance(value, list) and value and all(isinstance(v, Mapping) and _speaker(v) for v in value)
    return value if is_turns else None


def read_history(value: Any, column: str) -> list[Turn]:
    """Earlier turns: pairs of question and answer, as Alpaca data have them, or a list of turns."""
    history = parsed(value, column)
    if not isinstance(history, list | tuple):
        raise BadRow(
            f"`{column}` must be a list of [question, answer] pairs or of turns, got {any_text(value)[:60]!r}."
        )
    if history and all(isinstance(turn, Mapping) for turn in history):
        return read_turns(list(history), column)
    turns: list[Turn] = []
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"`{column}` must be a list of [question, answer] pairs, got {any_text(pair)[:60]!r}.")
        for role, said in zip(("user", "assistant"), pair, strict=True):
            turns += [Turn(role, any_text(said))] if is_filled(said) else []
    return turns


def chat_record(turns: Sequence[Turn], tools: str = "") -> Record:
    """The last assistant turn that may be learnt is the completion, the turns before it are the prompt.

    What follows it is left away. LeftOut where there is no such turn, or nothing is written there.
    """
    spoken = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    learnt = [i for i in spoken if turns[i].learnt]
    if not learnt:
        raise LeftOut(NOT_LEARNT if spoken else NO_ASSISTANT)
    before, answer = list(turns[: learnt[-1]]), turns[learnt[-1]]
    asked = before.pop().content if before and before[-1].role == "user" and not before[-1].fields else ""
    return Record("messages", asked, "", answer.content, tuple(before), answer.fields, tools)


def read_tools(value: Any, column: str) -> str:
    """A list of tools as JSON; empty where there is none."""
    tools = parsed(value, column) if is_filled(value) else []
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, list | tuple):
        raise BadRow(f"`{column}` must be a list of JSON schemas, got a {type(tools).__name__}.")
    found = [parsed(tool, column) for tool in tools]
    for tool in found:
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", {}), Mapping):
            raise BadRow(f"each of `{column}` must be a JSON schema with a name, got {any_text(tool)[:60]!r}.")
    return as_json(found) if found else ""


def missing_contents(value: Any) -> int:
    """Turns of a conversation whose text is null and that call no tool."""
    turns = value if isinstance(value, list | tuple) else []
    return sum(
        is_missing(_said(turn)) and not is_filled(turn.get("tool_calls")) for turn in turns if isinstance(turn, Mapping)
    )


def unknown_fields(value: Any) -> set[str]:
    """Names of filled fields of a conversation's turns that nothing here reads."""
    turns = value if isinstance(value, list | tuple) else []
    return {
        str(key)
        for turn in turns
        if isinstance(turn, Mapping)
        for key, found in turn.items()
        if key not in _KNOWN and is_filled(found)
    }


def _turn(message: Mapping[str, Any], shape: str) -> Turn:
    speaker = _speaker(message)
    role = SPEAKERS.get(speaker.strip().lower())
    if role is None:
        known = ", ".join(SPEAKERS)
        raise BadRow(f"a turn's speaker is {speaker!r}, which is unknown. Name it one of {known}.")
    content = _content(_said(message), shape)
    calls = _tool_calls(message)
    if speaker == "function_call" and not calls and (calls := _call_in_text(content)):
        content = ""
    fields = {key: message[key] for key in TEMPLATE_FIELDS[1:] if is_filled(message.get(key))}
    if calls:
        fields = {"tool_calls": calls, **fields}
    return Turn(role, content, _is_learnt(message), as_json(fields) if fields else "")


def _speaker(message: Mapping[str, Any]) -> str:
    """What is filled of `role` and `from`: files of both kinds, merged, have both keys in every turn."""
    return str(message["role"] if is_filled(message.get("role")) else message.get("from") or "")


def _said(message: Mapping[str, Any]) -> Any:
    content, value = message.get("content"), message.get("value")
    return value if is_missing(content) or (not is_filled(content) and is_filled(value)) else content


def _content(content: Any, shape: str) -> str:
    """Text, or the text parts of a list of parts; an image or the like is an error."""
    if is_missing(content):
        return ""
    if isinstance(content, Mapping) and isinstance(content.get("text"), str):
        return str(content["text"])
    if isinstance(content, list | tuple):
        return "".join(_content(part, shape) for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{shape}, got {any_text(content)[:60]!r}.")
    return content


def _is_learnt(message: Mapping[str, Any]) -> bool:
    learnt = True
    for key, yes_is_learnt in _WEIGHTS.items():
        value = message.get(key)
        if is_missing(value):
            continue
        said = _YES_OR_NO.get(str(int(value) if value in (0, 1) else value).lower())
        if said is None:
            raise BadRow(
                f"`{key}` of a turn is {value!r}. Write 1 (learnt) or 0 (context only); there is nothing between."
            )
        learnt = learnt and said == yes_is_learnt
    return learnt


def _tool_calls(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls")
    if is_filled(legacy := message.get("function_call")) and not is_filled(calls):
        calls = [{"type": "function", "function": parsed(legacy, "function_call")}]
    calls = parsed(calls, "tool_calls") if is_filled(calls) else []
    if not isinstance(calls, list | tuple):
        raise BadRow(f"`tool_calls` of a turn must be a list, got a {type(calls).__name__}.")
    for call in calls:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not is_filled(inner.get("name")):
            raise BadRow(
                'each of `tool_calls` must be {"function": {"name": ..., "arguments": {...}}}, got '
                f"{any_text(call)[:60]!r}."
            )
    return [_with_objects(call) for call in calls]


def _with_objects(call: Any) -> Any:
    """A call whose arguments are an object, as chat templates expect, where they are an object's JSON."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(inner := call.get("function"), Mapping):
        return {**call, "function": _with_objects(inner)}
    if not isinstance(arguments := call.get("arguments"), str):
        return dict(call)
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return dict(call)
    return {**call, "arguments": found} if isinstance(found, dict) else dict(call)


def _call_in_text(content: str) -> list[Any]:
    """The calls that a ShareGPT turn of the speaker `function_call` writes as its text."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return []
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return []
    return [{"type": "function", "function": _with_objects(call)} for call in calls]
