"""`strategies`: the ways of spending a budget."""

from __future__ import annotations

from adaptive_lora.cli.app import JsonFlag, app, explained, out, print_json


@app.command()
@explained
def strategies(as_json: JsonFlag = False) -> None:
    """The ways of spending a budget that there are."""
    from adaptive_lora.cli.terminal import strategies_rows, strategies_view

    if as_json:
        print_json(strategies_rows())
    else:
        out.print(strategies_view())
