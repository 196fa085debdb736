"""The console script: all verbs, gathered."""

from __future__ import annotations

import atexit
import gc
import os
from typing import Annotated

import typer

from adaptive_lora.cli import (
    adapter,
    data,
    doctor,
    export,
    fetch,
    init,
    judge,
    merge,
    plan,
    reading,
    recommend,
    recover,
    run,
    strategies,
)
from adaptive_lora.cli.app import app

__all__ = [
    "adapter", "app", "data", "doctor", "export", "fetch", "init", "judge", "main", "merge", "plan", "reading",
    "recommend", "recover", "run", "strategies",
]  # fmt: skip


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"adaptive-lora {version('adaptive-lora')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Should a LoRA have the same rank everywhere? Plan, train and compare rank plans at equal parameters."""


def main() -> None:
    """The console script."""
    # The verbs show their own progress; the libraries' messages on loading would bury it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Figures go into files. A notebook's shell leaves a backend here that matplotlib refuses outside of it.
    os.environ["MPLBACKEND"] = "agg"
    _expect_no_garbage_in_libraries()
    app()


def _expect_no_garbage_in_libraries() -> None:
    """Loaded libraries are hundreds of thousands of objects that stay. Searching all of them for garbage, again and
    again, takes most of a second of a command's beginning and more than one of its end."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1000)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    main()
