"""Verbs that plan, train and try out; heavy libraries are imported inside them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adaptive_lora.errors import AdaptiveLoraError, StudyFolderError, TrainingError, UsageError
from adaptive_lora.planning.modules import TARGET_GROUPS
from adaptive_lora.verbs.speaking import JsonFlag, app, data_app, err, explained, out, print_json, working
from adaptive_lora.verbs.telling import remember, tell_report, tell_status


@app.command()
@explained
def demo(to: Annotated[Path, typer.Option("--out", help="Study folder.")] = Path("runs/demo")) -> None:
    """The embedded study from start to report: offline, a few minutes on two CPU cores."""
    from adaptive_lora.recipes import recipe

    try:
        _run(recipe("demo"), to, "cpu", 30.0)
    except StudyFolderError as error:
        raise StudyFolderError(
            f"{to} holds a study that this version's demo does not go on with; name a new folder with --out, or remove "
            f"it. In full: {error}"
        ) from None
    tell_report(to)


@app.command()
@explained
def init(
    name: Annotated[str, typer.Argument(help="Recipe; leave out to list them.")] = "",
    to: Annotated[Path | None, typer.Option("--out", help="File to write; default RECIPE.yaml.")] = None,
) -> None:
    """Write a study file from a recipe, to be edited and run."""
    from adaptive_lora.recipes import list_recipes, write_recipe

    if not name:
        table = Table("recipe", "question", box=None)
        for recipe_name, question in list_recipes().items():
            table.add_row(recipe_name, question)
        out.print(table)
        return
    for path in write_recipe(name, to or Path(f"{name}.yaml")):
        out.print(str(path), soft_wrap=True)


@data_app.command("profile")
@explained
def data_profile(
    source: Annotated[
        str,
        typer.Argument(
            help="`demo:fine-tuning`, a .json, .jsonl or .parquet file, or a hub data set owner/name[:configuration]."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Model whose tokenizer and context count: `demo`, a folder, or owner/name.")
    ] = "demo",
    max_length: Annotated[int, typer.Option(help="Longest text in tokens; the model's context caps it.")] = 512,
    template: Annotated[str, typer.Option(help="auto, alpaca, alpaca-short, question, chat or plain.")] = "auto",
    png: Annotated[Path | None, typer.Option(help="Write the length histogram as a picture.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What is in a data set: form, counts, duplicates, lengths, truncation, masked samples."""
    from adaptive_lora.data.profile import profile, save_histogram
    from adaptive_lora.material import open_encoder, open_records

    records = open_records(source)
    with working(f"tokenising {len(records.records):,} records"):
        found = profile(records, open_encoder(model, max_length, template))
    if png:
        save_histogram(found, png)
        err.print(f"wrote {png}", markup=False)
    if as_json:
        print_json(found.to_json())
        return
    from adaptive_lora.terminal import profile_view

    out.print(profile_view(found))


@app.command()
@explained
def plan(
    model: Annotated[
        str,
        typer.Option(
            help="`demo`, a folder, or a hub name owner/name; its configuration is enough for plans by shape."
        ),
    ],
    strategy: Annotated[str, typer.Option(help="See `adaptive-lora strategies`.")] = "uniform",
    budget: Annotated[str, typer.Option(help="`rank:r` (what a uniform rank r costs) or `params:N`.")] = "rank:8",
    data: Annotated[str | None, typer.Option(help="Data source, for strategies that measure.")] = None,
    targets: Annotated[
        str, typer.Option(help="`all-linear`, `attention`, `mlp`, or module names with commas.")
    ] = "all-linear",
    scaling: Annotated[str, typer.Option(help="constant, rslora or alpha-over-r.")] = "constant",
    reference_scaling: Annotated[float, typer.Option(help="alpha / rank of a uniform plan.")] = 2.0,
    option: Annotated[
        list[str] | None, typer.Option(help="A strategy's option, `key=value`; may be given again.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For plans that rest on data or chance.")] = 0,
    max_length: Annotated[int, typer.Option(help="Longest calibration text in tokens.")] = 512,
    revision: Annotated[str | None, typer.Option(help="Hub commit, tag or branch.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write the plan as JSON.")] = None,
    peft: Annotated[Path | None, typer.Option(help="Write PEFT's adapter_config.json into this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """One rank plan, exactly on its budget: table, heat map, and files for PEFT."""
    from adaptive_lora import single, terminal

    request = single.PlanRequest(
        model=model, strategy=strategy, budget=budget, data=data, scaling=scaling, seed=seed, revision=revision,
        targets=targets if targets in TARGET_GROUPS else targets.split(","), max_length=max_length,
        reference_scaling=reference_scaling, options=single.parse_options(option or ()),
    )  # fmt: skip
    with working(f"planning {strategy} at {budget}" + (f" on {data}" if data else "")):
        made = single.plan(request)
    if to:
        made.save(to)
        err.print(f"wrote {to}", markup=False)
    if peft:
        peft.mkdir(parents=True, exist_ok=True)
        made.to_lora_config().save_pretrained(str(peft))
        err.print(f"wrote {peft / 'adapter_config.json'}", markup=False)
    for warning in made.provenance["warnings"]:
        err.print(f"warning: {warning}", markup=False, soft_wrap=True)
    facts = single.plan_json(made)
    if as_json:
        print_json(facts)
        return
    out.print(terminal.coverage_table(made), "", terminal.heat_map(made), "")
    if facts["measured"]:
        out.print(terminal.planning_cost(facts), "")
    left_out = f" ({len(made.left_out)} left out)" if made.left_out else ""
    out.print(
        f"{facts['modules']} modules{left_out}, {facts['trainable_parameters']:,} trainable of "
        f"{facts['total_parameters']:,} parameters in all, {made.budget - made.trainable_parameters:,} of the budget "
        f"unspent, largest rank {max(made.ranks.values())}; planned in {facts['plan_seconds']:.2f} s",
        soft_wrap=True,
    )


@app.command()
@explained
def run(
    study: Annotated[Path, typer.Argument(help="Study file; `adaptive-lora init` writes one.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Study folder; the same folder again goes on where it stopped."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, parameters, memory and time; write nothing.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    checkpoint_seconds: Annotated[float, typer.Option(help="How often the current run is kept safe.")] = 30.0,
    deviation: Annotated[
        str | None, typer.Option(help="Why the study file has changed since the folder was locked; the report says so.")
    ] = None,
    pilot: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: a study folder or exported results, whose spread tells the power."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train what is missing of a study. Ctrl-C keeps the current run; the same command goes on."""
    if dry_run:
        from adaptive_lora import terminal
        from adaptive_lora.estimate import estimate
        from adaptive_lora.material import prepare
        from adaptive_lora.record.spec import load_study

        with working("planning every arm and timing a few steps"):
            found = estimate(prepare(load_study(study), device), _pilot(pilot) if pilot else ())
        if as_json:
            print_json({**vars(found), "warnings": list(found.warnings)})
        else:
            out.print(terminal.estimate_view(found))
        return
    if to is None:
        raise UsageError(f"`run` needs a folder for the results: adaptive-lora run {study} --out runs/{study.stem}")
    _run(study, to, device, checkpoint_seconds, deviation)
    if as_json:
        tell_status(to, as_json=True)


def _pilot(folder: Path) -> list[Any]:
    """Arms of a study that was run before."""
    from adaptive_lora.telling.exported import open_findings

    with open_findings(folder) as found:
        return list(found.arms)


def _run(study_file: Path, folder: Path, device: str, checkpoint_seconds: float, deviation: str | None = None) -> None:
    from adaptive_lora.progress import BarWatcher, watcher_for
    from adaptive_lora.record.spec import load_study
    from adaptive_lora.runner import run_study

    watcher = watcher_for(err)
    with watcher if isinstance(watcher, BarWatcher) else contextlib.nullcontext():
        try:
            outcome = run_study(load_study(study_file), folder, watcher, device, checkpoint_seconds, deviation)
        except (KeyboardInterrupt, TrainingError):
            remember(folder)
            raise
    remember(folder)
    diverged = f", {outcome.diverged} diverged" if outcome.diverged else ""
    err.print(
        f"{outcome.completed} of {outcome.total} runs completed{diverged}; next: adaptive-lora report {folder}",
        markup=False,
    )
    if not outcome.whole:
        raise AdaptiveLoraError(
            f"{outcome.total - outcome.completed - outcome.diverged} runs gave no result; `adaptive-lora status "
            f"{folder}` says why, and the same command tries them again."
        )


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
