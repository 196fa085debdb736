"""`merge`: the folders of shards, in one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, print_json, working
from adaptive_lora.cli.shared import remember


@app.command()
@explained
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Study folders of one study, as its shards wrote them.")],
    to: Annotated[Path, typer.Option("--out", help="A new folder, or the one that was merged into before.")],
    as_json: JsonFlag = False,
) -> None:
    """Join what the shards of a study have finished. Again after the next round adds what is new."""
    from adaptive_lora.study.merge import merge as join

    with working("reading the folders"):
        found = join(folders, to)
    remember(to)
    if as_json:
        print_json({"out": str(to), **dataclasses.asdict(found)})
        return
    rest = f", {found.left} are left" if found.left else ""
    err.print(
        f"{found.finished} runs finished ({found.taken} of them new){rest}; next: adaptive-lora run STUDY --out {to}, "
        "which trains what is missing and makes the checks of a whole study",
        markup=False,
        soft_wrap=True,
    )
