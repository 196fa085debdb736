"""The memory bank: seven short texts in a study folder, from which the next person goes on with the research.

Each file has a block that is made from the ledger, between two markers; everything else in it belongs to people and is
never touched. The same ledger gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.memory.blocks import markers, put_block
from adaptive_lora.reporting.memory.context import memory_context
from adaptive_lora.reporting.memory.rendering import render
from adaptive_lora.study.folder import StudyPaths

TITLES: Mapping[str, str] = {
    "projectbrief": "Project brief",
    "productContext": "Product context",
    "activeContext": "Active context",
    "systemPatterns": "System patterns",
    "techContext": "Tech context",
    "progress": "Progress",
    "decisionLog": "Decision log",
}
"""Name of a file, its block and its template -> heading, in the order of reading."""
SHOWN = ("activeContext", "progress")
"""What a person who comes back asks first."""
_NOTES = "\n## Notes\n\nYours, as is everything outside the markers.\n"


def memory_texts(found: Findings, in_use: bool = False) -> dict[str, str]:
    """Name of a block -> its Markdown; `in_use`: whether a process works on the study now."""
    context = memory_context(found, found.status(in_use))
    return {name: render(name, context) for name in TITLES}


def write_memory_bank(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Puts the texts into the files of a study folder, and says which of them changed.

    StudyFolderError, and nothing written, where a file is not the bank's to write or its markers do not pair.
    """
    planned = {}
    for name in TITLES:
        path = StudyPaths(folder).memory_bank / f"{name}.md"
        before = _content(path)
        after = _with_block(path, before, texts[name])
        if after != before:
            planned[path] = after
    for path, content in planned.items():
        write_atomically(path, content)
    return list(planned)


def export_memory_bank(folder: Path, to: Path) -> list[Path]:
    """Copies the memory bank of a study folder, human text and all, into `memory-bank` of another folder."""
    written = []
    for name in TITLES:
        if (content := _content(StudyPaths(folder).memory_bank / f"{name}.md")) is not None:
            path = StudyPaths(to).memory_bank / f"{name}.md"
            write_atomically(path, content)
            written.append(path)
    return written


def _content(path: Path) -> bytes | None:
    """The file's bytes; None where there is no file."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StudyFolderError(f"{path} is no plain file; move it away, and the memory bank makes one.")
    if not os.path.lexists(path):
        return None
    content = path.read_bytes()
    if b"\0" in content:
        raise StudyFolderError(f"{path} is not in UTF-8 (perhaps UTF-16); save it as UTF-8 and run this again.")
    return content


def _with_block(path: Path, before: bytes | None, text: str) -> bytes:
    # Bytes that are not UTF-8 pass through as they are.
    old = f"# {TITLES[path.stem]}\n" if before is None else before.decode("utf-8", "surrogateescape")
    try:
        new = put_block(old, path.stem, text)
    except ValueError as error:
        begin, end = markers(path.stem)
        raise StudyFolderError(
            f"{path} has broken markers: {error}. Write `{begin}` and `{end}` once each, in this order and on lines of "
            "their own, around the text that may be replaced; or delete both, and the block comes back at the end of "
            "the file. No file was changed."
        ) from None
    return (new + (_NOTES if before is None else "")).encode("utf-8", "surrogateescape")
