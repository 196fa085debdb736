"""How fast adapters are evaluated, against a plain padded loop over the same records. Prints JSON.

    loop   PEFT, batches of 16 in the order of the records, padded to the longest, logits of every position
    bank   all adapters on one frozen base, records packed end to end, the output layer on completion tokens alone

The sides take turns. `speedup_vs_loop` is the median over rounds of tokens a second (prompts count, padding does not);
`max_loss_difference` the largest difference of a record's loss between the sides, relative to the loss; the loop's is
taken in double precision from its logits, as torch's own in single precision is less exact. `max_loss_error` compares
each side with the model in double precision throughout, on a few records: neither can be nearer to the other than both
are to that.

    python bench/evaluation.py [--model smollm2 --data FILE --max-length 384] [--adapters 2] [--records 64] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.splits import make_splits
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_records, targets_of
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers, set_training
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import IGNORED, collate
from adaptive_lora.training.options import TrainingOptions
from throughput import machine_facts, silence

BATCH = 16
EXACT = 12
"""Records whose losses are computed in double precision from the first product on."""
TRAINED = 2
"""Updates before, so that adapters differ from the base and from each other."""


def trained_bank(base: FrozenBase, examples: Sequence[Example], count: int) -> tuple[Bank, list[Member]]:
    modules = targets_of(base.outline, "all-linear")
    arm = ArmPart(name="uniform", strategy="uniform")
    plan = make_plan(None, modules, arm, resolve_budget("rank:8", modules), ScalingPart(), 0)
    options = TrainingOptions(learning_rate=1e-3, steps=TRAINED, batch_size=4)
    members = [Member(plan=plan, options=options, seed=seed, examples=examples) for seed in range(count)]
    return Bank(base, members, texts=examples), members


def plain_loop(model: Any, records: Sequence[Example], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Losses of records, nats per token; `dtype`: of what follows the logits."""
    found = []
    with torch.no_grad():
        for at in range(0, len(records), BATCH):
            batch = collate(records[at : at + BATCH])
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            targets = batch.labels[:, 1:]
            flat = logits[:, :-1].flatten(0, 1).to(dtype)
            nll = functional.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")
            found.append((nll.view_as(targets).sum(1) / (targets != IGNORED).sum(1)).numpy())
    return np.concatenate(found)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    base = open_base(asked.model)
    encoder = Encoder(base.tokenizer, base.outline.within(asked.max_length), asked.template)
    splits = make_splits(open_records(asked.data), encoder, 8, 1, asked.records)
    records, seconds = splits.test, {"loop": list[float](), "bank": list[float]()}
    tokens, threads = sum(len(record.ids) for record in records), torch.get_num_threads()
    bank, members = trained_bank(base, splits.training_subset(8, 0), asked.adapters)
    with bank:
        while bank.running:
            bank.step()
        weights = [slot.weights() for slot in bank.slots]
    for turn in range(asked.rounds):
        for side in ("loop", "bank") if turn % 2 == 0 else ("bank", "loop"):
            torch.set_num_threads(threads)
            if side == "bank":
                with bank:
                    began = time.perf_counter()
                    ours = [found.nll / found.tokens for found in bank.evaluate(records)]
                    seconds[side].append((time.perf_counter() - began) / asked.adapters)
            else:
                with attached(base, members[0].plan, 0) as model:
                    load(model, weights[0])
                    set_training(model, False)
                    began = time.perf_counter()
                    plain_loop(model, records)
                    seconds[side].append(time.perf_counter() - began)
                    if not turn:
                        single = plain_loop(model, records, torch.float64)
                        truth = in_double(model, records[:EXACT])
    return {
        "speedup_vs_loop": statistics.median(a / b for a, b in zip(seconds["loop"], seconds["bank"], strict=True)),
        "max_loss_difference": largest_share(ours[0], single),
        "loss_difference": abs(mean_loss(ours[0], records) / mean_loss(single, records) - 1),
        "max_loss_error": {
            "records": min(EXACT, len(records)),
            "bank": largest_share(ours[0][:EXACT], truth),
            "loop": largest_share(single[:EXACT], truth),
        },
        "tokens_per_second": {side: tokens / statistics.median(found) for side, found in seconds.items()},
        "seconds": seconds,
        "adapters": asked.adapters,
        "records": len(records),
        "tokens": tokens,
        "completion_tokens": sum(record.completion_tokens for record in records),
        "padding_share_loop": 1 - tokens / padded(records),
        "model": asked.model,
        "threads": threads,
        "machine": machine_facts(base.device, asked.load_before),
    }


def in_double(model: Any, records: Sequence[Example]) -> np.ndarray:
    """Losses of the model with its weights widened: what either side would get without rounding."""
    try:
        return plain_loop(model.double(), records, torch.float64)
    finally:
        model.float()


def mean_loss(losses: np.ndarray, records: Sequence[Example]) -> float:
    """Of all completion tokens, as a study reports it."""
    return float(np.average(losses, weights=[record.completion_tokens for record in records]))


def largest_share(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found / wanted - 1).max())


def load(model: Any, weights: Any) -> None:
    """A trained adapter into PEFT's layers."""
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.lora_A[ADAPTER].weight.copy_(weights[name][0])
            layer.lora_B[ADAPTER].weight.copy_(weights[name][1])


def padded(records: Sequence[Example]) -> int:
    batches = [records[at : at + BATCH] for at in range(0, len(records), BATCH)]
    return sum(len(batch) * max(len(record.ids) for record in batch) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo:fine-tuning")
    parser.add_argument("--template", default="auto")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.load_before = os.getloadavg()[0]
    silence()
    text = json.dumps(measure(asked), indent=2)
    if asked.out:
        write_atomically(asked.out, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
