"""YAML 1.2 with the line of every key, so that complaints can point at it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from adaptive_lora.errors import StudyFileError

Location = tuple[str | int, ...]
_LARGEST = 1_000_000


def read_yaml(text: str, path: Path) -> tuple[Any, dict[Location, int], list[str]]:
    """(data, line of each key, complaints about duplicate keys and aliases).

    Plain values only: tags of any kind are refused, so that nothing can be constructed. StudyFileError
    where the text is not YAML at all.
    """
    if len(text) > _LARGEST:
        raise StudyFileError(str(path), [f"the file has {len(text):,} characters; a study has less than {_LARGEST:,}"])
    try:
        root = YAML(typ="safe", pure=True).compose(text)
        complaints = list(_structural_complaints(root, ())) if root is not None else []
        reader = YAML(typ="safe", pure=True)
        reader.allow_duplicate_keys = True
        data = reader.load(text) if not complaints or all("twice" in c for c in complaints) else None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise StudyFileError(str(path), [f"{where}not valid YAML: {error.problem or error.context}"]) from None
    lines: dict[Location, int] = {}
    if root is not None:
        _collect_lines(root, (), lines)
    return data, lines, complaints


def _structural_complaints(node: Node, at: Location, seen: set[int] | None = None) -> Iterator[str]:
    """Duplicate keys, aliases (one node met twice) and tags that would construct something."""
    seen = set() if seen is None else seen
    line = node.start_mark.line + 1
    if id(node) in seen:
        yield f"line {line}, {dotted(at)}: aliases (*name) are not used in study files; write the value out"
        return
    seen.add(id(node))
    if not str(node.tag).startswith("tag:yaml.org,2002:"):
        yield f"line {line}, {dotted(at)}: tags ({node.tag}) are not used in study files; write a plain value"
    if isinstance(node, MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, ScalarNode) else "?"
            if name in keys:
                yield f"line {key.start_mark.line + 1}, {dotted((*at, name))}: this key stands here twice; keep one"
            keys.add(name)
            yield from _structural_complaints(value, (*at, name), seen)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield from _structural_complaints(item, (*at, index), seen)


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
