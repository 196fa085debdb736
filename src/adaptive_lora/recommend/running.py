"""From a question to an answer: look, measure, size, run until the time is up, read what there is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import parse_json, write_atomically
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.recommend.advice import UNIFORM, Advice, advise
from adaptive_lora.recommend.material import Material, look_at
from adaptive_lora.recommend.rates import default_rate
from adaptive_lora.recommend.real_run import RealRun, real_run
from adaptive_lora.recommend.sizing import Size, Speed, fitting, largest_bank, least_seconds
from adaptive_lora.recommend.snippet import Pasted, write_for
from adaptive_lora.recommend.speed import measure_speed, uniform_plan
from adaptive_lora.recommend.study_text import MARGIN, Question, study_text
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.adapter_files import check_adapter
from adaptive_lora.study.folder import StudyPaths, make_folder
from adaptive_lora.study.prepare import check_with_peft
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.study.status import study_status
from adaptive_lora.study.study_file import parse_study

KEPT, PLAN, PEFT, STUDY = "recommend.json", "plan.json", "peft", "study"
"""In the folder of an answer: the question, the speed and the size, so that the same command goes on with the same
study; the plan, PEFT's configuration of it, the study folder."""
_FORM = 1


class Basis(StrEnum):
    """What an answer rests on."""

    STUDY = "a study"
    NOT_ASKED = "no training was asked for"
    TOO_SHORT = "no study fits the time"
    NOTHING_YET = "no run finished in the time"
    DIVERGED = "every rate diverged"


@dataclass(frozen=True)
class Request:
    """What was asked, and what it may take."""

    question: Question
    minutes: float
    memory: float | None = None
    """Bytes of the card that the real run is for."""
    tool: str | None = None
    """The training tool whose text is wanted too."""
    device: str | None = None
    began: float = 0.0
    """`time.monotonic()` when the clock was started."""


@dataclass(frozen=True)
class Recommendation:
    """The answer."""

    question: Question
    basis: Basis
    advice: Advice
    plan: RankPlan
    rate: float
    """The advice's, or where none was tuned the default."""
    material: Material
    real: RealRun
    folder: Path
    """With `KEPT`, `PLAN`, `PEFT` and `STUDY`."""
    pasted: Pasted | None
    """For the tool that was named."""
    size: Size | None
    speed: Speed | None
    at_deadline: bool
    """Whether time was up before the study was done."""
    seconds: float

    @property
    def least_minutes(self) -> float | None:
        """In which the smallest study fits, at the speed that was measured."""
        if self.speed is None:
            return None
        least = least_seconds(self.speed, self.material.records, self.material.batch_size)
        return (least + self.speed.start + reserve(least)) / 60


@dataclass
class Deadline:
    """A time at which a study saves what it has and stops."""

    at: float
    clock: Callable[[], float] = time.monotonic
    reached: bool = False

    def __call__(self) -> bool:
        self.reached = self.reached or self.clock() >= self.at
        return self.reached


def reserve(seconds: float) -> float:
    """Of the time there is, what the page and the answer take.

    >>> reserve(120.0), reserve(1200.0)
    (24.0, 60.0)
    """
    return min(60.0, max(10.0, 0.2 * seconds))


def recommend(request: Request, out: Path, listener: ProgressListener) -> Recommendation:
    """Trains in `out` until the time is up, or the study is done, and says what to take.

    A folder that has begun goes on with its study, for as much time again. Without time, or where no study fits it, the
    answer rests on shape and on the committed studies. Raises UsageError; KeyboardInterrupt after a checkpoint.
    """
    kept = _kept(request.question, out)
    listener.stage("reading the model's shape and the data")
    material = look_at(request.question)
    seconds = 60 * request.minutes
    deadline = Deadline(request.began + seconds - reserve(seconds))
    size, speed, rate = kept or (None, None, default_rate(material.outline.total_parameters))
    basis = Basis.STUDY if kept else Basis.NOT_ASKED
    if request.minutes and kept is None:
        speed = measure_speed(request.question, material, request.device, listener)
        size = fitting(deadline.at - time.monotonic(), speed, material.records, material.batch_size)
        basis = Basis.STUDY if size else Basis.TOO_SHORT
        if size:
            make_folder(out)
            _keep(out, request.question, size, speed, rate)
    if request.minutes and size and speed and not _is_finished(out):
        _train(request, out, listener, (size, speed, rate), deadline)
    advice, plan = _read(out, request.question, material) if size else (None, None)
    if advice is None or plan is None:
        basis = without_runs(advice) if size else basis
        advice = _by_default(request.question, advice)
        plan = uniform_plan(material, request.question.rank)
    _write(out, plan, request.question)
    pasted = request.tool and write_for(request.tool, plan, advice.rate or rate, request.question.model, out)
    real = real_run(material, advice.rank, speed.alone if speed else None, request.question.dtype, request.memory)
    took = time.monotonic() - request.began
    return Recommendation(
        request.question, basis, advice, plan, advice.rate or rate, material, real, out, pasted or None, size, speed,
        deadline.reached, took,
    )  # fmt: skip


def without_runs(advice: Advice | None) -> Basis:
    """Of a study without a finished run to compare: it had no time, or nothing is left that could be trained."""
    return Basis.DIVERGED if advice is not None and not advice.unfinished else Basis.NOTHING_YET


def _by_default(question: Question, found: Advice | None) -> Advice:
    """Uniform at the middle, with the rate that was tuned where that much is known."""
    middle = f"rank:{question.rank}"
    return found or Advice(rank=question.rank, strategy=UNIFORM, middle=middle, rate=None, margin=MARGIN)


def _train(
    request: Request, out: Path, listener: ProgressListener, kept: tuple[Size, Speed, float], deadline: Deadline
) -> None:
    """Runs the study until it is done or the deadline is there; Ctrl-C is passed on."""
    from adaptive_lora.study.runner import Limits, run_study

    size, speed, rate = kept
    study = parse_study(study_text(request.question, size, rate), StudyPaths(out / STUDY).study_file)
    looks = f", judged after {', '.join(map(str, size.looks))}" if size.looks else ", without verdicts"
    listener.stage(
        f"the study that fits: {size.steps} updates of {size.batch_size} records, {size.runs_a_seed} runs a seed, "
        f"{size.seeds} seeds at most{looks}; it stops in {max(0.0, deadline.at - time.monotonic()):.0f} s at the latest"
    )
    limits = Limits(deadline, largest_bank(size, 60 * request.minutes, speed))
    try:
        run_study(study, out / STUDY, listener, request.device, limits=limits)
    except KeyboardInterrupt:
        if not deadline.reached:
            raise
        listener.stage("time is up: saved a checkpoint")


def _is_finished(out: Path) -> bool:
    return StudyPaths(out / STUDY).ledger.is_file() and study_status(out / STUDY).finished


def _read(out: Path, question: Question, material: Material) -> tuple[Advice | None, RankPlan | None]:
    """What the study in a folder advises, and the plan; no plan where no run of uniform ranks has finished."""
    if not StudyPaths(out / STUDY).ledger.is_file():
        return None, None
    with open_findings(out / STUDY) as found:
        advice = advise(found, MARGIN)
        if not advice.judged:
            return replace(advice, rank=question.rank, strategy=UNIFORM), None
        if advice.strategy == UNIFORM:
            return advice, uniform_plan(material, advice.rank)
        return advice, _plan_of(found, advice, out)


def _plan_of(found: Findings, advice: Advice, out: Path) -> RankPlan:
    """That of the strategy's first finished run."""
    runs = found.runs
    own = runs[
        (runs["arm"] == advice.strategy) & (runs["budget"] == advice.middle) & (runs["phase"] == Phase.EVALUATION)
    ]
    done = own[own["status"] == Status.COMPLETED].sort_values("seed")
    adapter = StudyPaths(out / STUDY).adapter(str(done.iloc[0]["run_id"]))
    check_adapter(adapter)
    return RankPlan.load(adapter / "plan.json")


def _write(out: Path, plan: RankPlan, question: Question) -> None:
    """The plan, and PEFT's configuration of it, as PEFT was seen to build it."""
    from adaptive_lora.training.adapter import save_config

    check_with_peft(plan, question.model)
    make_folder(out)
    plan.save(out / PLAN)
    save_config(plan.to_lora_config(), out / PEFT)


def _keep(out: Path, question: Question, size: Size, speed: Speed, rate: float) -> None:
    content = {"form": _FORM, "question": asdict(question), "size": asdict(size), "speed": asdict(speed), "rate": rate}
    write_atomically(out / KEPT, json.dumps(content, indent=2) + "\n")


def _kept(question: Question, out: Path) -> tuple[Size, Speed, float] | None:
    """What the folder began with; None where it is new, StudyFolderError where it is about something else."""
    path = out / KEPT
    try:
        found: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        before, size, speed = Question(**found["question"]), Size(**found["size"]), Speed(**found["speed"])
        rate = float(found["rate"])
    except FileNotFoundError:
        if StudyPaths(out).ledger.exists() or StudyPaths(out / STUDY).ledger.exists():
            raise StudyFolderError(
                f"{out} holds a study that `recommend` did not begin; name another folder with --out."
            ) from None
        return None
    except (ValueError, KeyError, TypeError):
        raise StudyFolderError(f"{path}: file is corrupt. Name a new folder with --out.") from None
    if before != question:
        differ = ", ".join(f"{k} {v!r} there, {getattr(question, k)!r} here" for k, v in asdict(before).items()
                           if getattr(question, k) != v)  # fmt: skip
        raise StudyFolderError(
            f"{out} answers another question: {differ}. Name another folder with --out, or ask the same."
        )
    return size, speed, rate
