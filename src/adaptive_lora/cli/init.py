"""`init` and `schema`: a study file to begin with, and what it may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adaptive_lora.cli.app import app, explained, out, print_json


@app.command()
@explained
def init(
    name: Annotated[str, typer.Argument(help="Recipe; leave out to list them.")] = "",
    to: Annotated[Path | None, typer.Option("--out", help="File to write; default RECIPE.yaml.")] = None,
) -> None:
    """Write a study file from a recipe, to be edited and run."""
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.recipes import list_recipes, write_recipe

    if not name:
        table = Table("recipe", "question", box=None)
        for recipe_name, question in list_recipes().items():
            table.add_row(recipe_name, question)
        out.print(table)
        return
    check_place(to, "file")
    for path in write_recipe(name, to or Path(f"{name}.yaml")):
        out.print(str(path), soft_wrap=True)


@app.command()
@explained
def schema() -> None:
    """Print the JSON schema of the study file, so that editors complete and check it."""
    from adaptive_lora.study.json_schema import study_json_schema

    print_json(study_json_schema())
