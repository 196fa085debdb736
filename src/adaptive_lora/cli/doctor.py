"""`doctor`: does everything work here?"""

from __future__ import annotations

import typer

from adaptive_lora.cli.app import JsonFlag, app, explained, out, print_json


@app.command()
@explained
def doctor(as_json: JsonFlag = False) -> None:
    """Check this installation by doing small real things; says what to do about each failure."""
    from adaptive_lora.doctor import examine

    found = []
    for check in examine():
        found.append(check)
        if not as_json:
            mark = {"ok": "[green]ok    [/]", "note": "[yellow]note  [/]", "failed": "[red]failed[/]"}[check.state]
            out.print(f"{mark} {check.name}: ", end="")
            out.print(
                check.found + (f"\n       {check.remedy}" if check.remedy else ""),
                markup=False,
                soft_wrap=True,
            )
    if as_json:
        print_json([vars(check) for check in found])
    if any(check.state == "failed" for check in found):
        raise typer.Exit(1)
