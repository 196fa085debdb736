"""`data profile`: what is in a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptive_lora.cli.app import JsonFlag, data_app, err, explained, out, print_json, working
from adaptive_lora.data.encoding import Learn


@data_app.command("profile")
@explained
def data_profile(
    source: Annotated[
        str,
        typer.Argument(
            help="`demo:fine-tuning`, a .json, .jsonl, .csv or .parquet file, or a hub data set "
            "owner/name[:configuration]."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Model whose tokenizer and context count: `demo`, a folder, or owner/name.")
    ] = "demo",
    max_length: Annotated[int, typer.Option(help="Longest text in tokens; the model's context caps it.")] = 512,
    template: Annotated[
        str, typer.Option(help="auto, chat, alpaca, alpaca-short, question, plain, or a named template of the model.")
    ] = "auto",
    learn: Annotated[Learn, typer.Option(help="Of a conversation the last answer, or all of them.")] = "last",
    png: Annotated[Path | None, typer.Option(help="Write the length histogram as a picture.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What is in a data set: form, counts, duplicates, lengths, truncation, masked samples."""
    from adaptive_lora.cli.checks import check_place, check_source
    from adaptive_lora.data.templates import as_template

    as_template(template)
    check_source(source)
    check_place(png, "file")

    from adaptive_lora.data.profile import profile, save_histogram
    from adaptive_lora.study.prepare import open_encoder, open_records

    records = open_records(source)
    with working(f"tokenising {len(records.records):,} records"):
        encoder = open_encoder(model, max_length, template, learn=learn)
        found = profile(records, encoder)
    for note in encoder.notes(records.form):
        err.print(note, markup=False, soft_wrap=True)
    for warning in encoder.warnings(records.form):
        err.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if png:
        save_histogram(found, png)
        err.print(f"wrote {png}", markup=False)
    if as_json:
        print_json({**found.to_json(), **encoder.facts(records.form)})
        return
    from adaptive_lora.cli.terminal import profile_view

    out.print(profile_view(found))
