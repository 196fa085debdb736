"""The files of an adapter that a study keeps are known to be what was written: digests beside them, held against them
on reading. An adapter of a version before has none, and is read as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import parse_json, read_bounded, write_atomically

DIGESTS = "digests.json"
_LARGEST_LIST, _LARGEST_FILE = 2**20, 2**36
"""Bytes. A folder may have come from someone else: what it names is read only where it can be an adapter's file."""
_REMEDY = (
    "Its results stand: they are in the ledger. Bring the file back from a copy, or run the study again in a new "
    "folder (`adaptive-lora run STUDY.yaml --out NEW`), where the same adapter is trained"
)


def seal_adapter(folder: Path) -> None:
    """Writes the digest of every file of an adapter, once all of them are there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     _ = (folder / "adapter_config.json").write_text("{}")
    ...     seal_adapter(folder)
    ...     check_adapter(folder)
    ...     _ = (folder / "adapter_config.json").write_text("{ }")
    ...     try:
    ...         check_adapter(folder)
    ...     except StudyFolderError as error:
    ...         print(str(error).removeprefix(name)[1:].partition(".")[2].partition(":")[0])
    json is damaged
    """
    digests = {path.name: _digest(path) for path in sorted(folder.iterdir()) if _counts(path)}
    write_atomically(folder / DIGESTS, json.dumps(digests, indent=2) + "\n")


def check_adapter(folder: Path) -> None:
    """StudyFolderError where a file of a kept adapter is another than was written, or is gone; names all of them."""
    listed = folder / DIGESTS
    if not listed.is_file():
        return
    try:
        digests = parse_json(read_bounded(listed, _LARGEST_LIST))
        wrong = [
            name for name, digest in digests.items() if Path(name).name != name or _digest(folder / name) != digest
        ]
    except (ValueError, AttributeError, TypeError, OSError):
        raise StudyFolderError(
            f"{listed} is damaged: it is not what was written. Bring it back from a copy, or delete it to read the "
            "adapter as it is."
        ) from None
    if wrong:
        names = ", ".join(str(folder / name) for name in wrong)
        raise StudyFolderError(f"{names} is damaged: not what was written when the run was finished. {_REMEDY}.")


def _counts(path: Path) -> bool:
    return path.is_file() and path.name != DIGESTS and not path.name.startswith(".")


def _digest(path: Path) -> str:
    """Empty for a file that is not there, or is none."""
    if not path.is_file() or not 0 < path.stat().st_size <= _LARGEST_FILE:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
