"""`adapter`: what an adapter made elsewhere holds, and its ranks as a plan. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json

if TYPE_CHECKING:
    from adaptive_lora.export.reading import AdapterOutline
    from adaptive_lora.planning.plan import RankPlan


@app.command()
@explained
def adapter(
    folder: Annotated[Path, typer.Argument(help="A folder with adapter_config.json, whoever wrote it.")],
    model: Annotated[
        str | None, typer.Option(help="Check names and sizes against this base: `demo`, a folder, owner/name.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub commit, tag or branch of the base.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="`rank:r` or `params:N`: the same proportions on that budget; else as they are.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Write the ranks as a plan, which a study takes as an arm's `ranks`.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What an adapter made elsewhere holds: ranks, scalings, sizes; checked, and nothing in it is executed."""
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.export.fitting import fitted_outline
    from adaptive_lora.export.rank_plan import rank_plan, study_targets
    from adaptive_lora.export.reading import read_outline

    check_place(to, "file")
    outline, available = read_outline(folder), None
    if model is not None:
        from adaptive_lora.study.prepare import open_outline

        available = open_outline(model, revision).modules
        outline = fitted_outline(outline, available, str(folder))
    made = rank_plan(outline, budget, str(folder))
    for note in outline.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    for beyond in outline.beyond:
        err.print(f"warning: the adapter {beyond.what}. {beyond.remedy}", markup=False, soft_wrap=True)
    if to:
        made.save(to)
        err.print(f"wrote {to}", markup=False)
        targets = f"targets: {study_targets(made, available)}\n" if available else ""
        study = (
            f"{targets}budgets: [{budget or f'params:{made.budget}'}]\narms: [uniform, {{name: theirs, ranks: {to}}}]"
        )
        err.print(f"in a study file, to judge it at equal parameters:\n{study}", markup=False, soft_wrap=True)
    if as_json:
        print_json(_facts(outline, made))
    else:
        _show(outline, made)


def _facts(outline: AdapterOutline, made: RankPlan) -> dict[str, Any]:
    return {
        "base": outline.base_name,
        "revision": outline.revision,
        "modules": len(outline.modules),
        "trainable_parameters": made.trainable_parameters,
        "budget_parameters": made.budget,
        "adapter_ranks": {name: module.rank for name, module in outline.modules.items()},
        "ranks": dict(made.ranks),
        "scalings": {name: module.scaling for name, module in outline.modules.items()},
        "rank_0": list(outline.untouched),
        "carried": not outline.beyond,
        "beyond": [beyond.what for beyond in outline.beyond],
        "notes": list(outline.notes),
    }


def _show(outline: AdapterOutline, made: RankPlan) -> None:
    from rich.table import Table
    from rich.text import Text

    from adaptive_lora.cli import terminal

    table = Table("module", "kind", box=None, collapse_padding=True, pad_edge=False)
    for column in ("shape", "rank", "scaling", "parameters"):
        table.add_column(column, justify="right")
    for m in made.modules:
        rank, scaling = made.ranks[m.name], outline.modules[m.name].scaling
        cells = f"{m.d_out}×{m.d_in}", str(rank), f"{scaling:.4g}", f"{rank * m.params_per_rank:,}"
        table.add_row(Text(m.name, overflow="fold"), m.kind, *cells)
    out.print(table, "", terminal.heat_map(made), "")
    ranks = sorted(made.ranks.values())
    spread = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    out.print(
        f"{len(made.ranks)} modules, {spread}, {made.trainable_parameters:,} trainable parameters; "
        f"base model: {outline.base_name or 'not named'}",
        markup=False,
        soft_wrap=True,
    )
