"""Files that are written whole or not at all, files of others that are read within limits, and the user's cache."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

_NOT_REGULAR = "is a device, a pipe or a socket; name another file"
_CIRCLE = "is a link that leads in a circle; remove it, or name another file"
_LINK_OUT = "is a link out of its folder, through which nothing is written; remove it, or name another folder"
_NUL = "a path has no NUL character; take it out"


def user_cache() -> Path:
    """The user's cache of this package: `adaptive-lora` in `XDG_CACHE_HOME`, or in `~/.cache`; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-lora"


def expanded(text: str) -> Path:
    """A path with `~` filled in, where there is such a user."""
    return Path(os.path.expanduser(text))


def write_atomically(path: Path, content: str | bytes, named: bool = False) -> None:
    """Writes beside `path` and renames, so that a kill leaves the old file or the new one.

    A link is followed, and stays a link: anywhere for a file that the user `named`, and within its own folder for one
    that this package names, as the folder may have come from someone else. Half of a surrogate pair, which no file can
    hold, is written as `\\udc80`.

    Raises OSError with the name of `path`, also where it is a device, a pipe or a socket: they are not replaced.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        target = written_at(path, named)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_and_rename(target, data)
    except OSError as error:  # its own file name is that of the temporary file, or none
        raise OSError(error.errno, error.strerror, str(path)) from None


def written_at(path: Path, named: bool = False) -> Path:
    """Where `write_atomically` would write `path`: behind its links; OSError where that is no regular file, or a link
    is not followed. Parameters as there."""
    if "\0" in str(path):
        raise FileNotFoundError(errno.ENOENT, _NUL, str(path))
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not named and not target.is_relative_to(os.path.realpath(path.parent)):
        raise PermissionError(errno.EACCES, _LINK_OUT, str(path))
    if target.is_symlink():
        raise FileNotFoundError(errno.ENOENT, _CIRCLE, str(path))
    if target.exists():
        _check_regular(target.stat().st_mode, path)
    return target


def read_bounded(path: Path, largest: int) -> bytes:
    """The bytes of a regular file; OSError for what else there is, and for a file of more than `largest` bytes.

    A device or a pipe, which might never end, is not read at all.
    """
    if "\0" in str(path):
        raise FileNotFoundError(errno.ENOENT, _NUL, str(path))
    # Without O_NONBLOCK opening a pipe would wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        _check_regular(status.st_mode, path)
        if status.st_size > largest:
            raise OSError(errno.E2BIG, f"has {status.st_size:,} bytes; at most {largest:,} are read", str(path))
        return file.read()


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, whose only error is ValueError here: nesting that is too deep to be read is one too.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    ValueError: its lists or objects are nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def _check_regular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, _NOT_REGULAR, str(path))


def _write_and_rename(path: Path, data: bytes) -> None:
    # A part of the name alone: with one of the longest allowed it would be too long.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are to be read by others, unless the file before was not.
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
