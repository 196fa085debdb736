"""Writes the records of the study `ceiling-reasoning`: six kinds of small problems with one right answer.

    pip install reasoning-gym==0.1.25
    python scripts/reasoning_tasks.py OUT.jsonl

reasoning-gym (Apache-2.0) makes them by program, so that the same version, kinds and seed give the same file. The
kinds were chosen for short texts whose answers are not copied from the question alone.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

KINDS = (
    "caesar_cipher",
    "chain_sum",
    "fraction_simplification",
    "sentence_reordering",
    "spell_backward",
    "time_intervals",
)
EACH, SEED = 1000, 22


def records() -> list[dict[str, str]]:
    """All kinds mixed, without questions that come twice."""
    import reasoning_gym

    found: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        dataset: Any = reasoning_gym.create_dataset(kind, size=EACH, seed=SEED)
        for item in dataset:
            found.setdefault(item["question"], {"instruction": item["question"], "output": item["answer"]})
    mixed = list(found.values())
    random.Random(SEED).shuffle(mixed)
    return mixed


def main() -> None:
    """Writes one JSON object a line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    lines = [json.dumps(record, ensure_ascii=False) for record in records()]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{sys.argv[1]}: {len(lines)} records", file=sys.stderr)


if __name__ == "__main__":
    main()
