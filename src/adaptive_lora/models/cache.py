"""The user's cache of converted models: one folder each, whole or not there, with where it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from adaptive_lora.errors import ModelError
from adaptive_lora.files import parse_json, user_cache

PROVENANCE = "provenance.json"
"""The file in a converted folder that says where its weights came from."""


_MAKING = ".making"
"""A file in a folder in the making, locked by the process that makes it."""


@dataclass(frozen=True)
class Provenance:
    """Where converted weights came from; recorded beside them."""

    source: str
    """The package or file that held the weights."""
    sha256: str
    """Of the GGUF file."""
    quantisation: str
    """How the weights were stored there, such as `Q4_1`."""
    licence: str | None
    converted_by: str
    """The libraries that read it, with versions."""
    content: str = ""
    """`content_hash` of the folder when it was made."""

    @property
    def revision(self) -> str:
        """What a study records as the model's revision: the same wherever and by whatever version it was converted."""
        return f"gguf sha256:{self.sha256}"

    @property
    def note(self) -> str:
        """What must stand wherever the model is named.

        >>> [Provenance("a.gguf", "0" * 64, kind, None, "transformers 5").note for kind in ("Q4_1", "F16")]
        ['weights dequantised from Q4_1', 'weights read from a GGUF file in F16']
        """
        if self.quantisation in ("F16", "BF16", "F32", "ALL_F32"):
            return f"weights read from a GGUF file in {self.quantisation}"
        return f"weights dequantised from {self.quantisation}"


def cache_folder() -> Path:
    """Where converted models lie: `models` in the user's cache."""
    return user_cache() / "models"


def provenance_of(folder: Path) -> Provenance | None:
    """Where a converted folder's weights came from; None for folders that were never converted by us."""
    try:
        return Provenance(**parse_json((folder / PROVENANCE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def build_in_cache(folder: Path, fill: Callable[[Path], Provenance]) -> Path:
    """`folder`, made by `fill` in a place beside it and renamed once it is complete.

    A kill leaves no half folder, and of two processes that build the same one, the second keeps the first's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as private,
        (Path(private) / _MAKING).open("w") as held,
    ):
        _lock(held)
        made = Path(private) / folder.name
        made.mkdir()
        found = replace(fill(made), content=content_hash(made))
        (made / PROVENANCE).write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
        if folder.exists() and provenance_of(folder) is None:
            shutil.rmtree(folder)  # left by something else than us, or by a broken disk
        if not folder.exists():
            made.replace(folder)
    return folder


def _is_abandoned(left: Path) -> bool:
    """Whether a folder in the making is one that a kill has left: no process holds it. Clocks tell nothing of that."""
    try:
        with (left / _MAKING).open("r") as held:
            return _lock(held)
    except FileNotFoundError:  # just begun and empty, gone by now, or left by a version that held none
        return left.is_dir() and any(left.iterdir())
    except OSError:
        return False


def _lock(file: IO[str]) -> bool:
    """Locks a file until it is closed; False where another process has it, or the system has no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def content_hash(folder: Path) -> str:
    """`sha256:` and a hash of a model folder's configuration, weights and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("tokenizer*.json")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def revision_of(folder: Path) -> str:
    """The revision of a model folder: its content's hash, or for a converted one the hash of the file it came from.

    ModelError for a converted folder that is not as it was made.
    """
    content, origin = content_hash(folder), provenance_of(folder)
    if origin is None:
        return content
    if origin.content != content:
        raise ModelError(
            f"{folder} has changed since it was made from {origin.source}: remove that folder, and fetch or "
            "convert the model again."
        )
    return origin.revision


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
