"""YAML 1.2 with the line of every key, so that complaints can point at it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from adaptive_lora.errors import StudyFileError

Location = tuple[str | int, ...]
LARGEST = 1_000_000
_MOST_VALUES, _DEEPEST = 50_000, 50
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")}
"""A timestamp is none of what a study may say; what was expected instead is said with all else."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MOST = 2**63
"""Whole numbers are below it, as in the ledger."""


def read_yaml(text: str, path: Path) -> tuple[Any, dict[Location, int], list[str]]:
    """(data, line of each key, complaints about duplicate keys, aliases and values that no study has).

    Plain values only: tags of any kind are refused, so that nothing can be constructed. Nothing is walked before its
    size is known. StudyFileError where the text is not YAML at all, or more than a study.
    """
    if len(text) > LARGEST:
        raise StudyFileError(str(path), [f"the file has {len(text):,} characters; a study has less than {LARGEST:,}"])
    try:
        if _may_be_large(text):
            _check_size(text, path)
        root = YAML(typ="safe", pure=True).compose(text)
        complaints = list(_structural_complaints(root, ())) if root is not None else []
        if root is None or not all("twice" in c for c in complaints):
            return None, {}, complaints
        reader = YAML(typ="safe", pure=True)
        reader.allow_duplicate_keys = True
        data = reader.constructor.construct_document(root)
    except StudyFileError:
        raise
    except Exception as error:  # the library's own classes, and whatever its constructors meet
        raise StudyFileError(str(path), [_not_yaml(error, text)]) from None
    lines: dict[Location, int] = {}
    _collect_lines(root, (), lines)
    return data, lines, [*complaints, *(placed(lines, at, why) for at, why in _value_complaints(data, ()))]


def _may_be_large(text: str) -> bool:
    """Whether a text may have more values or levels than a study; one that has not need not be parsed to be counted.

    A value takes a character, a level in brackets a bracket, and two levels of a block (a list in a mapping may begin
    at its column) one column before what stands in a line.
    """
    columns = max((len(line) - len(line.lstrip(" -?:")) for line in text.splitlines()), default=0)
    return len(text) >= _MOST_VALUES or text.count("[") + text.count("{") + 2 * columns + 2 > _DEEPEST


def _check_size(text: str, path: Path) -> None:
    """StudyFileError where there is more in a text, or deeper, than in a study. Reads no further than it must: the
    library takes minutes for some thousand brackets."""
    depth = values = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        values += isinstance(event, NodeEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > _DEEPEST:
            raise StudyFileError(str(path), [f"line {line}: {depth} levels deep; a study has a handful of levels"])
        if values > _MOST_VALUES:
            raise StudyFileError(str(path), [f"line {line}: a study has less than {_MOST_VALUES:,} keys and values"])


def _not_yaml(error: Exception, text: str) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{where}not valid YAML: {error.problem or error.context}"
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: not valid YAML: the character {text[error.position]!a} stands in it; remove it"
    if "integer string conversion" in str(error):
        return "a number has thousands of digits; a study has none of these"
    return f"not valid YAML: {error}"


def _structural_complaints(node: Node, at: Location, seen: set[int] | None = None) -> Iterator[str]:
    """Duplicate keys, aliases (one node met twice), tags that would construct something, signs that no text has."""
    seen = set() if seen is None else seen
    line = node.start_mark.line + 1
    if id(node) in seen:
        yield f"line {line}, {dotted(at)}: aliases (*name) are not used in study files; write the value out"
        return
    seen.add(id(node))
    if str(node.tag) not in _TAGS:
        yield f"line {line}, {dotted(at)}: tags ({node.tag}) are not used in study files; write a plain value"
    if isinstance(node, ScalarNode) and (found := _UNPRINTABLE.search(node.value)):
        yield f"line {line}, {dotted(at)}: a text holds the character {found[0]!a}; take it out"
    if isinstance(node, MappingNode):
        yield from _key_complaints(node, at)
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else "?"
            yield from _structural_complaints(value, (*at, name), seen)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield from _structural_complaints(item, (*at, index), seen)


def _key_complaints(node: MappingNode, at: Location) -> Iterator[str]:
    keys: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode) or _UNPRINTABLE.search(key.value):
            yield f"line {line}, {dotted(at)}: a key is plain text on one line"
        elif key.value in keys:
            yield f"line {line}, {dotted((*at, key.value))}: this key stands here twice; keep one"
        else:
            keys.add(key.value)


def _value_complaints(value: Any, at: Location) -> Iterator[tuple[Location, str]]:
    """Numbers that no study has: infinite, none at all, or beyond what the ledger keeps."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _value_complaints(own, (*at, key))
    elif isinstance(value, list):
        for index, own in enumerate(value):
            yield from _value_complaints(own, (*at, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield at, f"a number is finite, got {value}"
    elif isinstance(value, int) and not -_MOST <= value < _MOST:
        yield at, "a whole number, such as a seed, is below 2^63 (9,223,372,036,854,775,808); write a smaller one"


def _collect_lines(node: Node, at: Location, lines: dict[Location, int]) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value) if isinstance(key, ScalarNode) else "?")
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(item, (*at, index), lines)


def with_values(text: str, values: Mapping[Location, str]) -> str:
    """The text with other values in these places, and all else as it is, comments included.

    >>> with_values("a: {b: c}  # why", {("a", "b"): "d e"})
    'a: {b: "d e"}  # why'
    """
    root = YAML(typ="safe", pure=True).compose(text)
    nodes = sorted(
        ((_node(root, at), value) for at, value in values.items()), key=lambda pair: -pair[0].start_mark.index
    )
    for node, value in nodes:  # from the end, so that what comes before stays where it is
        text = text[: node.start_mark.index] + json.dumps(value, ensure_ascii=False) + text[node.end_mark.index :]
    return text


def _node(node: Node, at: Location) -> Node:
    for part in at:
        node = node.value[part] if isinstance(part, int) else next(v for k, v in node.value if k.value == part)
    return node


def dotted(at: Location) -> str:
    """A location as people write it: `arms[2].options.slope`.

    >>> dotted(("arms", 2, "options", "slope"))
    'arms[2].options.slope'
    """
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def placed(lines: Mapping[Location, int], at: Location, message: str) -> str:
    """`line 12, data.train: message`, by the nearest key that stands in the file."""
    line = line_of(lines, at)
    return f"{f'line {line}, ' if line and at else ''}{dotted(at)}: {message}"


def line_of(lines: Mapping[Location, int], at: Location) -> int:
    """The line of a key, or of the nearest part round it that stands in the file; 0 where none does."""
    while at and at not in lines:
        at = at[:-1]
    return lines[at] if at else 0
