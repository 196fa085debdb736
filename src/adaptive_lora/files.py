"""Files that are written whole or not at all, and the user's cache."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """The user's cache of this package: `adaptive-lora` in `XDG_CACHE_HOME`, or in `~/.cache`; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-lora"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside `path` and renames, so that a kill leaves the old file or the new one.

    Raises OSError with the name of `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_and_rename(path, data)
    except OSError as error:  # its own file name is that of the temporary file, or none
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_and_rename(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are to be read by others.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
