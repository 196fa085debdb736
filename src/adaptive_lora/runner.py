"""From a study file to results: what is pending is planned, trained, evaluated and recorded, one run after another.

Everything a run needs follows from its spec, so that a study that was cut at any moment goes on by the
same command and ends in the same results.
"""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.judging.rates import Outcome, chosen_rates, evaluations_expected, outcome_of
from adaptive_lora.material import Material, prepare
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.record.folder import StudyPaths, exclusive
from adaptive_lora.record.ledger import BASE, Ledger, SplitResult, create_or_open, open_to_read
from adaptive_lora.record.runs import Phase, RunSpec, Status, count_runs, evaluation_runs, tuning_runs
from adaptive_lora.record.spec import Study
from adaptive_lora.training.adapter import attached, save_adapter
from adaptive_lora.training.checkpoint import Progress, StepRecord
from adaptive_lora.training.evaluate import Evaluation, evaluate
from adaptive_lora.training.reference import Diverged, Keeping, train

ENGINE = "reference"


class Watcher(Protocol):
    """Who is told how a study comes along; the default is told and says nothing."""

    def stage(self, text: str) -> None:
        """Something over a second begins."""

    def planned(self, done: int, total: int) -> None:
        """How many runs stand and how many there will be."""

    def begin(self, label: str, steps: int) -> None:
        """A run begins."""

    def step(self, record: StepRecord) -> None:
        """One update of the current run."""

    def end(self, label: str, outcome: str) -> None:
        """A run is over, for better or worse."""


class Silent:
    """A watcher that says nothing."""

    def stage(self, text: str) -> None: ...
    def planned(self, done: int, total: int) -> None: ...
    def begin(self, label: str, steps: int) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def end(self, label: str, outcome: str) -> None: ...


def run_study(
    study: Study,
    out: Path,
    watcher: Watcher | None = None,
    device: str = "cpu",
    checkpoint_seconds: float = 30.0,
) -> Outcome:
    """Trains what is missing of `study` in the folder `out`, and says how it stands.

    Raises UsageError before anything is written if the study cannot work or the folder is not its own;
    KeyboardInterrupt after keeping the current run safe. Runs that fail are recorded and tried again by
    the next call; the others go on.
    """
    watcher = watcher or Silent()
    check_folder(study, out)
    watcher.stage("loading model and data")
    material = prepare(study, device)
    for warning in material.warnings():
        watcher.stage(f"warning: {warning}")
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out), interruptible(watcher) as stop, contextlib.ExitStack() as stack:
        check_folder(study, out, material)  # again: another process may have been here while we loaded
        ledger = stack.enter_context(contextlib.closing(create_or_open(out)))
        ledger.set_facts({**study_facts(study), **material.facts(), **ledger.facts()})
        write_atomically(StudyPaths(out).study_file, study.text)
        worker = _Worker(material, ledger, StudyPaths(out), watcher, stop, checkpoint_seconds)
        worker.evaluate_base()
        worker.run_all(list(tuning_runs(study.spec)))
        chosen = chosen_rates(study.spec, ledger)
        expected = {**count_runs(study.spec), Phase.EVALUATION: evaluations_expected(study.spec, ledger)}
        ledger.set_facts({"chosen_rates": [[*key, rate] for key, rate in chosen.items()], "expected_runs": expected})
        worker.run_all(list(evaluation_runs(study.spec, chosen)))
        return outcome_of(study.spec, ledger)


def check_folder(study: Study, out: Path, material: Material | None = None) -> None:
    """StudyFolderError unless `out` is new, empty, or already this study's, on the same model and data."""
    paths = StudyPaths(out)
    if blocking := [place for place in (out, *out.parents) if place.exists() and not place.is_dir()]:
        raise StudyFolderError(f"{blocking[0]} is a file; name a folder for the study.")
    if not paths.ledger.exists():
        if out.is_dir() and any(path.name != paths.lock.name for path in out.iterdir()):
            raise StudyFolderError(f"{out} is not empty and holds no study. Name a new folder with --out.")
        return
    with contextlib.closing(open_to_read(out, begun=False)) as ledger:
        facts = ledger.facts()
    if facts and facts.get("identity") != study.identity:
        differences = "; ".join(_differences(facts["spec"], study.spec.model_dump(mode="json")))
        raise StudyFolderError(
            f"{out} belongs to another study ({facts['name']!r}). It differs from {study.path}: {differences}. "
            "Name another folder with --out, or go back to the study file that the folder was made with "
            f"({paths.study_file})."
        )
    if facts and material is not None and facts["material"] != material.context():
        differences = "; ".join(_differences(facts["material"], material.context()))
        raise StudyFolderError(
            f"The model or the data of the study in {out} have changed since it began: {differences}. "
            "Results on both would be mixed; name a new folder with --out, or bring the old files back."
        )


def study_facts(study: Study) -> dict[str, Any]:
    """What the ledger keeps of the study file and of what runs it."""
    packages = ("adaptive-lora", "torch", "transformers", "peft", "numpy")
    return {
        "name": study.spec.name,
        "identity": study.identity,
        "spec": study.spec.model_dump(mode="json"),
        "text": study.text,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "expected_runs": {phase.value: count for phase, count in count_runs(study.spec).items()},
    }


@contextlib.contextmanager
def interruptible(watcher: Watcher) -> Iterator[Callable[[], bool]]:
    """A question "shall we stop?" that the first Ctrl-C answers with yes; the second stops at once."""
    asked = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        watcher.stage("keeping the current run safe; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class _Worker:
    """One process at work on one study."""

    material: Material
    ledger: Ledger
    paths: StudyPaths
    watcher: Watcher
    should_stop: Callable[[], bool]
    checkpoint_seconds: float

    def evaluate_base(self) -> None:
        """The frozen model on both splits, once a study."""
        if (BASE, "test") in self.ledger.totals():
            return
        self.watcher.stage("evaluating the frozen model")
        base = self.material.base
        splits = {"validation": self.material.splits.validation, "test": self.material.splits.test}
        self.ledger.store_base(
            {
                name: _result(evaluate(base.model, examples, base.device, self.should_stop))
                for name, examples in splits.items()
            }
        )

    def run_all(self, runs: Sequence[RunSpec]) -> None:
        """Trains what is not finished among `runs`, in order."""
        context = self.material.context()
        by_id = {run.run_id(context): run for run in runs}
        self.ledger.register(by_id)
        for run_id, run in by_id.items():
            outcome = outcome_of(self.material.study.spec, self.ledger)
            self.watcher.planned(outcome.completed + outcome.diverged, outcome.total)
            if not self.ledger.status_of(run_id).is_finished:
                if self.should_stop():
                    raise KeyboardInterrupt
                self._run(run_id, run)
        outcome = outcome_of(self.material.study.spec, self.ledger)
        self.watcher.planned(outcome.completed + outcome.diverged, outcome.total)

    def _run(self, run_id: str, run: RunSpec) -> None:
        label = f"{run.phase} {run.arm.name} {run.budget} seed {run.seed} rate {run.learning_rate:g}"
        options = self.material.training_options(run)
        self.ledger.begin(run_id, ENGINE, str(self.material.base.device), options.steps)
        self.watcher.begin(label, options.steps)
        try:
            outcome = self._train(run_id, run)
        except Diverged as error:
            self.ledger.fail(run_id, Status.DIVERGED, str(error), error.step)
            self.paths.checkpoint(run_id).unlink(missing_ok=True)
            outcome = f"diverged at step {error.step}"
        except Exception as error:
            # One bad run must not take the others with it; the reason stands in the ledger.
            self.ledger.fail(run_id, Status.FAILED, f"{type(error).__name__}: {error}")
            outcome = f"failed: {type(error).__name__}: {error}"
        self.watcher.end(label, outcome)

    def _train(self, run_id: str, run: RunSpec) -> str:
        examples = self.material.training_examples(run.seed)
        began = time.monotonic()
        plan = self.material.plan(run, examples)
        plan_seconds = time.monotonic() - began
        options = self.material.training_options(run)
        checkpoint = self.paths.checkpoint(run_id)
        keeping = Keeping(checkpoint, run_id, self.checkpoint_seconds, self._tell_ledger(run_id))
        with attached(self.material.base, plan, run.seed, options.dropout) as model:
            progress = train(model, examples, options, run.seed, keeping, self.watcher.step, self.should_stop)
            results = self._evaluate(model, run)
            self._keep_adapter(model, run_id, plan)
        self._record(run_id, plan, progress, results, plan_seconds)
        checkpoint.unlink(missing_ok=True)
        return ", ".join(f"{split} loss {result.loss:.4f}" for split, result in results.items())

    def _tell_ledger(self, run_id: str) -> Callable[[int], None]:
        return lambda steps_done: self.ledger.record_step(run_id, steps_done)

    def _evaluate(self, model: Any, run: RunSpec) -> dict[str, Evaluation]:
        """Validation always; test for evaluation runs alone, so that nothing is ever tuned on it."""
        splits = {"validation": self.material.splits.validation}
        if run.phase == Phase.EVALUATION:
            splits["test"] = self.material.splits.test
        results = {}
        for name, examples in splits.items():
            results[name] = evaluate(model, examples, self.material.base.device, self.should_stop)
            if not math.isfinite(results[name].loss):
                raise Diverged(self.material.training_options(run).steps, f"{name} loss")
        return results

    def _keep_adapter(self, model: Any, run_id: str, plan: RankPlan) -> None:
        folder = self.paths.adapter(run_id)
        temporary = folder.with_name(f".{run_id}")
        shutil.rmtree(temporary, ignore_errors=True)
        save_adapter(model, temporary, self.material.base)
        plan.save(temporary / "plan.json")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)

    def _record(
        self,
        run_id: str,
        plan: RankPlan,
        progress: Progress,
        results: Mapping[str, Evaluation],
        plan_seconds: float,
    ) -> None:
        names = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
        self.ledger.complete(
            run_id,
            plan.to_json(),
            {name: [float(getattr(record, name)) for record in progress.curve] for name in names},
            {split: _result(result) for split, result in results.items()},
            {"plan": plan_seconds, "train": progress.train_seconds},
        )


def _result(evaluation: Evaluation) -> SplitResult:
    return SplitResult(evaluation.nll, evaluation.tokens, evaluation.exact)


def _differences(old: Any, new: Any, at: str = "") -> Iterable[str]:
    """`data.train: 200 there, 100 here` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{at}[{index}]")
    elif old != new:
        yield f"{at}: {old!r} there, {new!r} here"
