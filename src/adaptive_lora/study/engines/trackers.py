"""Finished runs, logged to the experiment trackers that a study names, through accelerate's.

The ledger is the record; a tracker is a courtesy, and one that fails takes no run with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.study_file import Study
from adaptive_lora.training.checkpoint import StepRecord


def check_trackers(study: Study) -> None:
    """StudyFileError where a tracker is named whose package is not installed."""
    if not study.spec.tracking:
        return
    from accelerate.tracking import get_available_trackers

    there = {str(getattr(kind, "value", kind)) for kind in get_available_trackers()}
    if missing := [name for name in study.spec.tracking if name not in there]:
        message = f"{', '.join(missing)} is not installed; pip install {' '.join(missing)}"
        raise StudyFileError(str(study.path), [study.complaint(("tracking",), message)])


@dataclass(frozen=True)
class Trackers:
    """Where finished runs are logged; nowhere by default."""

    names: Sequence[str] = ()
    study: str = ""
    folder: Path = Path()
    """For trackers that write files."""
    warn: Callable[[str], None] = print
    """Called where a tracker failed."""

    def log(self, run: Run, curve: Sequence[StepRecord], losses: Mapping[str, float]) -> None:
        """One tracked run: its settings, training loss and gradient norm by step, and its losses by split."""
        for name in self.names:
            try:
                self._log(name, run, curve, losses)
            except Exception as error:  # whatever a tracker does, the ledger has the run
                self.warn(f"warning: {name} did not take {run.label}: {type(error).__name__}: {error}")

    def _log(self, name: str, run: Run, curve: Sequence[StepRecord], losses: Mapping[str, float]) -> None:
        tracker = self._opened(name, run.label)
        try:
            tracker.store_init_configuration(
                {
                    "arm": run.arm.name, "strategy": run.arm.strategy or "ranks", "budget": run.budget,
                    "scaling": run.cell.scaling.rule, "learning_rate": run.learning_rate, "seed": run.seed,
                    "phase": run.phase.value, "replica": run.replica,
                }
            )  # fmt: skip
            for record in curve:
                values = {"train_loss": record.loss, "gradient_norm": record.gradient_norm}
                tracker.log({**values, "learning_rate": record.learning_rate}, step=record.step)
            tracker.log({f"{split}_loss": loss for split, loss in losses.items()}, step=len(curve))
        finally:
            tracker.finish()

    def _opened(self, name: str, label: str) -> Any:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # trackers write on the main process alone and ask it which they are on
        arguments: dict[str, Any] = {"run_name": self.study, "name": label}
        if name == "tensorboard":
            arguments = {"run_name": label.replace(" ", "_").replace(":", "-"), "logging_dir": str(self.folder)}
        elif name == "mlflow":
            arguments = {"experiment_name": self.study, "run_name": label, "logging_dir": str(self.folder)}
        tracker = LOGGER_TYPE_TO_CLASS[name](**arguments)
        if hasattr(tracker, "start"):  # earlier versions of accelerate start on construction
            tracker.start()
        return tracker
