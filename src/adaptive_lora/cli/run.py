"""`run` and `demo`: train a study."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json
from adaptive_lora.cli.shared import ctrl_c_quits, remember, tell_report, tell_status
from adaptive_lora.cli.workers import (
    BankSizeOption,
    ExecutorOption,
    LeaseOption,
    MergedOption,
    ResourceOption,
    ShardOption,
    WorkersOption,
    shard_of,
    workers_of,
)
from adaptive_lora.errors import AdaptiveLoraError, ScoringError, StudyFolderError, TrainingError, UsageError

if TYPE_CHECKING:
    from adaptive_lora.stats.spreads import Pilot
    from adaptive_lora.study.executors.door import Workers
    from adaptive_lora.study.shards import Shard
    from adaptive_lora.study.status import StudyStatus
    from adaptive_lora.study.study_file import Study


@app.command()
@explained
def demo(to: Annotated[Path, typer.Option("--out", help="Study folder.")] = Path("runs/demo")) -> None:
    """The embedded study from start to report: offline, a few minutes on two CPU cores."""
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.recipes import recipe

    check_place(to, "folder")
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
def run(
    study: Annotated[Path, typer.Argument(help="Study file; `adaptive-lora init` writes one.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Study folder; the same folder again goes on where it stopped."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, parameters, memory and time; write nothing.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the accelerator where there is one.")
    ] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="How often a checkpoint is saved; less often where that takes over 5 % of the time.")
    ] = 30.0,
    deviation: Annotated[
        str | None, typer.Option(help="Why the study file has changed since the folder was locked; the report says so.")
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(help="A folder that `results --out` wrote: its finished runs are taken over into a new --out."),
    ] = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = None,
    resource: ResourceOption = None,
    lease_seconds: LeaseOption = 60.0,
    bank_size: BankSizeOption = None,
    shard: ShardOption = None,
    merged: MergedOption = None,
    pilot: Annotated[
        Path | None,
        typer.Option(
            help="With --dry-run: a study folder or exported results, whose spread tells the power and the cheapest "
            "size; without, the runs of --out, where there are some."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train what is missing of a study. Ctrl-C, SIGTERM and SIGHUP save a checkpoint; the same command goes on."""
    if dry_run:
        _dry_run(study, to, device, pilot, as_json)
        return
    if to is None:
        raise UsageError(f"`run` needs a folder for the results: adaptive-lora run {study} --out runs/{study.stem}")
    from adaptive_lora.cli.checks import check_place

    check_place(to, "folder")
    share, others = shard_of(shard), workers_of(executor, workers, resource, lease_seconds)
    if continue_from is not None:
        from adaptive_lora.study.archive import continue_from as take_over
        from adaptive_lora.study.study_file import load_study

        taken = take_over(continue_from, load_study(study), to, deviation)
        err.print(f"{taken} finished runs taken over from {continue_from}", markup=False, soft_wrap=True)
    if merged is not None:
        _go_on_from(merged, to, share)
    _run(study, to, device, checkpoint_seconds, deviation, bank_size, share, others)
    if as_json:
        tell_status(to, as_json=True)


def _dry_run(study: Path, to: Path | None, device: str | None, pilot: Path | None, as_json: bool) -> None:
    from adaptive_lora.study.study_file import load_study

    parsed = load_study(study)  # before torch is imported: what is wrong with the file is said at once
    spread = _pilot(pilot, to, parsed)
    from adaptive_lora.cli import terminal
    from adaptive_lora.cli.progress import BarProgress, progress_for
    from adaptive_lora.study.estimate import estimate
    from adaptive_lora.study.prepare import prepare

    listener = progress_for(err)
    with listener if isinstance(listener, BarProgress) else contextlib.nullcontext():
        listener.stage("loading model and data")
        prepared = prepare(parsed, device)
        listener.stage("planning every arm at one seed")
        found = estimate(prepared, spread, listener)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        out.print(terminal.estimate_view(found))


def _pilot(folder: Path | None, own: Path | None, study: Study) -> Pilot | None:
    """The spread of a study that was run before, or of the runs that this one has, its tuning runs at first."""
    from adaptive_lora.stats.metrics import metric_of
    from adaptive_lora.study.folder import StudyPaths

    metric = metric_of(study.spec.analysis.model_dump(mode="json"))
    if folder is not None and metric.has_own_records:
        raise UsageError(
            "--pilot tells what a study's own test records can show, and this study is judged by "
            f"{metric.title}, which has records of its own. Leave --pilot out."
        )
    if metric.has_own_records:
        return None
    if folder is None and own is not None and StudyPaths(own).ledger.is_file():
        folder = own
    if folder is None:
        return None
    from adaptive_lora.reporting.exported import open_findings

    margin = study.spec.analysis.margin
    with open_findings(folder) as found:
        return found.pilot_for(margin if isinstance(margin, float) else None, metric)


def _run(
    study_file: Path,
    folder: Path,
    device: str | None,
    checkpoint_seconds: float,
    deviation: str | None = None,
    bank_size: int | None = None,
    shard: Shard | None = None,
    workers: Workers | None = None,
) -> None:
    from adaptive_lora.study.lock import check_decidable
    from adaptive_lora.study.study_file import load_study

    study = load_study(study_file)  # before torch is imported: what is wrong with the file is said at once
    check_decidable(study)
    from adaptive_lora.cli.progress import BarProgress, progress_for
    from adaptive_lora.study.runner import Limits, run_study

    limits = Limits(largest_bank=bank_size, shard=shard)
    listener = progress_for(err)
    with listener if isinstance(listener, BarProgress) else contextlib.nullcontext():
        try:
            with ctrl_c_quits():
                status = run_study(study, folder, listener, device, checkpoint_seconds, deviation, limits, workers)
        except (KeyboardInterrupt, ScoringError, TrainingError):
            remember(folder)
            raise
    remember(folder)
    if shard is not None and not status.finished:
        _tell_shard(shard, study_file, folder, status)
        return
    diverged = f", {status.diverged} diverged" if status.diverged else ""
    err.print(
        f"{status.completed} of {status.expected} runs completed{diverged}; next: adaptive-lora report {folder}",
        markup=False,
    )
    if not status.finished:
        raise AdaptiveLoraError(
            f"{status.left} runs gave no result; `adaptive-lora status "
            f"{folder}` says why, and the same command tries them again."
        )


def _go_on_from(merged: Path, folder: Path, shard: Shard | None) -> None:
    """Brings the results of all shards into the folder of one."""
    from adaptive_lora.study.merge import go_on_from

    if shard is None:
        raise UsageError(f"--merged is for shards; to go on with all of {merged} give --out {merged}")
    taken = go_on_from(merged, folder, shard)
    err.print(f"{taken} finished runs taken over from {merged}", markup=False, soft_wrap=True)


def _tell_shard(shard: Shard, study: Path, folder: Path, status: StudyStatus) -> None:
    """What comes next for a shard that can do no more by itself, or failed."""
    if status.failed:
        raise AdaptiveLoraError(
            f"{status.failed} runs of shard {shard} gave no result; `adaptive-lora status {folder}` says why, and the "
            "same command tries them again."
        )
    err.print(
        f"shard {shard}: {status.done} of {status.expected} runs are here. When all {shard.of} shards have ended: "
        f"adaptive-lora merge FOLDERS... --out MERGED, then go on with one process, adaptive-lora run {study} --out "
        f"MERGED, or with all shards, --shard {shard} --merged MERGED",
        markup=False,
        soft_wrap=True,
    )
