"""Blocks of machine text in files that people write in too.

A block stands between two markers, HTML comments alone on their lines. Only what is between them is ever replaced.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

_MARKER = re.compile(
    # Line ends of both kinds; a byte order mark may stand before the first line.
    r"(?<![^\r\n\ufeff])[ \t]*(<!--[ \t]*adaptive-lora:[ \t]*(begin|end)[ \t]+([\w.-]+)[ \t]*-->)[ \t]*(?![^\r\n])"
)
_LINE_END = re.compile(r"[ \t]*(\r\n|\n)")


def markers(name: str) -> tuple[str, str]:
    """What stands above and below a block.

    >>> markers("progress")[0]
    '<!-- adaptive-lora: begin progress -->'
    """
    return f"<!-- adaptive-lora: begin {name} -->", f"<!-- adaptive-lora: end {name} -->"


def put_block(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`; at its end where it has none of them.

    Everything else stays as it is, and the block gets the line ends of the file. ValueError says why where the markers
    do not pair.

    >>> put_block("Mine.", "x", "Old.").splitlines()
    ['Mine.', '', '<!-- adaptive-lora: begin x -->', '', 'Old.', '', '<!-- adaptive-lora: end x -->']
    >>> put_block(put_block("Mine.", "x", "Old."), "x", "New.") == put_block("Mine.", "x", "New.")
    True
    """
    if _MARKER.search(content):
        raise ValueError(f"The text of block {name!r} holds a marker itself.")
    own = [pair for pair in _pairs(list(_MARKER.finditer(text))) if pair[0].group(3) == name]
    if len(own) > 1:
        raise ValueError(f"`{markers(name)[0]}` stands there twice")
    if not own:
        end = "\r\n" if re.match(r"[^\n]*\r\n", text) else "\n"
        gap = "" if not text or text.endswith(2 * end) else end if text.endswith(end) else 2 * end
        begin, close = markers(name)
        return f"{text}{gap}{begin}{_between(content, end)}{close}{end}"
    opening, closing = own[0]
    found = _LINE_END.match(text, opening.end(1))
    between = _between(content, found.group(1) if found else "\n")
    return text[: opening.end(1)] + between + text[closing.start(1) :]


def _between(content: str, end: str) -> str:
    lines = ["", "", *content.strip("\n").split("\n"), "", ""]
    return end.join(lines)


def _pairs(found: Sequence[re.Match[str]]) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """A beginning and its end, one after the other; anything else was torn by an edit."""
    for opening, closing in itertools.zip_longest(found[::2], found[1::2]):
        if opening.group(2) == "end":
            raise ValueError(f"`{opening.group(1)}` has no beginning above it")
        if closing is None or closing.group(2, 3) != ("end", opening.group(3)):
            raise ValueError(f"`{opening.group(1)}` has no end of its own before the next marker")
        yield opening, closing
