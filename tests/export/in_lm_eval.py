"""Log-likelihoods of a task by lm-evaluation-harness, of a model alone, with adapters and merged: JSON on stdout.

Run in a process of its own (`python -m tests.export.in_lm_eval FOLDER`), for a folder with `base`, `peft`, `padded` and
`merged`. The task is written into it, and so are the libraries' caches.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

QUESTIONS = {"The capital of France is": " Paris", "Two and two is": " four"}


def task(file: Path) -> dict[str, Any]:
    """As a task's YAML file would have it."""
    lines = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS.items()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "task": "tiny", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "loglikelihood", "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip


def main(folder: Path) -> None:
    os.environ["HF_HOME"] = str(folder / "cache")
    import lm_eval

    asked, scored = task(folder / "questions.jsonl"), {}
    for name in ("base", "peft", "padded", "merged"):
        which = {"pretrained": str(folder / ("merged" if name == "merged" else "base")), "dtype": "float32"}
        if name in ("peft", "padded"):
            which["peft"] = str(folder / name)
        found = lm_eval.simple_evaluate(
            model="hf", model_args=which, tasks=[dict(asked)], device="cpu", batch_size=1, bootstrap_iters=0,
            log_samples=True,
        )  # fmt: skip
        scored[name] = [sample["resps"][0][0][0] for sample in found["samples"]["tiny"]]
    print("scored", json.dumps(scored))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
