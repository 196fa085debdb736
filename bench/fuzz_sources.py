"""What `fuzz_inputs.py` damages: small sound inputs of every kind, and how the package reads each of them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPORTS = Path(__file__).parent.parent / "results"
RECORDS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": f"Name a metal, {i}", "input": "", "output": f"Tin {i}"} for i in range(4)],
    "questions": [{"question": f"{i} + 1?", "answer": i + 1, "context": ["sums", "small"]} for i in range(4)],
    "choices": [{"question": "Which?", "choices": {"label": ["A", "B"], "text": ["tin", "oak"]}, "answerKey": "A"}] * 3,
    "chat": [
        {"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Weather {i}?"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": "{\"at\": \"Kiel\"}"}}]},
            {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "Rain."}]}
        for i in range(3)
    ],
    "preferences": [{"prompt": f"Hi {i}", "chosen": "Hello.", "rejected": "What?"} for i in range(3)],
    "turns": [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"Yo {i}"}]} for i in range(3)
    ],
    "text": [{"text": f"All tides, {i}."} for i in range(3)],
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One kind of input."""

    make: Callable[[Path], list[Path]]
    """Writes sound inputs under a folder, each in one of its own, and returns these."""
    read: Callable[[Path], None]
    """Reads the input in a folder as the package does; raises what it raises."""


def _folders(root: Path, files: dict[str, dict[str, str]]) -> list[Path]:
    for name, own in files.items():
        for file, text in own.items():
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            (root / name / file).write_text(text, encoding="utf-8")
    return [root / name for name in files]


def make_studies(root: Path) -> list[Path]:
    from adaptive_lora.recipes import list_recipes, recipe

    return _folders(root, {name: {"study.yaml": recipe(name).read_text()} for name in list_recipes()})


def read_study(place: Path) -> None:
    from adaptive_lora.study.study_file import load_study, portable_text

    study = load_study(place / "study.yaml")
    assert len(study.identity) == 64 and portable_text(study)


def make_data(root: Path) -> list[Path]:
    import pyarrow
    import pyarrow.parquet

    found = []
    for name, rows in RECORDS.items():
        lines = "\n".join(map(json.dumps, rows))
        found += _folders(root, {f"{name}-1": {"data.json": json.dumps(rows)}, f"{name}-2": {"data.jsonl": lines}})
        for suffix in ("csv", "parquet"):
            (root / f"{name}-{suffix}").mkdir()
            found.append(root / f"{name}-{suffix}")
        with (found[-2] / "data.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {k: v if isinstance(v, str | int) else json.dumps(v) for k, v in row.items()} for row in rows
            )
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), found[-1] / "data.parquet")
    return found


def read_data(place: Path) -> None:
    from adaptive_lora.data.sources import load_records

    path = next(place.glob("data*"), place / "data.json")
    records = load_records(str(path)).records
    assert records and all(record.content_key() for record in records)


def make_plans(root: Path) -> list[Path]:
    from adaptive_lora.planning.modules import ModuleShape
    from adaptive_lora.planning.plan import RankPlan, Scaling

    modules = tuple(ModuleShape(f"h.{i}.mlp.up", "mlp", i, 8, 12) for i in range(3))
    told = {"model": "demo", "seed": 3, "plan_seconds": 0.1, "warnings": ["one"]}
    plan = RankPlan("uniform", 240, modules, {m.name: 4 for m in modules}, Scaling(), {}, {"h.0.mlp.up": 0.5}, told)
    return _folders(root, {"plan": {"plan.json": json.dumps(plan.to_json())}})


def read_plan(place: Path) -> None:
    from adaptive_lora.planning.plan import RankPlan

    plan = RankPlan.load(place / "plan.json")
    assert json.dumps(plan.to_json()) and plan.trainable_parameters > 0
    assert all(plan.alpha_of(m.name) == plan.alpha_of(m.name) for m in plan.modules)


def make_checkpoints(root: Path) -> list[Path]:
    import torch

    from adaptive_lora.training.checkpoint import Progress, StepRecord, write_checkpoint

    curve = tuple(StepRecord(i, 2.5 - i / 10, 1.0, 1e-3, 40) for i in range(3))
    for name, progress in (("begun", Progress()), ("half", Progress(3, 1.5, curve))):
        tensors = {f"parameter/{key}": torch.ones(2, 3) for key in "ab"}
        write_checkpoint(root / name / "run.safetensors", "run", progress, tensors)
    return [root / "begun", root / "half"]


def read_checkpoint(place: Path) -> None:
    from adaptive_lora.errors import StudyFolderError
    from adaptive_lora.training import checkpoint

    try:
        found = checkpoint.read_checkpoint(place / "run.safetensors", "run")
    except checkpoint.DamagedCheckpoint as error:  # which the run takes for none, and goes on from the one before
        raise StudyFolderError(str(error)) from None
    if found is None:
        raise StudyFolderError("no checkpoint: the run starts over")


def make_exports(root: Path) -> list[Path]:
    for name, left_out in (("demo", ()), ("demo-archive", ())):
        shutil.copytree(EXPORTS / "demo", root / name, ignore=shutil.ignore_patterns("memory-bank", *left_out))
    return [root / "demo"]


def read_export(place: Path) -> None:
    from adaptive_lora.reporting.exported import open_findings
    from adaptive_lora.reporting.memory.memory_bank import memory_texts
    from adaptive_lora.study.results import load_results
    from adaptive_lora.study.status import study_status

    load_results(place)
    study_status(place)
    with open_findings(place) as found:
        assert memory_texts(found, False)


def make_results(root: Path) -> list[Path]:
    rows = [
        {"arm": arm, "seed": seed, "record": i, "value": round((i * k % 7) / 7 + seed / 10, 3), "weight": 2}
        for k, arm in ((2, "uniform"), (3, "other")) for seed in (0, 1) for i in range(5)
    ]  # fmt: skip
    table = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    lines = "\n".join(map(json.dumps, rows))
    suite = {
        f"{arm}-{seed}.json": json.dumps({
            "run_info": {"experiment_name": arm, "train_config": {"seed": seed, "max_steps": 5}},
            "train_info": {"status": "success", "metrics": [{"step": 5, "test accuracy": 0.5 + seed / 10}]},
            "meta_info": {"dataset_info": {"gsm8k": {}}},
        })
        for arm in ("uniform", "other") for seed in (0, 1)
    }  # fmt: skip
    harness: dict[str, str] = {}
    for arm in ("uniform", "other"):
        date = "2026-11-01T10-00-00.0"
        samples = [
            {"doc_id": i, "doc": {"q": f"{i}?"}, "filter": "none", "metrics": ["acc"], "acc": float(i % 2),
             "doc_hash": str(i), "prompt_hash": str(i), "target_hash": "t"}
            for i in range(5)
        ]  # fmt: skip
        harness[f"{arm}/samples_task_{date}.jsonl"] = "\n".join(map(json.dumps, samples))
        told = {"higher_is_better": {"task": {"acc": True}}, "config": {"model_args": {"peft": arm}}, "results": {}}
        harness[f"{arm}/results_{date}.json"] = json.dumps(told)
    return _folders(root, {"csv": {"t.csv": table}, "lines": {"t.jsonl": lines}, "peft": suite, "harness": harness})


def read_results(place: Path) -> None:
    from adaptive_lora.foreign.judging import Asked, judge_runs
    from adaptive_lora.foreign.sources import Reading, read_runs
    from adaptive_lora.reporting.judged.tables import verdicts_json

    given = [str(path) for path in sorted(place.iterdir())]
    runs = read_runs(given, Reading("loss", "lower" if any(p.endswith(("csv", "jsonl")) for p in given) else None))
    found = judge_runs(runs, Asked("uniform"))
    assert verdicts_json(found, "uniform", [])


SOURCES = {
    "study": Source(make_studies, read_study),
    "data": Source(make_data, read_data),
    "plan": Source(make_plans, read_plan),
    "checkpoint": Source(make_checkpoints, read_checkpoint),
    "export": Source(make_exports, read_export),
    "results": Source(make_results, read_results),
}
