"""Runs that lm-evaluation-harness logged: `lm_eval run ... --log_samples --output_path FOLDER` (read at 0.4.13).

A run is a folder with a `samples_TASK_DATE.jsonl` a task, one line an item and filter, and `results_DATE.json`.
Metrics are named as in the harness's table, with their filter behind a comma where it has a name:
`exact_match,strict-match`. Log likelihoods become nats, so that their difference is one of losses; perplexities
are exponentials of means and are judged by those means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.lines import json_lines, number, parsed, part, shortened
from adaptive_lora.foreign.metrics import higher_is_better
from adaptive_lora.foreign.scores import Item, Question, Run

_FILE = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
           "prompt_hash", "target_hash", "name", "schema_version"}  # fmt: skip
"""Keys of a line that are no metric."""
_SUMMED = {"word_perplexity": "nats per word", "byte_perplexity": "nats per byte", "bits_per_byte": "nats per byte"}
"""Metrics logged as [log likelihood, weight], and what their means are in."""
_SETTINGS = ("model_dtype", "batch_size", "num_fewshot", "limit", "fewshot_seed", "gen_kwargs")


def is_samples(path: Path) -> bool:
    """Whether a file is one of the harness's, by its name or by its first line."""
    if path.suffix != ".jsonl":
        return False
    if path.name.startswith("samples_"):
        return True
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return '"doc_id"' in file.readline(10_000_000)


def read_lm_eval(path: Path, cluster: str | None = None, better: str | None = None, wanted: str | None = None) -> Run:
    """One run: a folder of its files, or the samples of one task.

    `cluster` names a field of the documents. `better` says `higher` or `lower` where neither the harness nor the
    metric's name does; without it such a metric is left out, or refused where it is the one that is `wanted`.
    """
    files = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"))
    _check_one_run(path, files)
    told = _results(files[0])
    items: dict[Question, dict[str, Item]] = {}
    unusable: set[str] = set()
    for file in files:
        found = _FILE.fullmatch(file.name)
        task = found["task"] if found else file.stem.removeprefix("samples_")
        higher = part(part(told, "higher_is_better", path), task, path)
        _add(items, unusable, _Task(task, file, higher, cluster, better, wanted))
    if not items:
        why = f" ({', '.join(sorted(unusable))}: no means over items, or nothing says which way is better)"
        why = why if unusable else ""
        raise UsageError(f"{path} has no metric that can be judged item by item{why}.")
    config = part(told, "config", path)
    settings = {key: str(config[key]) for key in _SETTINGS if key in config}
    return Run(_name(told) or files[0].parent.name, None, str(path), items, settings=settings, named=False)


@dataclass(frozen=True)
class _Task:
    """A file of one task's samples."""

    name: str
    file: Path
    higher: Mapping[str, bool]
    """What the harness says of its metrics."""
    cluster: str | None
    better: str | None
    wanted: str | None

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where it stands, and what it says."""
        for where, line in json_lines(self.file):
            if "doc_id" not in line:
                raise UsageError(f"{where}: a line without `doc_id` is none of lm-evaluation-harness's samples.")
            yield where, line

    def question(self, metric: str, label: str) -> Question | None:
        """What a metric asks; None where nothing says which way is better."""
        if metric in _SUMMED or metric == "perplexity":
            return Question(self.name, label, False, _SUMMED.get(metric, "nats per item"))
        known = self.higher.get(metric)
        if known is not None and not isinstance(known, bool):
            raise UsageError(f"{self.file}: `higher_is_better` of {metric} is {shortened(known)}, not true or false.")
        try:
            return Question(self.name, label, higher_is_better(metric, self.better) if known is None else known)
        except UsageError:
            if self.wanted in (metric, label) or self.better is not None:
                raise
            return None

    def cluster_of(self, where: str, line: Mapping[str, Any]) -> str:
        """The field of the document that was asked for, else the document itself: one that is there twice is one."""
        if self.cluster is None:
            return str(line.get("doc_hash", ""))
        document = line.get("doc")
        if not isinstance(document, dict) or self.cluster not in document:
            known = ", ".join(document) if isinstance(document, dict) else "none"
            raise UsageError(f"{where}: documents have no field {self.cluster!r} for --cluster; they have: {known}.")
        return json.dumps(document[self.cluster], sort_keys=True)


def _add(items: dict[Question, dict[str, Item]], unusable: set[str], task: _Task) -> None:
    for where, line in task.lines():
        filtered = str(line.get("filter", "none"))
        metrics = line.get("metrics") or [key for key in line if key not in _FIELDS]
        if not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
            raise UsageError(f"{where}: `metrics` is {shortened(metrics)}; a list of names is needed.")
        for metric in metrics:
            label = metric if filtered == "none" else f"{metric},{filtered}"
            scored, question = _score(where, metric, line.get(metric)), task.question(metric, label)
            if scored is None or question is None:
                unusable.add(metric)
                continue
            own = items.setdefault(question, {})
            record = str(line["doc_id"])
            if record in own:
                raise UsageError(
                    f"{where}: item {record} is there a second time for {label}. Are two runs in one file?"
                )
            hashes = (str(line.get(key, "")) for key in ("doc_hash", "prompt_hash"))
            own[record] = Item(*scored, task.cluster_of(where, line), *hashes)


def _score(where: str, metric: str, value: Any) -> tuple[float, float] | None:
    """(mean, weight); None for a metric whose items have no mean, such as F1 over (truth, prediction)."""
    if metric in _SUMMED and isinstance(value, list) and len(value) == 2:
        summed, weight = (number(part, f"{where}: `{metric}`") for part in value)
        if weight <= 0:
            raise UsageError(f"{where}: `{metric}` has a weight of {weight:g}; an item without text has no mean.")
        return -summed / weight, weight
    if isinstance(value, list | dict | str):
        return None
    found = number(value, f"{where}: `{metric}`")
    return (-found if metric == "perplexity" else found), 1.0


def _check_one_run(path: Path, files: list[Path]) -> None:
    if not files:
        raise UsageError(
            f"{path} has no samples_*.jsonl. Let lm-evaluation-harness log them: "
            "`lm_eval run ... --log_samples --output_path FOLDER`."
        )
    seen: dict[str, Path] = {}
    for file in files:
        found = _FILE.fullmatch(file.name)
        task = found["task"] if found else file.name
        if task in seen:
            raise UsageError(
                f"{path} holds two runs of {task}: {seen[task]} and {file}. Name one file, or each run's own folder."
            )
        seen[task] = file
    if len({file.parent for file in files}) > 1:
        folders = ", ".join(sorted({str(file.parent) for file in files}))
        raise UsageError(f"{path} holds runs of several models. Name each folder: {folders}.")


def _results(samples: Path) -> Mapping[str, Any]:
    """What the harness wrote beside the samples; empty without that file."""
    found = _FILE.fullmatch(samples.name)
    path = samples.with_name(f"results_{found['date']}.json") if found else samples
    return parsed(path) if found and path.is_file() else {}


def _name(told: Mapping[str, Any]) -> str | None:
    """Of the adapter, else of the model."""
    arguments = part(told, "config", "results").get("model_args") or {}
    if not isinstance(arguments, str | Mapping):
        return None
    if isinstance(arguments, str):
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    chosen = arguments.get("peft") or arguments.get("pretrained") or told.get("model_name")
    return Path(str(chosen)).name if chosen else None
