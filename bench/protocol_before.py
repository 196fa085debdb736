"""The protocol before, on the same arms, budgets and steps: what it ran, for `efficiency.py`."""

from __future__ import annotations

from typing import Any

from adaptive_lora.study.matrix import StudyMatrix, matrix_of
from adaptive_lora.study.study_file import Study

OLD_RATES = {"alpaca-babyllama-full": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}
THREE_RATES = [1e-3, 3e-3, 1e-2]
OLD_SEEDS, OLD_TUNING = list(range(10)), [1000, 1001, 1002]
ALL_CONTROLS = ("random", "shuffled", "twin", "half", "double", "compute")


def before(study: Study, controls: tuple[str, ...] = ALL_CONTROLS) -> StudyMatrix:
    """The same arms and budgets under the protocol before."""
    spec = study.spec
    old = {
        "seeds": {"evaluation": OLD_SEEDS, "tuning": OLD_TUNING},
        "train": {**said(spec.train), "learning_rate": old_rates(spec.name), "tune": "every-arm"},
        "controls": list(controls),
    }
    return matrix_of(type(spec).model_validate({**said(spec), **old}))


def old_rates(name: str) -> list[float]:
    return OLD_RATES.get(name, THREE_RATES)


def old_steps(matrix: StudyMatrix) -> dict[str, int]:
    rates = {cell.key: 1.0 for cell in matrix.cells}
    return {
        "tuning": steps(matrix.tuning_runs(old_rates(matrix.spec.name))),
        "evaluation": steps(matrix.evaluation_runs(rates)),
    }


def said(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = part.model_dump(mode="python", exclude_unset=True)
    return found


def steps(runs: Any) -> int:
    """Adapter-steps of runs."""
    return sum(run.cell.steps for run in runs)
