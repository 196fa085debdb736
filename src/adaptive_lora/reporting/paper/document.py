"""A document as a value: sections of paragraphs, equations, lists, tables and figures, before any form of writing.

The text it is read from knows, beside plain words: `$math$`, `` `code` ``, `*emphasis*`, `!!missing!!`, `[@key; @key]`
and `@key` for works, `[[table:name]]` and `[[figure:name]]`; a line of its own `# heading`, `## heading`, `- item`,
`::table name`, `::figure name` (lines below it are its caption, in place of its usual one), and `$$` around an
equation. What stands between `LITERAL` marks, as all facts do, is words alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LITERAL = ("\x02", "\x03")
"""Around words in which nothing is markup."""


@dataclass(frozen=True)
class Span:
    """A run of words of one nature."""

    kind: str
    """text, math, code, emphasis, missing, cite, citetext, table or figure."""
    content: str
    """For citations: keys, separated by commas."""


@dataclass(frozen=True)
class Block:
    """A part of a section; `items` are those of a list, one paragraph has one, a figure its own caption."""

    kind: str
    """heading, subheading, paragraph, list, equation, table or figure."""
    items: tuple[tuple[Span, ...], ...] = ()
    content: str = ""
    """Of an equation its mathematics, of a table or figure its name."""


_INLINE = re.compile(
    r"\x02(?P<text>[^\x03]*)\x03|\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|\*(?P<emphasis>[^*\s][^*]*)\*|!!(?P<missing>.+?)!!"
    r"|\[(?P<cite>@[\w-]+(?:; @[\w-]+)*)\]|(?<!\w)@(?P<citetext>[\w-]+)"
    r"|\[\[(?:table:(?P<table>[\w-]+)|figure:(?P<figure>[\w-]+))\]\]"
)


def read_blocks(text: str) -> list[Block]:
    """The blocks of a text; parts are separated by empty lines."""
    parts = re.split(r"\n\s*\n", text)
    return [block for part in parts if part.strip() for block in _block(part.strip())]


def _block(part: str) -> Iterator[Block]:
    if part.startswith("$$"):
        yield Block("equation", content=_without_literals(part.strip("$").strip()))
        return
    lines = part.split("\n")
    if lines[0].startswith(("# ", "## ")):
        level, _, words = lines[0].partition(" ")
        yield Block("heading" if level == "#" else "subheading", (read_spans(words),))
        lines = lines[1:]
    elif found := re.fullmatch(r"::(table|figure) (\S+)", _without_literals(lines[0])):
        caption = "\n".join(lines[1:])
        yield Block(found[1], (read_spans(caption),) if caption else (), found[2])
        return
    if lines and lines[0].startswith("- "):
        items = re.split(r"(?:^|\n)- ", "\n".join(lines))[1:]
        yield Block("list", tuple(read_spans(item) for item in items))
    elif lines:
        yield Block("paragraph", (read_spans("\n".join(lines)),))


def read_spans(text: str) -> tuple[Span, ...]:
    """The spans of a paragraph; line ends are spaces.

    >>> [span.kind for span in read_spans("*A* of $x$ as in @hu2022lora and [@hu2022lora; @holm1979simple].")]
    ['emphasis', 'text', 'math', 'text', 'citetext', 'text', 'cite', 'text']
    """
    flat, spans, end = re.sub(r"\s+", " ", text).strip(), [], 0
    for found in _INLINE.finditer(flat):
        kind, content = str(found.lastgroup), found[str(found.lastgroup)]
        if kind == "cite":
            content = content.replace("@", "").replace("; ", ",")
        spans += [Span("text", flat[end : found.start()]), Span(kind, _without_literals(content))]
        end = found.end()
    return tuple(span for span in (*spans, Span("text", flat[end:])) if span.content)


def _without_literals(text: str) -> str:
    return text.replace(LITERAL[0], "").replace(LITERAL[1], "")


def words_of(blocks: Sequence[Block]) -> int:
    """Words of prose: paragraphs and lists, citations and mathematics counted as one each."""
    spans = [span for block in blocks if block.kind in ("paragraph", "list") for item in block.items for span in item]
    return sum(1 if span.kind in ("math", "cite") else len(span.content.split()) for span in spans)


def referred(blocks: Sequence[Block], kind: str) -> list[str]:
    """Names of the tables or figures (`kind`) that sentences refer to, each once."""
    spans = [span for block in blocks for item in block.items for span in item if span.kind == kind]
    return list(dict.fromkeys(span.content for span in spans))


def cited(blocks: Sequence[Block]) -> list[str]:
    """Keys of works in the order they are first cited."""
    spans = [span for block in blocks for item in block.items for span in item if span.kind in ("cite", "citetext")]
    return list(dict.fromkeys(key for span in spans for key in span.content.split(",")))
