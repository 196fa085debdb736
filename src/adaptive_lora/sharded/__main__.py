"""Trains adapters on a base that is larger than one GPU, shared block by block among the processes of `torchrun`.

    torchrun --nproc-per-node 4 -m adaptive_lora.sharded plan.json --model NAME --data FILE --out DIR --steps 300

Every plan is trained at every rate from every seed, each adapter by one of the processes. The same command goes on
where it was interrupted, also with another number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from adaptive_lora.errors import AdaptiveLoraError, UsageError
from adaptive_lora.planning.plan import RankPlan

_OTHERS_GONE = ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out waiting", "NCCL")
"""In messages of torch's process groups."""


def main(words: list[str] | None = None) -> int:
    """The command; returns 0, 1 (failed), 2 (cannot be used as it is) or 130 (interrupted)."""
    asked = arguments().parse_args(words)
    who = f"rank {os.environ.get('RANK', '?')}"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stopping: list[int] = []
    before = {
        number: signal.signal(number, lambda *_: stopping.append(1)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        report = _train(asked, stopping)
    except KeyboardInterrupt:
        print(f"{who}: saved; the same command goes on from here", file=sys.stderr)
        return 130
    except AdaptiveLoraError as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except RuntimeError as error:
        if not any(words in str(error) for words in _OTHERS_GONE):
            raise
        print(f"{who}: another rank is gone or does not answer; the same command goes on from the last checkpoint",
              file=sys.stderr)  # fmt: skip
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if os.environ["RANK"] == "0":
        print(json.dumps(report, indent=2))
    return 0


def _train(asked: argparse.Namespace, stopping: list[int]) -> dict[str, Any]:
    plans = _plans(asked.plans)
    from adaptive_lora.sharded.job import Job
    from adaptive_lora.sharded.train import train_sharded
    from adaptive_lora.training.options import TrainingOptions
    from adaptive_lora.training.ranks import joined

    options = TrainingOptions(
        learning_rate=asked.learning_rate[0], steps=asked.steps, batch_size=asked.batch_size, schedule=asked.schedule,
        warmup=asked.warmup, weight_decay=asked.weight_decay, dropout=asked.dropout,
    )  # fmt: skip
    job = Job(
        model=asked.model, data=asked.data, out=asked.out, plans=plans, options=options, rates=asked.learning_rate,
        seeds=asked.seeds, test=asked.test, max_length=asked.max_length, template=asked.template, learn=asked.learn,
        revision=asked.revision, dtype=asked.dtype, chunk_tokens=asked.chunk_tokens,
        checkpointing=asked.activation_checkpointing, checkpoint_seconds=asked.checkpoint_seconds,
    )  # fmt: skip
    with joined(asked.device) as ranks:

        def say(text: str) -> None:
            if ranks.is_first:
                print(text, file=sys.stderr, flush=True)

        return train_sharded(job, ranks, say, lambda: bool(stopping))


def _plans(paths: list[Path]) -> dict[str, RankPlan]:
    """The plans by the names of their files; UsageError with all that is wrong with them."""
    found, complaints = {}, []
    for path in paths:
        try:
            plan = RankPlan.load(path)
        except UsageError as error:
            complaints.append(str(error))
            continue
        if path.stem in found:
            complaints.append(f"Two plans are called {path.stem}: name one of the files otherwise.")
        found[path.stem] = plan
    if complaints:
        raise UsageError("\n".join(complaints))
    return found


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m adaptive_lora.sharded", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("plans", nargs="+", type=Path, help="plan files, as `adaptive-lora plan --out` writes them")
    add("--model", required=True, help="a folder, a hub name, or `demo`")
    add("--data", required=True, help="training records: a file, a hub data set, or `demo:fine-tuning`")
    add("--out", required=True, type=Path, help="folder for adapters and results, seen by all machines")
    add("--steps", required=True, type=_count, help="updates of each adapter")
    add("--learning-rate", type=_list_of(float), default=[1e-4], help="one or several: 1e-4,3e-4")
    add("--seeds", type=_list_of(int), default=[0], help="one or several: 0,1,2")
    add("--batch-size", type=_count, default=4)
    add("--schedule", choices=("linear", "cosine", "constant"), default="linear")
    add("--warmup", type=float, default=0.03, help="share of the steps, or from 1 on their number")
    add("--weight-decay", type=float, default=0.0)
    add("--dropout", type=float, default=0.0)
    add("--test", help="records to evaluate every adapter on")
    add("--max-length", type=_count, default=512, help="tokens of the longest text")
    add("--template", default="auto")
    add("--learn", choices=("last", "all"), default="last", help="which answers of a conversation")
    add("--revision", help="the hub's commit or tag")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", choices=("cpu", "cuda"), help="by default cuda where there is one")
    add("--chunk-tokens", type=_count, help="most positions of one pass; by default what memory allows")
    add("--activation-checkpointing", action="store_true", help="less memory, more time")
    add("--checkpoint-seconds", type=float, default=300.0)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _list_of(kind: Any) -> Any:
    def read(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"numbers with commas between them, got {text!r}") from None

    return read


if __name__ == "__main__":
    sys.exit(main())
