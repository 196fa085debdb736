"""`schema`: what a study file may say, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adaptive_lora.cli.app import app, err, explained, print_json


@app.command()
@explained
def schema(to: Annotated[Path | None, typer.Option("--out", help="File to write; default stdout.")] = None) -> None:
    """Print the JSON schema of the study file, so that editors complete and check it."""
    from adaptive_lora.files import write_atomically
    from adaptive_lora.study.json_schema import study_json_schema

    found = study_json_schema()
    if to is None:
        print_json(found)
        return
    write_atomically(to, json.dumps(found, indent=2) + "\n")
    err.print(f"wrote {to}", markup=False)
