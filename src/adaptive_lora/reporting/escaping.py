"""Foreign text made fit to be shown: what cannot be seen is named, what is long is cut, what is active is escaped."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

LONGEST = 400
"""Characters of a foreign text that a page or a table shows."""

_JOINERS = "\u200c\u200d"  # ordinary spelling in Persian, Indic scripts and emoji


def visible(text: str, longest: int = LONGEST) -> str:
    """The text on one line without anything that acts unseen, cut after `longest` characters with its length.

    Control characters become their pictures (ESC, as in terminal colours, is ␛), marks that turn the direction of
    writing or have no width are named, and what no file can hold becomes the replacement character.

    >>> visible("\\x1b[31mred"), visible("a\\u202eb"), visible("x" * 1000, 3)
    ('␛[31mred', 'a[U+202E]b', 'xxx… (1,000 characters)')
    """
    shown = "".join(map(_shown, text[:longest]))
    return shown if len(text) <= longest else f"{shown}… ({len(text):,} characters)"


def visible_lines(text: str, longest: int = LONGEST) -> str:
    """`visible`, but for line ends, which stay: of a text that is shown as it stands.

    >>> visible_lines("a\\r\\nb\\u2028c\\x1b[m"), visible_lines("ab\\ncd", 4)
    ('a\\nb\\nc␛[m', 'ab\\nc… (5 characters)')
    """
    shown = "\n".join(visible(line, longest) for line in text[:longest].splitlines())
    return shown if len(text) <= longest else f"{shown}… ({len(text):,} characters)"


def _shown(character: str) -> str:
    if character.isspace():  # line ends and tabs too
        return " "
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    category = unicodedata.category(character)
    if category in ("Cc", "Cs", "Co", "Cn"):
        return "\ufffd"
    return f"[U+{code:04X}]" if category == "Cf" and character not in _JOINERS else character


_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


def escape_markdown(text: str) -> str:
    """Text for a cell of a Markdown table: no markup, no HTML, no link.

    >>> escape_markdown("a|b *c* <i> https://x")
    'a\\\\|b \\\\*c\\\\* &lt;i&gt; https:&#47;/x'
    """
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", plain).replace("://", ":&#47;/").replace("www.", "www&#46;")


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}", "`": r"\textasciigrave{}", "'": "'{}",
    # After `\\` a bracket or a star would be read as its argument.
    "[": "{[}", "]": "{]}", "*": "{*}",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$",
    "∞": r"$\infty$", "–": "--", "—": "---", "…": r"\ldots{}", "\u00a0": "~",
}  # fmt: skip
_ACCENTS = set("\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u030c")
_LETTERS = set("ßæÆœŒøØåÅ")


def escape_latex(text: str) -> str:
    """Text for LaTeX that nothing in it can command, of characters that pdfLaTeX has.

    Others are named by their code point: pdfLaTeX stops at letters that its fonts lack.

    >>> print(escape_latex("50 % of a_b, −1 \\\\input{x} й"))
    50 \\% of a\\_b, $-$1 \\textbackslash{}input\\{x\\} {[}U+0439{]}
    """
    # Two hyphens would be joined to a dash; true dashes are to be.
    return "".join("-{}" if pair == "--" else _in_latex(pair[0]) for pair in map("".join, pairwise(f"{text} ")))


def _in_latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if " " <= character <= "~" or character in _LETTERS:
        return character
    base, *marks = list(unicodedata.normalize("NFD", character))
    if base.isascii() and base.isalpha() and marks and set(marks) <= _ACCENTS and len(marks) == 1:
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"
