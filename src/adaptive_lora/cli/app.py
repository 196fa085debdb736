"""How verbs speak: stdout is data, stderr is progress, an error says what to do and ends with its code."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from adaptive_lora.errors import AdaptiveLoraError, Terminated, UsageError, printable
from adaptive_lora.redaction import redacted

app = typer.Typer(
    name="adaptive-lora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Look at data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class _Redacted(Console):
    """A console that prints no token, whatever a text was made of."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redacted(item) if isinstance(item, str) else item for item in objects), **options)


# Piped output is not cut to a guessed width.
out = _Redacted(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
err = _Redacted(stderr=True, highlight=False)

_TRAIN = {"torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "huggingface_hub", "tokenizers",
          "pyarrow"}  # fmt: skip
"""What the extra `train` brings."""

F = TypeVar("F", bound=Callable[..., Any])
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_LONGEST_PATH = 300
_WRONG_PLACE = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EROFS,
                errno.ENAMETOOLONG, errno.ELOOP, errno.E2BIG}  # fmt: skip
"""What the system says of a path that cannot be what was asked of it; other failures are not the user's."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explained(function: F) -> F:
    """Ends a verb that cannot do what was asked with a message and a code: 2 usage, 1 failed, 130 interrupted by
    Ctrl-C, 143 and 129 stopped by SIGTERM and SIGHUP.
    """

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> Any:
        try:
            found = function(*args, **kwargs)
            sys.stdout.flush()
            return found
        except BrokenPipeError:  # the reader of our output has seen enough
            _drain_stdout()
            sys.stderr.close()
            raise typer.Exit(0) from None
        except (Exception, KeyboardInterrupt) as error:
            said = _last_words(error, function.__name__.replace("_", " "))
            if said is None:
                raise
            _drain_stdout()
            _say_last(said[1])
            raise typer.Exit(said[0]) from None

    return verb  # type: ignore[return-value]


def _say_last(text: str) -> None:
    """On stderr; where there is not even memory for a console, as it is."""
    try:
        err.print(text, markup=False, soft_wrap=True)
    except MemoryError:
        with contextlib.suppress(OSError, MemoryError):
            os.write(2, f"{redacted(text)}\n".encode(errors="backslashreplace"))
    except OSError:  # a terminal that hung up
        pass


def _drain_stdout() -> None:
    """What could not be printed is given up: at its end Python would try again and put its own exit code for ours."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _last_words(error: BaseException, verb: str) -> tuple[int, str] | None:
    """The exit code and the message that an error ends a verb with; None for one that is a fault of ours."""
    match error:
        case UsageError():
            return 2, f"error: {error}"
        case AdaptiveLoraError():
            return 1, f"failed: {error}"
        case Terminated():
            return 128 + error.signum, f"stopped by {error.signum.name}; run the same command again to continue"
        case KeyboardInterrupt():
            return 130, "interrupted; run the same command again to continue"
        case _ if _is_out_of_memory(error):
            reason = f": {str(error).splitlines()[0]}" if str(error) else ""
            return 1, f"failed: out of memory{reason}. {_MORE_MEMORY}"
        case sqlite3.Error():
            return 1, f"failed: {_of_sqlite(error)}"
        case UnicodeEncodeError():  # of a path that is no UTF-8, most of all
            return 2, f"error: a name or a text is no valid Unicode: {error}."
        case OSError():  # a full disk, a read-only one, a folder that cannot be
            return (2 if error.errno in _WRONG_PLACE else 1), _of_system(error)
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in _TRAIN:
            return 2, f"error: `{verb}` needs torch and its family: pip install 'adaptive-lora[train]'"
        case _ if type(error).__name__ == "SafetensorError" and "I/O error" in str(error):
            return 1, f"failed: {str(error).partition('I/O error: ')[2]}. {_NOTHING_HALF}"
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Also where it is torch that says so, which has not been imported by verbs that need none."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOMEM
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    from adaptive_lora.training.memory import is_out_of_memory

    return is_out_of_memory(error)


_MORE_MEMORY = (
    "End other programs, or raise the limit that this process has (`ulimit -v`, a job's, a container's), and run the "
    "same command again."
)
_NOTHING_HALF = (
    "No file was left half-written. Free some space there, or name another place with --out, and run the same command "
    "again."
)


def _of_system(error: OSError) -> str:
    """What the system says of a file, and of a full disk what to do."""
    reason = (
        f"{str(error.filename)[:_LONGEST_PATH]}: {error.strerror}" if error.filename else error.strerror or str(error)
    )
    if error.errno in _FULL:
        return printable(f"failed: {reason}. {_NOTHING_HALF}")
    return printable(f"{'error' if error.errno in _WRONG_PLACE else 'failed'}: {reason}.")


def _of_sqlite(error: sqlite3.Error) -> str:
    """What SQLite means, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the details that the higher bits hold
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return f"the ledger could not be written: {error}; is the disk full?"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"the ledger is damaged: {error}. `adaptive-lora recover STUDY` writes a new one of what is sound."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"the ledger is in use: {error}. Wait for the process that has it, and run the same command again."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return f"the ledger cannot be written where it is: {error}. Copy the study folder to where it can be."
    return f"the ledger: {error}"


def print_json(value: Any) -> None:
    """JSON on stdout, unwrapped and uncoloured."""
    sys.stdout.write(redacted(json.dumps(value, indent=2, allow_nan=False)) + "\n")


def working(text: str) -> contextlib.AbstractContextManager[Any]:
    """Says on stderr what takes its time: a spinner on a terminal, a line elsewhere."""
    if err.is_terminal:
        return err.status(text)
    err.print(text, markup=False)
    return contextlib.nullcontext()
