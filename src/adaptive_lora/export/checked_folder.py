"""An export that lies in a folder: whether it was checked, and whether its files are those that were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import ExportError, UsageError
from adaptive_lora.export.card import CARD_FILE, COMPAT_FILE
from adaptive_lora.models.cache import file_sha256


@dataclass(frozen=True)
class CheckedFolder:
    """A folder with an export that passed its check, and nothing else."""

    folder: Path
    files: Mapping[str, int]
    """Name within the folder, with `/` -> size in bytes; by name."""
    base_model: str
    """As the export names it."""

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(self.files.values())


def is_checked_folder(folder: Path) -> bool:
    """Whether `export` wrote a folder; of files there beside `compat.json` nothing is read."""
    return (folder / COMPAT_FILE).is_file()


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder by its name within, with `/`; without card and `compat.json`."""
    names = _names(folder)
    return {name: file_sha256(folder / name) for name in names if name not in (CARD_FILE, COMPAT_FILE)}


def checked_folder(folder: Path) -> CheckedFolder:
    """The export in a folder; its card may have been edited, its other files not.

    UsageError where it is none, and ExportError, with all that is wrong, where it did not pass its check, or where
    files are missing, changed or too many.
    """
    found = _compat(folder)
    if not found["check"]["passed"]:
        raise ExportError(f"{folder} is not the adapter: its check failed when it was written. Export it again.")
    wanted, here = found["files"], hashes_of(folder)
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - here.keys())]
    wrong += [f"{name} has changed since" for name in sorted(wanted.keys() & here.keys()) if wanted[name] != here[name]]
    wrong += [f"{name} was put there since; move it elsewhere" for name in sorted(here.keys() - wanted.keys())]
    if wrong:
        told = "".join(f"\n  - {line}" for line in wrong)
        raise ExportError(f"{folder} is not what was exported and checked; export it again into another folder:{told}")
    sizes = {name: (folder / name).stat().st_size for name in _names(folder)}
    return CheckedFolder(folder, sizes, str(found["base_model"]["name"]))


def _names(folder: Path) -> list[str]:
    """Every file below a folder; UsageError for a link, which may lead anywhere."""
    paths = sorted(folder.rglob("*"))
    if links := [path for path in paths if path.is_symlink()]:
        raise UsageError(f"{links[0]} is a link, and an export has none: replace it by the file itself.")
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _compat(folder: Path) -> dict[str, Any]:
    path = folder / COMPAT_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["check"]["passed"], found["base_model"]["name"], dict(found["files"])
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is no export: it has no {COMPAT_FILE}. Make one with `adaptive-lora export`."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path} is none that this version writes, so that nothing says what was checked: export it again."
        ) from None
    return found
