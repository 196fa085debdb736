"""`judge`: paired verdicts on results made elsewhere. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json, working

if TYPE_CHECKING:
    from adaptive_lora.foreign.judging import Outcome


@app.command()
@explained
def judge(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME[:SEED]=]PATH...",
            help="Output of lm-evaluation-harness (folder or samples_*.jsonl), PEFT's method comparison (.json), a "
            "study's folder, a table (.csv, .tsv, .jsonl, .parquet) of arm, seed, record, value. "
            "Several files of one NAME are its seeds.",
            show_default=False,
        ),
    ],
    baseline: Annotated[str, typer.Option(help="The arm that all others are compared with.")],
    arm: Annotated[list[str] | None, typer.Option(help="Judge this arm only; may be repeated.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Judge this task only; may be repeated.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric to judge, default the first of each task; names a table's values.")
    ] = None,
    better: Annotated[
        str | None, typer.Option(help="`higher` or `lower`, for a metric whose name does not say it.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Differences within it do not matter, in the metric's unit; none by default.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level of the whole family of comparisons.")] = 0.05,
    cluster: Annotated[
        str | None, typer.Option(help="Field of the harness's documents by which items belong together.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Judge the items in common, however few.")] = False,
    to: Annotated[Path | None, typer.Option("--out", help="Folder for a page, its table and its figure.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Judge results made elsewhere: paired by item and seed, one family of comparisons with the baseline."""
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.foreign.judging import Asked, judge_runs, other_metrics
    from adaptive_lora.foreign.sources import Reading, read_runs
    from adaptive_lora.reporting.judged.tables import verdicts_json

    check_place(to, "folder")
    runs = read_runs(results, Reading(metric, better, cluster))
    asked = Asked(baseline, tuple(task or ()), metric, tuple(arm or ()), margin, alpha, common)
    found = judge_runs(runs, asked)
    others = other_metrics(runs, found)
    page = None if to is None else _page(found, baseline, others, [_source(r.arm, r.seed, r.source) for r in runs], to)
    if as_json:
        print_json(verdicts_json(found, baseline, others) | {"page": None if page is None else str(page)})
        return
    _tell(found, baseline, others)
    if page is not None:
        err.print(f"wrote {page}", markup=False, soft_wrap=True)


def _source(arm: str, seed: int | None, source: str) -> str:
    return f"{arm}{'' if seed is None else f', seed {seed}'}: {source}"


def _page(found: Sequence[Outcome], baseline: str, others: Sequence[str], sources: Sequence[str], to: Path) -> Path:
    from adaptive_lora.reporting.judged.page import write_verdicts

    with working("drawing the figure"):
        return write_verdicts(found, baseline, others, sources, to)


def _tell(found: Sequence[Outcome], baseline: str, others: Sequence[str]) -> None:
    from adaptive_lora.cli.terminal import verdicts_view

    out.print(verdicts_view(found, baseline, others))
