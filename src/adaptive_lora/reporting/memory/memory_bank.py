"""The memory bank: seven short texts in a study folder, from which the next person goes on with the research.

Each file has a block that is made from the ledger, between two markers; everything else in it belongs to people and is
never touched. The same ledger gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.memory.blocks import markers, put_block
from adaptive_lora.reporting.memory.current import active_context, progress
from adaptive_lora.reporting.memory.decided import decision_log, product_context, project_brief
from adaptive_lora.reporting.memory.material import system_patterns, tech_context
from adaptive_lora.reporting.memory.standing import Standing, standing_of
from adaptive_lora.study.folder import StudyPaths

_NOTES = "Yours, as is everything outside the markers."


@dataclass(frozen=True)
class Part:
    """A file of the bank."""

    name: str
    """Of its block too."""
    title: str
    text: Callable[[Findings, Standing], str]


PARTS = (
    Part("projectbrief", "Project brief", project_brief),
    Part("productContext", "Product context", product_context),
    Part("activeContext", "Active context", active_context),
    Part("systemPatterns", "System patterns", system_patterns),
    Part("techContext", "Tech context", tech_context),
    Part("progress", "Progress", progress),
    Part("decisionLog", "Decision log", decision_log),
)
"""In the order of reading."""
SHOWN = {part.name: part.title for part in PARTS if part.name in ("activeContext", "progress")}
"""What a person who comes back asks first."""


def memory_texts(found: Findings, in_use: bool = False) -> dict[str, str]:
    """Name of a block -> its Markdown; `in_use`: whether a process works on the study now."""
    standing = standing_of(found, in_use)
    return {part.name: part.text(found, standing) for part in PARTS}


def write_memory_bank(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Puts the texts into the files of a study folder, and says which of them changed.

    StudyFolderError, and nothing written, where a file is not the bank's to write or its markers do not pair.
    """
    place = StudyPaths(folder).memory_bank
    planned = {}
    for part in PARTS:
        path = place / f"{part.name}.md"
        before = _content(path)
        after = _with_block(path, before, part, texts[part.name])
        if after != before:
            planned[path] = after
    for path, content in planned.items():
        write_atomically(path, content)
    return list(planned)


def export_memory_bank(folder: Path, to: Path) -> list[Path]:
    """Copies the memory bank of a study folder, human text and all, into `memory-bank` of another folder."""
    written = []
    for part in PARTS:
        if (content := _content(StudyPaths(folder).memory_bank / f"{part.name}.md")) is not None:
            path = StudyPaths(to).memory_bank / f"{part.name}.md"
            write_atomically(path, content)
            written.append(path)
    return written


def _content(path: Path) -> bytes | None:
    """What is there; nothing where no file is."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StudyFolderError(f"{path} is no plain file; move it away, and the memory bank makes one.")
    if not os.path.lexists(path):
        return None
    content = path.read_bytes()
    if b"\0" in content:
        raise StudyFolderError(f"{path} is not in UTF-8 (perhaps UTF-16); save it as UTF-8 and run this again.")
    return content


def _with_block(path: Path, before: bytes | None, part: Part, text: str) -> bytes:
    # Bytes that are no UTF-8 pass through as they are.
    old = f"# {part.title}\n" if before is None else before.decode("utf-8", "surrogateescape")
    try:
        new = put_block(old, part.name, text)
    except ValueError as error:
        begin, end = markers(part.name)
        raise StudyFolderError(
            f"{path} has torn markers: {error}. Write `{begin}` and `{end}` once each, in this order and on lines of "
            "their own, around the text that may be replaced; or delete both, and the block comes back at the end of "
            "the file. No file was changed."
        ) from None
    return (new + (f"\n## Notes\n\n{_NOTES}\n" if before is None else "")).encode("utf-8", "surrogateescape")
