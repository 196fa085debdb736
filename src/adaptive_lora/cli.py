"""The verbs. Each parses, calls one function of the house, and prints: stdout is data, stderr is progress."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from adaptive_lora.errors import AdaptiveLoraError, StudyFolderError, TrainingError, UsageError
from adaptive_lora.planning.modules import TARGET_GROUPS
from adaptive_lora.record.folder import StudyPaths, is_in_use

if TYPE_CHECKING:
    from adaptive_lora.telling.findings import Findings

app = typer.Typer(
    help="Should a LoRA have the same rank everywhere? Plan, train and compare rank plans at equal parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Look at data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

# Piped output is not cut to a guessed width.
out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
err = Console(stderr=True, highlight=False)

F = TypeVar("F", bound=Callable[..., Any])
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
FolderArgument = Annotated[Path, typer.Argument(help="Study folder, as given to `run --out`.")]


def explained(function: F) -> F:
    """Ends a verb that cannot do what was asked with a message and a code: 2 usage, 1 failed, 130 interrupted."""

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UsageError as error:
            err.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except AdaptiveLoraError as error:
            err.print(f"failed: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except sqlite3.Error as error:
            err.print(f"failed: the ledger could not be written: {error}; is the disk full?", markup=False)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            err.print("interrupted; the same command goes on where it stopped")
            raise typer.Exit(130) from None
        except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            err.print(f"error: {error.filename or error}: {error.strerror}.", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stderr.close()
            raise typer.Exit(0) from None

    return verb  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """JSON on stdout, unwrapped and uncoloured."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def working(text: str) -> contextlib.AbstractContextManager[Any]:
    """Says on stderr what takes its time: a spinner on a terminal, a line elsewhere."""
    if err.is_terminal:
        return err.status(text)
    err.print(text, markup=False)
    return contextlib.nullcontext()


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
    _report(to)


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
        typer.Argument(help="`demo:fine-tuning`, a .json, .jsonl or .parquet file, or a hub data set owner/name."),
    ],
    model: Annotated[
        str, typer.Option(help="Model whose tokenizer and context count: `demo`, a folder, or owner/name.")
    ] = "demo",
    max_length: Annotated[int, typer.Option(help="Longest text in tokens; the model's context caps it.")] = 512,
    template: Annotated[str, typer.Option(help="auto, alpaca, alpaca-short, chat or plain.")] = "auto",
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
        status(to, as_json=True)


def _pilot(folder: Path) -> list[Any]:
    """Arms of a study that was run before."""
    from adaptive_lora.judging.arms import summarise
    from adaptive_lora.record.results import load_pilot

    return summarise(*load_pilot(folder))


def _run(study_file: Path, folder: Path, device: str, checkpoint_seconds: float, deviation: str | None = None) -> None:
    from adaptive_lora.progress import BarWatcher, watcher_for
    from adaptive_lora.record.spec import load_study
    from adaptive_lora.runner import run_study

    watcher = watcher_for(err)
    with watcher if isinstance(watcher, BarWatcher) else contextlib.nullcontext():
        try:
            outcome = run_study(load_study(study_file), folder, watcher, device, checkpoint_seconds, deviation)
        except (KeyboardInterrupt, TrainingError):
            _remember(folder)
            raise
    _remember(folder)
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


def _remember(folder: Path, found: Findings | None = None) -> None:
    """Brings the memory bank up to date; what keeps it from that is a warning beside work that is done."""
    from adaptive_lora.record.ledger import open_to_read
    from adaptive_lora.telling.findings import read_findings
    from adaptive_lora.telling.memory_bank import memory_texts, write_memory_bank

    try:
        with contextlib.closing(open_to_read(folder)) as ledger:
            write_memory_bank(memory_texts(found or read_findings(ledger), is_in_use(folder)), folder)
    except (UsageError, OSError) as error:
        err.print(f"warning: the memory bank is not up to date: {error}", markup=False, soft_wrap=True)


@app.command()
@explained
def status(folder: FolderArgument, as_json: JsonFlag = False) -> None:
    """What is done, running, failed and left."""
    from adaptive_lora.record.status import study_status
    from adaptive_lora.terminal import status_view

    found = study_status(folder)
    if as_json:
        print_json(found.to_json())
    else:
        out.print(status_view(found))


@app.command()
@explained
def report(folder: FolderArgument, as_json: JsonFlag = False) -> None:
    """Make the HTML report and the figures again from what is recorded."""
    _report(folder, as_json)


def _report(folder: Path, as_json: bool = False) -> None:
    from adaptive_lora.record.ledger import open_to_read
    from adaptive_lora.telling.findings import read_findings
    from adaptive_lora.telling.report.build import write_report
    from adaptive_lora.terminal import arms_table

    with contextlib.closing(open_to_read(folder)) as ledger:
        found = read_findings(ledger)
        with working("drawing figures"):
            path = write_report(ledger, folder, found)
        _remember(folder, found)
    if as_json:
        places = {"report": str(path), "figures": str(folder / "figures"), "tables": str(folder / "tables")}
        print_json({**places, "arms": [asdict(arm) for arm in found.arms]})
        return
    out.print(arms_table(found.arms, found.baseline))
    out.print(f"report: {path}", markup=False, soft_wrap=True)


@app.command()
@explained
def memory(folder: FolderArgument, as_json: JsonFlag = False) -> None:
    """Bring the memory bank up to date and show where the study stands, what it found and what to do next."""
    from adaptive_lora.record.ledger import open_to_read
    from adaptive_lora.telling.findings import read_findings
    from adaptive_lora.telling.memory_bank import SHOWN, memory_texts, write_memory_bank

    with contextlib.closing(open_to_read(folder)) as ledger:
        texts = memory_texts(read_findings(ledger), is_in_use(folder))
    place = StudyPaths(folder).memory_bank
    if os.access(folder, os.W_OK):
        changed = [path.name for path in write_memory_bank(texts, folder)]
        err.print(f"{place}: {', '.join(changed) or 'nothing'} changed", markup=False, soft_wrap=True)
    else:  # a mounted archive can be read all the same
        changed = []
        err.print(f"warning: {folder} cannot be written, so that its memory bank stays as it is", markup=False)
    if as_json:
        print_json({"memory_bank": str(place), "changed": changed, "texts": texts})
        return
    sys.stdout.write("\n\n".join(f"# {title}\n\n{texts[name]}" for name, title in SHOWN.items()) + "\n")


@app.command()
@explained
def paper(
    folder: Annotated[Path, typer.Argument(help="Study folder, or one that `results --out` wrote.")],
    to: Annotated[Path | None, typer.Option("--out", help="Folder to write; default `paper` in the study's.")] = None,
    arxiv: Annotated[bool, typer.Option("--arxiv", help="Check arXiv's rules and write the archive.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a manuscript from what is recorded: Markdown, LaTeX, figures, and a PDF where latexmk or tectonic is."""
    from adaptive_lora.telling.exported import open_findings
    from adaptive_lora.telling.paper.build import write_paper

    with open_findings(folder) as found, working("writing the manuscript"):
        written = write_paper(found, to or folder / "paper", arxiv)
    if StudyPaths(folder).ledger.exists():
        _remember(folder)
    for text in written.compiled.complaints:
        err.print(f"note: {text}", markup=False, soft_wrap=True)
    if as_json:
        told = {"words": written.words, "figures": written.figures, "complaints": list(written.compiled.complaints)}
        pdf = str(written.folder / "main.pdf") if written.compiled.pdf else None
        sent = str(written.archive) if written.archive else None
        print_json({"paper": str(written.folder / "paper.md"), "pdf": pdf, "archive": sent, **told})
        return
    names = ["paper.md", "main.tex", *(["main.pdf"] if written.compiled.pdf else [])]
    names += [written.archive.name] if written.archive else []
    out.print(f"{written.words:,} words, {written.figures} figures: {written.folder}: {', '.join(names)}", markup=False)


@app.command()
@explained
def results(
    folder: FolderArgument,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV (the default).")] = False,
    as_json: JsonFlag = False,
    to: Annotated[
        Path | None, typer.Option("--out", help="Write all that is told of the study as text files here.")
    ] = None,
) -> None:
    """One row a run: losses, parameters, times. Losses in nats per completion token."""
    from adaptive_lora.record.ledger import open_to_read
    from adaptive_lora.record.results import runs_table
    from adaptive_lora.telling.exported import export_all

    if csv and as_json:
        raise UsageError("Choose one of --csv and --json.")
    with contextlib.closing(open_to_read(folder)) as ledger:
        if to is not None:
            for path in export_all(ledger, to):
                err.print(f"wrote {path}", markup=False)
            return
        table = runs_table(ledger)
    text = table.to_json(orient="records", indent=2, double_precision=15) if as_json else table.to_csv(index=False)
    sys.stdout.write(text.rstrip("\n") + "\n")


@app.command()
@explained
def strategies(as_json: JsonFlag = False) -> None:
    """The ways of spending a budget that there are."""
    from adaptive_lora.terminal import strategies_rows, strategies_view

    if as_json:
        print_json(strategies_rows())
    else:
        out.print(strategies_view())


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


def main() -> None:
    """The console script."""
    # Progress is ours to show; what the libraries say of themselves on loading is noise here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
