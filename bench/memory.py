"""How much memory adapters take on one frozen base: K = 1, 4 and 16 in a bank, and one by PEFT. Prints JSON.

Every row is a fresh process that opens the base, opens K adapters and does real updates on real records:

    loop   PEFT and the bare loop of `training.reference`, one adapter
    bank   all adapters at once, under each of the settings that bound activations: `chunk_tokens`, how many positions
           one pass may hold (a bank runs a pass a core), and `checkpointing`, which recomputes activations

All bytes are resident ones (`RES` of `top`): of the interpreter and its libraries before the model; with the model;
with the bank open; the most during the updates; and afterwards, once freed memory was handed back to the system, which
is what the base and the adapters' state keep. `state_bytes_per_adapter` is the difference of the latter between the two
largest K, divided. `activation_bytes` is the peak less what is kept; `bytes_per_position` what autograd saves of a
position, measured by the bank, and `positions` the most that were in passes at a time.

    python bench/memory.py [--model smollm2 --data FILE --max-length 384] [--counts 1,4,16] [--updates 3] [--out FILE]

A row is saved in `--out` as soon as it is there; the same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.splits import make_splits
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_records, targets_of
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.adapter import attached, set_training, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.packing import chunks_of
from adaptive_lora.training.reference import update
from throughput import machine_facts, peak_bytes, say, silence, start_afresh

RECORDS = 200
"""Training records of each seed."""
BATCH = 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What bounds the activations of a bank."""

    chunk_tokens: int
    """Most positions of one pass."""
    checkpointing: bool = False


SETTINGS = (Setting(1024), Setting(512), Setting(1024, checkpointing=True))


@dataclass(frozen=True)
class Peak:
    """What the updates of one process took."""

    opened_bytes: int
    peak_bytes: int
    kept_bytes: int
    positions: int | None = None
    bytes_per_position: int | None = None


def resident_bytes() -> int:
    """Of this process now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None  # every Linux since 2.2 has it
    return 1024 * int(found[1])


def kept_bytes() -> int:
    """Resident bytes once what was freed has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def make_members(
    base: FrozenBase, subset: Callable[[int, int], tuple[Example, ...]], count: int, updates: int
) -> list[Member]:
    """Uniform rank 8 on all linear modules, a seed each."""
    modules = targets_of(base.outline, "all-linear")
    arm = ArmPart(name="uniform", strategy="uniform")
    plan = make_plan(None, modules, arm, resolve_budget("rank:8", modules), ScalingPart(), 0)
    options = TrainingOptions(learning_rate=1e-3, steps=updates, batch_size=BATCH)
    return [Member(plan=plan, options=options, seed=s, examples=subset(RECORDS, s)) for s in range(count)]


def by_bank(base: FrozenBase, members: Sequence[Member], setting: Setting) -> Peak:
    """Updates of all members together."""
    bank = Bank(base, members, chunk_tokens=setting.chunk_tokens, checkpointing=setting.checkpointing)
    with bank:
        each, positions = bank.bytes_per_position(), 0
        opened = resident_bytes()
        start_afresh(CPU)
        while bank.running:
            bank.step()
            passes = chunks_of(bank.tokens, bank.chunk_tokens, bank.workers)
            sizes = sorted((sum(bank.tokens[i] for i in chunk) for chunk in passes), reverse=True)
            positions = max(positions, sum(sizes[: bank.workers]))
        return Peak(opened, peak_bytes(CPU), kept_bytes(), positions, each)


def by_loop(base: FrozenBase, members: Sequence[Member], setting: Setting) -> Peak:
    """Updates of one adapter through PEFT."""
    (member,) = members
    with attached(base, member.plan, member.seed, checkpointing=setting.checkpointing) as model:
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.0)
        set_training(model, True)
        opened = resident_bytes()
        start_afresh(CPU)
        for step in range(member.options.steps):
            update(model, optimizer, member.batch(step), member.options, step)
        return Peak(opened, peak_bytes(CPU), kept_bytes())


SIDES: Mapping[str, Callable[[FrozenBase, Sequence[Member], Setting], Peak]] = {"loop": by_loop, "bank": by_bank}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import peft  # noqa: F401  (its code is a library's, not an adapter's)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  (likewise)

    libraries = resident_bytes()
    base = open_base(asked.model)
    encoder = Encoder(base.tokenizer, base.outline.within(asked.max_length), asked.template)
    splits = make_splits(open_records(asked.data), encoder, RECORDS, 1, 1)
    members = make_members(base, splits.training_subset, asked.adapters, asked.updates)
    loaded = resident_bytes()
    setting = Setting(asked.chunk_tokens, asked.checkpointing)
    found = SIDES[asked.side](base, members, setting)
    return {
        "side": asked.side,
        "adapters": asked.adapters,
        "setting": dataclasses.asdict(setting),
        "trainable_parameters": members[0].plan.trainable_parameters,
        "libraries_bytes": libraries,
        "loaded_bytes": loaded,
        "activation_bytes": found.peak_bytes - found.kept_bytes,
        **dataclasses.asdict(found),
    }


def rows(asked: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A fresh process for each side, count and setting that is not `known` yet."""
    for setting in SETTINGS[: asked.settings]:
        for side, count in (*(("bank", count) for count in asked.counts), ("loop", 1)):
            if side == "loop" and setting == SETTINGS[1]:
                continue  # it has no passes to bound
            if any(_is_of(row, side, setting) and row["adapters"] == count for row in known):
                continue
            say(f"{side} of {count}, {setting}")
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--side", side]
            command += ["--adapters", str(count), "--chunk-tokens", str(setting.chunk_tokens)]
            command += ["--checkpointing"] if setting.checkpointing else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            yield json.loads(done.stdout)


def report(asked: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured so far."""
    state, activations = {}, {}
    for setting in SETTINGS:
        bank = {row["adapters"]: row for row in found if _is_of(row, "bank", setting)}
        several = sorted(count for count in bank if count > 1)  # with one alone a thread has had nothing to do yet
        if len(several) > 1:
            first, last = several[-2:]
            more = bank[last]["kept_bytes"] - bank[first]["kept_bytes"]
            state[_label(setting)] = more / (last - first)
        if bank:
            activations[_label(setting)] = max(row["activation_bytes"] for row in bank.values())
    return {
        "state_bytes_per_adapter": max(state.values(), default=None),
        "trainable_parameters": found[0]["trainable_parameters"],
        "state_by_setting": state,
        "activation_peak_bytes": activations,
        "rows": found,
        "model": asked.model,
        "data": {"source": Path(asked.data).name, "records": RECORDS, "max_length": asked.max_length},
        "batch_size": BATCH,
        "updates": asked.updates,
        "threads": torch.get_num_threads(),
        "machine": machine_facts(CPU, asked.load_before),
    }


def _is_of(row: Mapping[str, Any], side: str, setting: Setting) -> bool:
    return bool(row["side"] == side and row["setting"] == dataclasses.asdict(setting))


def _label(setting: Setting) -> str:
    return f"{setting.chunk_tokens} positions a pass" + (", checkpointing" if setting.checkpointing else "")


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """All rows, each saved in `--out` as soon as it is there, and those of an earlier call of the same kind kept."""
    found: list[dict[str, Any]] = []
    if asked.out and asked.out.exists():
        before = json.loads(asked.out.read_text())
        if (before["model"], before["updates"]) == (asked.model, asked.updates):
            found = before["rows"]
    for row in rows(asked, found):
        found.append(row)
        if asked.out:
            write_atomically(asked.out, json.dumps(report(asked, found), indent=2) + "\n")
    return report(asked, found)


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo:fine-tuning")
    parser.add_argument("--template", default="auto")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--counts", type=_counts, default=[1, 4, 16], help="adapters in a bank, comma list")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="how many of them, in the order above")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--adapters", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--chunk-tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.load_before = os.getloadavg()[0]
    silence()
    if asked.side:
        print(json.dumps(measure(asked)))
        return
    print(json.dumps(measured(asked), indent=2))


if __name__ == "__main__":
    main()
