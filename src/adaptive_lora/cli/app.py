"""How verbs speak: stdout is data, stderr is progress, an error says what to do and ends with its code."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from adaptive_lora.errors import AdaptiveLoraError, Terminated, UsageError
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

_WRONG_PLACE = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What the system says of a path that cannot be what was asked of it; other failures are not the user's."""


def explained(function: F) -> F:
    """Ends a verb that cannot do what was asked with a message and a code: 2 usage, 1 failed, 130 interrupted, 143
    terminated by a signal.
    """

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UsageError as error:
            err.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except AdaptiveLoraError as error:
            err.print(f"failed: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except sqlite3.Error as error:
            err.print(f"failed: the ledger could not be written: {error}; is the disk full?", markup=False)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            err.print("interrupted; run the same command again to continue")
            raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stderr.close()
            raise typer.Exit(0) from None
        except OSError as error:  # a full disk, a read-only one, a folder that cannot be
            usage = isinstance(error, _WRONG_PLACE)
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            err.print(f"{'error' if usage else 'failed'}: {reason}.", markup=False, soft_wrap=True)
            raise typer.Exit(2 if usage else 1) from None
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _TRAIN:
                raise
            name = function.__name__.replace("_", " ")
            remedy = "pip install 'adaptive-lora[train]'"
            err.print(f"error: `{name}` needs torch and its family: {remedy}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None

    return verb  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """JSON on stdout, unwrapped and uncoloured."""
    sys.stdout.write(redacted(json.dumps(value, indent=2, allow_nan=False)) + "\n")


def working(text: str) -> contextlib.AbstractContextManager[Any]:
    """Says on stderr what takes its time: a spinner on a terminal, a line elsewhere."""
    if err.is_terminal:
        return err.status(text)
    err.print(text, markup=False)
    return contextlib.nullcontext()
