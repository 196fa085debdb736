"""Results of PEFT's own method comparison (huggingface/peft, `method_comparison/*/results/*.json`).

One file is one run of one seed with a test metric over all items: no score by item is kept. Runs of several seeds of
one experiment can be judged over seeds, on these test items; one run each can be set side by side and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.lines import number, part, shortened
from adaptive_lora.foreign.metrics import higher_is_better
from adaptive_lora.foreign.scores import Question, Run
from adaptive_lora.study.seeds import check_seed

_NO_METRIC = ("step", "train loss", "train samples", "train total tokens", "train time", "eval time")
_CHOSEN = ("optimizer_kwargs", "seed")
"""Settings that arms choose for themselves."""


def is_peft_result(told: Mapping[str, Any]) -> bool:
    """Whether a JSON object is such a result."""
    return "run_info" in told and "train_info" in told


def read_peft(path: Path, told: Mapping[str, Any], better: str | None = None) -> Run:
    """One run, with the metrics of its last evaluation: the test."""
    info, train = part(told, "run_info", path), part(told, "train_info", path)
    name = str(info.get("experiment_name") or path.stem)
    metrics = train.get("metrics")
    if train.get("status") != "success" or not metrics:
        raise UsageError(f"{path}: the run of {name} ended as {train.get('status')!r}, and has no result to judge.")
    if not isinstance(metrics, list) or not isinstance(last := metrics[-1], Mapping):
        raise UsageError(f"{path}: `metrics` is {shortened(metrics)}; a list of objects is needed.")
    known = {key: value for key, value in last.items() if key not in _NO_METRIC and isinstance(value, int | float)}
    first = [key for key in known if key.startswith("test ")]
    if not first:
        raise UsageError(f"{path}: its last evaluation has no `test ...` metric; it has: {', '.join(last)}.")
    task = "+".join(part(part(told, "meta_info", path), "dataset_info", path))
    means = {
        Question(task, key, higher_is_better(key, better)): number(known[key], f"{path}: `{key}`")
        for key in [*first, *(key for key in ("forgetting", "drift") if key in known)]
    }
    config = part(info, "train_config", path)
    settings = {key: str(value) for key, value in config.items() if key not in _CHOSEN}
    seed = config.get("seed")
    return Run(name, None if seed is None else check_seed(seed), str(path), means=means, settings=settings)
