"""`recover`: what is sound of a broken ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json

if TYPE_CHECKING:
    from adaptive_lora.recovery.recovering import Recovery

SHOWN = 20
"""Lost runs that are named one by one; `--json` has all."""


@app.command()
@explained
def recover(
    folder: Annotated[Path, typer.Argument(help="Study folder whose ledger, study.db, is damaged.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="New folder for all of the study, instead of a new ledger in the old one."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a new ledger of what is sound of a damaged one, which is kept. `run` then trains what is missing."""
    from adaptive_lora.recovery.recovering import recover as recover_ledger

    found = recover_ledger(folder, to, lambda text: err.print(text, markup=False, soft_wrap=True))
    if as_json:
        print_json(found.to_json())
        return
    for line in _told(found, to or folder):
        out.print(line, markup=False, soft_wrap=True)


def _told(found: Recovery, folder: Path) -> list[str]:
    lines = []
    if found.damaged is None:
        lines.append(f"{found.ledger} is sound: {found.runs:,} finished runs; nothing to recover")
    else:
        lines.append(f"recovered {found.runs:,} finished runs into {found.ledger}; the damaged one is {found.damaged}")
    if not found.proven:
        lines.append("the ledger has no digests, which tell whether a number is the one that was written")
    for run in found.lost[:SHOWN]:
        lines.append(f"lost: run {run.run_id}{f' ({run.label})' if run.label else ''}: {', '.join(run.what)}")
    if len(found.lost) > SHOWN:
        lines.append(f"lost: {len(found.lost) - SHOWN:,} more runs; --json names them")
    lines += [f"lost: {other}" for other in found.others_lost]
    if found.facts_lost:
        lines.append(f"lost: of the study itself {', '.join(found.facts_lost)}")
    if found.lock is not None:
        lines.append(f"wrote {found.lock} again, as the ledger has it")
    if found.damaged is not None:
        before = "" if found.facts_kept else "; it cannot be read before that"
        lines.append(f"next: adaptive-lora run STUDY.yaml --out {folder}{before}")
    return lines
