"""How fast a bank trains many adapters, against the ways people train one at a time. Prints JSON.

The same LoRA runs (plans x seeds), each on the same records in the same order, go through

    trainer        PEFT and `transformers.Trainer`, one adapter at a time, LoRA dropout 0.05
    loop           PEFT and the bare loop of `training.reference`, one adapter at a time, no dropout
    compiled       the bare loop on a model under `torch.compile`, on an accelerator alone
    bank_dropout   all adapters at once, LoRA dropout 0.05; compared with the trainer
    bank           all adapters at once, no dropout; compared with the loop and the compiled loop

A side's figure is the wall time of a block of updates after a warm-up, by updates and adapters; building
models and banks is left out. The sides take turns, forwards and backwards, and every ratio is the median
over rounds of the ratio within a round. Of the adapters, the one-at-a-time sides run a sample, other ones
each round: the time of one of their updates does not depend on how many adapters wait behind it.

    python bench/throughput.py [--device cuda --dtype bfloat16 --model gpt2-medium-shape --data made] [--memory]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.splits import Splits, make_splits
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_records, targets_of
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers, set_training, trainable
from adaptive_lora.training.base import FrozenBase, check_device
from adaptive_lora.training.batches import collate
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import DataOrder, TrainingOptions
from adaptive_lora.training.reference import Diverged, update
from products import seconds_of_products
from shapes import MADE, SHAPES, made_records, open_shape

STRATEGIES = ("uniform", "linear-decay", "attention-heavy", "random", "mlp-heavy")
"""The plans, those first that need be first; none of them measures on data."""
SKIPPABLE = ("trainer", "loop", "compiled", "bank", "memory")
WARM_UP = 3
"""Updates before the measured ones, the same on every side."""
PRIMING = 3
"""Further updates before the compiled loop's warm-up, over which compiling and the recording of graphs fall."""
DROPOUT = 0.05
"""Of the trainer, and of the bank that is compared with it."""
LEARNING_RATE = 1e-3
HELD_OUT = 50
"""Records on which the loop's and the bank's adapters are compared at the end."""
MEMORY_COUNTS = (1, 8, 32)
STATE_BYTES = 16
"""Of a trainable parameter: itself, its gradient and two moments in float32."""


@dataclass(frozen=True)
class Job:
    """One adapter to train."""

    index: int
    """Its place among all adapters of this run."""
    plan: RankPlan
    seed: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Bench:
    """What all sides share."""

    base: FrozenBase
    jobs: tuple[Job, ...]
    held_out: tuple[Example, ...]
    batch_size: int
    steps: int
    """Measured updates, after `WARM_UP` others."""
    dtype: str

    @property
    def device(self) -> torch.device:
        return self.base.device

    def options(self, dropout: float = 0.0) -> TrainingOptions:
        """The training of every adapter."""
        return TrainingOptions(
            learning_rate=LEARNING_RATE, steps=WARM_UP + self.steps, batch_size=self.batch_size, dropout=dropout
        )

    def batches(self, job: Job) -> list[list[Example]]:
        """What each update of a job sees, warm-up included."""
        order = DataOrder(job.seed, len(job.examples), self.batch_size)
        return [[job.examples[i] for i in order.batch(step)] for step in range(WARM_UP + self.steps)]

    def fixed_length(self) -> int:
        """Positions that hold any batch of any job, a multiple of 8 where the context allows it."""
        longest = max(len(example.ids) for job in self.jobs for batch in self.batches(job) for example in batch)
        return self.base.outline.within(-(-longest // 8) * 8)


@dataclass(frozen=True)
class Block:
    """One side's measured updates in one round."""

    seconds: float
    """Of one update of one adapter."""
    peak_bytes: int
    """On an accelerator since the side began; on the CPU of the whole process so far."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Adapter -> loss on the held-out records after the last update, nats per token."""
    facts: Mapping[str, Any] = field(default_factory=dict)


# Material


def open_bench(asked: argparse.Namespace, adapters: int) -> Bench:
    """Base, data and `adapters` jobs."""
    if asked.model in SHAPES:
        smaller = {key: getattr(asked, key) for key in ("layers", "width", "vocabulary")}
        base = open_shape(asked.model, asked.device, asked.dtype, smaller)
    else:
        base = open_base(asked.model, dtype=asked.dtype, device=asked.device)
    encoder = Encoder(base.tokenizer, base.outline.within(asked.max_length), asked.template)
    records = made_records(4 * asked.records + HELD_OUT) if asked.data == MADE else open_records(asked.data)
    splits = make_splits(records, encoder, asked.records, 0, HELD_OUT)
    jobs = make_jobs(asked, base, splits, adapters)
    return Bench(base, jobs, splits.test, asked.batch_size, asked.steps, asked.dtype)


def make_jobs(asked: argparse.Namespace, base: FrozenBase, splits: Splits, adapters: int) -> tuple[Job, ...]:
    """Every plan of the first seed, then of the next, until there are enough."""
    modules = targets_of(base.outline, "all-linear")
    budget = resolve_budget(asked.budget, modules)
    jobs: list[Job] = []
    for seed in range(-(-adapters // asked.plans)):
        examples = splits.training_subset(asked.records, seed)
        for name in STRATEGIES[: min(asked.plans, adapters - len(jobs))]:
            arm = ArmPart(name=name, strategy=name)
            plan = make_plan(None, modules, arm, budget, ScalingPart(), seed)
            jobs.append(Job(len(jobs), plan, seed, examples))
    return tuple(jobs)


# Clocks and memory


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(bench: Bench, step: Callable[[int], object]) -> float:
    """Seconds of the measured updates; `step(i)` does update i."""
    for i in range(WARM_UP):
        step(i)
    began = now(bench.device)
    for i in range(WARM_UP, WARM_UP + bench.steps):
        step(i)
    return now(bench.device) - began


def start_afresh(device: torch.device) -> int:
    """Forgets what was in memory before, and says how many bytes are in use now.

    On the CPU: the resident bytes of the process. Where the system cannot forget the highest so far, that.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes in use since `start_afresh`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Not ru_maxrss where it can be helped: Linux lets a child begin with its parent's.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# The sides


def run_trainer(bench: Bench, jobs: Sequence[Job]) -> Block:
    """PEFT and `transformers.Trainer` with its own defaults, but for logging and saving, which are off."""
    seconds = 0.0
    facts: dict[str, Any] = {}
    use_cache = bench.base.model.config.use_cache
    for job in jobs:
        with attached(bench.base, job.plan, job.seed, DROPOUT) as model:
            for layer in lora_layers(model).values():
                layer.lora_dropout[ADAPTER] = nn.Dropout(DROPOUT)  # what PEFT itself puts there
            spent, facts = _train_with_trainer(bench, model, job)
            seconds += spent
        bench.base.model.eval()
        bench.base.model.config.use_cache = use_cache  # the Trainer writes its own
    return Block(seconds / (bench.steps * len(jobs)), peak_bytes(bench.device), facts=facts)


def _train_with_trainer(bench: Bench, model: Any, job: Job) -> tuple[float, dict[str, Any]]:
    """Seconds of the measured updates, and what the Trainer was told."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class InOrder(Trainer):  # type: ignore[misc]
        """Takes the records as they come."""

        def _get_train_sampler(self, *_: Any) -> torch.utils.data.SequentialSampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes the end of the warm-up and of the last update."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARM_UP, WARM_UP + bench.steps):
                marks.append(now(bench.device))

    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=WARM_UP + bench.steps, per_device_train_batch_size=bench.batch_size,
            learning_rate=LEARNING_RATE, lr_scheduler_type="linear", bf16=bench.dtype == "bfloat16",
            use_cpu=bench.device.type == "cpu", dataloader_pin_memory=bench.device.type != "cpu",
            label_names=["labels"], remove_unused_columns=False, report_to="none", logging_strategy="no",
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        flat = [example for batch in bench.batches(job) for example in batch]
        trainer = InOrder(model, args, _as_inputs, train_dataset=flat, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)  # it would write to stdout
        trainer.train()
    began, ended = marks
    facts = {"optim": str(getattr(args.optim, "value", args.optim)), "bf16_autocast": args.bf16, "dropout": DROPOUT}
    return ended - began, facts


def _as_inputs(examples: Sequence[Example]) -> dict[str, Tensor]:
    batch = collate(examples)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def run_loop(bench: Bench, jobs: Sequence[Job]) -> Block:
    """PEFT and the reference's update, nothing around it."""
    blocks = [_train_with_loop(bench, job) for job in jobs]
    return Block(
        statistics.mean(block.seconds for block in blocks),
        max(block.peak_bytes for block in blocks),
        {index: loss for block in blocks for index, loss in block.losses.items()},
    )


def _train_with_loop(bench: Bench, job: Job) -> Block:
    batches, options = bench.batches(job), bench.options()
    with attached(bench.base, job.plan, job.seed) as model:
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.0, weight_decay=options.weight_decay)
        set_training(model, True)
        seconds = timed(bench, lambda i: update(model, optimizer, batches[i], options, i))
        peak = peak_bytes(bench.device)
        set_training(model, False)
        losses = {job.index: evaluate(model, bench.held_out, bench.device).loss} if bench.held_out else {}
    return Block(seconds / max(bench.steps, 1), peak, losses)


class FixedLength:
    """A PeftModel as `reference.update` sees it, compiled, for inputs that are padded to one length."""

    def __init__(self, model: Any, length: int, mode: str) -> None:
        self.base_model = model.base_model
        self.length = length
        # Within PeftModel's own forward, whose context managers would break the graph.
        self.compiled: Any = torch.compile(model.base_model.model, mode=mode, dynamic=False)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        given = input_ids.shape[1]
        room = (0, self.length - given)
        output = self.compiled(
            input_ids=nn.functional.pad(input_ids, room),
            attention_mask=nn.functional.pad(attention_mask, room),
            use_cache=use_cache,
        )
        return SimpleNamespace(logits=output.logits[:, :given])


def run_compiled(bench: Bench, jobs: Sequence[Job]) -> Block:
    """The loop under `torch.compile`: one adapter a round, for every adapter compiles anew."""
    failure = ""
    for mode in ("reduce-overhead", "default"):
        try:
            block = _train_compiled(bench, jobs[0], mode)
        except Exception as error:  # compilers fail in classes of their own; the next mode may do
            failure = f"{mode}: {type(error).__name__}: {str(error).strip()[:300]}"
            say(f"compiled, {failure}")
        else:
            return replace(block, facts={**block.facts, "failure": failure or None})
        finally:
            torch._dynamo.reset()
    raise RuntimeError(failure)


def _train_compiled(bench: Bench, job: Job, mode: str) -> Block:
    from torch._dynamo.utils import counters

    counters.clear()
    # One graph a block, if the whole model is not one graph: more than dynamo would make before it gives up.
    torch._dynamo.config.cache_size_limit = 1024
    batches, options = bench.batches(job), bench.options()
    with attached(bench.base, job.plan, job.seed) as model:
        for layer in lora_layers(model).values():
            layer.lora_dropout[ADAPTER] = nn.Identity()  # what PEFT itself puts there without dropout
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.0, weight_decay=options.weight_decay)
        set_training(model, True)
        fixed = FixedLength(model, bench.fixed_length(), mode)

        def step(i: int) -> None:
            update(fixed, optimizer, batches[i], options, i)

        began = now(bench.device)
        for _ in range(PRIMING):
            step(0)
        priming = now(bench.device) - began
        graphs = counters["stats"]["unique_graphs"]
        each = timed(bench, step) / bench.steps
        facts = {
            "mode": mode,
            "compile_seconds": priming - PRIMING * each,
            "length": fixed.length,
            "graphs": graphs,
            "graph_breaks": sum(counters["graph_break"].values()),
            "graphs_added_later": counters["stats"]["unique_graphs"] - graphs,
        }
    return Block(each, peak_bytes(bench.device), facts=facts)


def run_bank(bench: Bench, jobs: Sequence[Job], dropout: float = 0.0) -> Block:
    """All adapters at once."""
    from adaptive_lora.training.bank import Bank, Member

    options = bench.options(dropout)
    members = [Member(plan=job.plan, options=options, seed=job.seed, examples=job.examples) for job in jobs]
    with Bank(bench.base, members) as bank:

        def step(i: int) -> None:
            for result in bank.step():
                if isinstance(result, Diverged):
                    raise result
                if result is None:
                    raise RuntimeError(f"A member of the bank had ended before update {i}.")

        seconds = timed(bench, step)
        peak = peak_bytes(bench.device)
        facts = {"padding_share": bank.padding_share, "chunk_tokens": bank.chunk_tokens}
        held_out = bench.held_out if not dropout else ()
        results = bank.evaluate(held_out) if held_out else []
        losses = {job.index: result.loss for job, result in zip(jobs, results, strict=False)}
    return Block(seconds / (max(bench.steps, 1) * len(jobs)), peak, losses, facts)


def run_bank_dropout(bench: Bench, jobs: Sequence[Job]) -> Block:
    """All adapters at once, with the trainer's dropout."""
    return run_bank(bench, jobs, DROPOUT)


SIDES: Mapping[str, Callable[[Bench, Sequence[Job]], Block]] = {
    "trainer": run_trainer,
    "loop": run_loop,
    "compiled": run_compiled,
    "bank_dropout": run_bank_dropout,
    "bank": run_bank,
}


def run_rounds(bench: Bench, asked: argparse.Namespace) -> tuple[dict[str, list[Block]], list[list[int]], str | None]:
    """Side -> its block of each round; the sampled adapters of each round; why nothing could be compiled."""
    names = [name for name in SIDES if name.split("_")[0] not in asked.skip]
    if bench.device.type != "cuda" and "compiled" in names:
        names.remove("compiled")
    blocks: dict[str, list[Block]] = {name: [] for name in names}
    shuffled = numpy_stream(0, "bench-throughput").permutation(len(bench.jobs)).tolist()
    samples, failure, threads = [], None, torch.get_num_threads()
    began = time.perf_counter()
    for turn in range(asked.rounds):
        if turn and asked.seconds and time.perf_counter() - began > asked.seconds:
            say(f"no further round after {asked.seconds:g} s")
            break
        sample = [shuffled[(turn * asked.sample + i) % len(shuffled)] for i in range(asked.sample)]
        samples.append(sample)
        for name in names if turn % 2 == 0 else reversed(names):
            if name == "compiled" and failure:
                continue
            jobs = bench.jobs if name.startswith("bank") else [bench.jobs[i] for i in sample]
            torch.set_num_threads(threads)  # whatever the side before has done to them
            start_afresh(bench.device)
            try:
                block = SIDES[name](bench, jobs)
            except RuntimeError as error:
                if name != "compiled":
                    raise
                failure = str(error)  # the other sides still tell something
                continue
            blocks[name].append(block)
            say(f"round {turn + 1} of {asked.rounds}, {name}: {1e3 * block.seconds:.2f} ms per adapter and update")
    return blocks, samples, failure


# Memory


def memory_of(side: str, count: int, bench: Bench, asked: argparse.Namespace) -> dict[str, Any]:
    """{adapters, peak_bytes, base_bytes} of a few updates of `count` adapters; on the CPU in a fresh process."""
    say(f"memory, {side} of {count}")
    if bench.device.type == "cuda":
        return measure_memory(replace(bench, jobs=bench.jobs[:count]), side)
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    command += ["--memory-child", side, "--adapters", str(count)]  # the last word counts
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def measure_memory(bench: Bench, side: str) -> dict[str, Any]:
    """Peak and base bytes of `WARM_UP` updates of all jobs, on this process and device."""
    import peft  # noqa: F401  (so that its code counts in neither side's training)

    base_bytes = start_afresh(bench.device)
    block = SIDES[side](replace(bench, steps=0, held_out=()), bench.jobs)
    return {"adapters": len(bench.jobs), "peak_bytes": block.peak_bytes, "base_bytes": base_bytes}


def memory_section(bench: Bench, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """How a bank's memory grows with its adapters."""
    rows: list[dict[str, Any]] = []
    state = STATE_BYTES * max(job.plan.trainable_parameters for job in bench.jobs)
    for count in MEMORY_COUNTS:
        row = memory_of("bank", count, bench, asked)
        further = (row["peak_bytes"] - rows[0]["peak_bytes"]) / (count - 1) if rows else None
        rows.append({**row, "bytes_per_further_adapter": further, "adapter_state_bytes": state})
    return rows


def peaks(bench: Bench, blocks: Mapping[str, list[Block]], asked: argparse.Namespace) -> dict[str, int | None]:
    """The most bytes that one adapter and the whole bank took."""
    found: dict[str, int | None] = {"peak_bytes_bank": None, "peak_bytes_single": None}
    for key, side, count in (("peak_bytes_bank", "bank", len(bench.jobs)), ("peak_bytes_single", "loop", 1)):
        if bench.device.type == "cuda":
            found[key] = max((block.peak_bytes for block in blocks.get(side, [])), default=None)
        elif side in blocks and "memory" not in asked.skip:
            found[key] = memory_of(side, count, bench, asked)["peak_bytes"]
    return found


# Figures


def ratio(blocks: Mapping[str, list[Block]], slow: str, fast: str) -> float | None:
    """Median over rounds of how many times longer `slow` took in the same round."""
    pairs = list(zip(blocks.get(slow, []), blocks.get(fast, []), strict=False))
    return statistics.median(a.seconds / b.seconds for a, b in pairs) if pairs else None


def loss_differences(blocks: Mapping[str, list[Block]]) -> tuple[float | None, int]:
    """max |bank - loop| / loop of the held-out losses, and of how many adapters."""
    bank = {index: loss for block in blocks.get("bank", []) for index, loss in block.losses.items()}
    loop = {index: loss for block in blocks.get("loop", []) for index, loss in block.losses.items()}
    shared = bank.keys() & loop.keys()
    return max((abs(bank[i] - loop[i]) / loop[i] for i in shared), default=None), len(shared)


def tokens_of(bench: Bench, jobs: Sequence[Job]) -> dict[str, float]:
    """Means over the measured updates of `jobs`: tokens, those learnt, and positions padded to the longest."""
    batches = [batch for job in jobs for batch in bench.batches(job)[WARM_UP:]]
    return {
        "real": statistics.mean(sum(len(e.ids) for e in batch) for batch in batches),
        "completion": statistics.mean(sum(e.completion_tokens for e in batch) for batch in batches),
        "padded": statistics.mean(len(batch) * max(len(e.ids) for e in batch) for batch in batches),
    }


def flops_per_update(bench: Bench) -> float:
    """Useful floating-point operations of one update of one adapter, mean; padding counts for nothing.

    Forward and backward: 4 per frozen weight and token (no gradient of the weight itself), 6 per LoRA
    parameter and token, 4 d V per completion token in the head, 6 d T^2 per sequence and layer in
    attention, whose masked half is not counted.
    """
    text = bench.base.model.config.get_text_config()
    frozen = sum(m.d_in * m.d_out for m in bench.base.outline.modules)
    total = 0.0
    for job in bench.jobs:
        for example in (example for batch in bench.batches(job)[WARM_UP:] for example in batch):
            length = len(example.ids)
            total += length * (4 * frozen + 6 * job.plan.trainable_parameters)
            total += 6 * text.hidden_size * length**2 * text.num_hidden_layers
            total += 4 * text.hidden_size * text.vocab_size * example.completion_tokens
    return total / (len(bench.jobs) * bench.steps)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest ten products of two 8192 x 8192 matrices, one after another."""
    size, repeats, best = 8192, 10, float("inf")
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    for _ in range(6):
        began = now(device)
        for _ in range(repeats):
            torch.matmul(a, b, out=product)
        best = min(best, (now(device) - began) / repeats)
    return 2 * size**3 / best


def arithmetic(bench: Bench, blocks: Mapping[str, list[Block]]) -> dict[str, float | None]:
    """How much of the device's best matrix product the bank reaches; on the CPU of the frozen products alone."""
    if not blocks.get("bank"):
        return {"share_of_matmul_peak": None}
    if bench.device.type != "cuda":
        tokens, threads = tokens_of(bench, bench.jobs), torch.get_num_threads()
        products = seconds_of_products(bench.base, tokens["real"], tokens["completion"], threads)
        torch.set_num_threads(threads)
        seconds = statistics.median(block.seconds for block in blocks["bank"])
        plain = seconds_of_products(bench.base, tokens["real"], tokens["completion"], threads, nn.functional.linear)
        torch.set_num_threads(threads)
        return {
            "share_of_matmul_peak": products / seconds,
            "products_seconds": products,
            "torch_products_seconds": plain,
        }
    start_afresh(bench.device)
    rate = flops_per_update(bench) / statistics.median(block.seconds for block in blocks["bank"])
    peak = matmul_peak(bench.device, getattr(torch, bench.dtype))
    return {"share_of_matmul_peak": rate / peak, "flops_per_second": rate, "matmul_flops_per_second": peak}


def last_facts(blocks: Mapping[str, list[Block]], side: str) -> dict[str, Any]:
    """What a side said of itself in its last round."""
    return dict(blocks[side][-1].facts) if blocks.get(side) else {}


def model_facts(bench: Bench, asked: argparse.Namespace) -> dict[str, Any]:
    """Sizes of the base and of one adapter."""
    text = bench.base.model.config.get_text_config()
    return {
        "name": Path(asked.model).name if Path(asked.model).is_dir() else asked.model,
        "dtype": bench.dtype, "layers": text.num_hidden_layers, "width": text.hidden_size,
        "vocabulary": text.vocab_size, "parameters": bench.base.outline.total_parameters,
        "target_modules": len(bench.jobs[0].plan.modules), "budget": asked.budget,
        "trainable_parameters": max(job.plan.trainable_parameters for job in bench.jobs),
    }  # fmt: skip


def machine_facts(device: torch.device, load_before: float) -> dict[str, Any]:
    """What it was measured on; `load_before` is the system's load when the bench began, others' work that is."""
    said: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": said.get("model name", platform.processor()),
        # What its generation is known by: names of cloud machines leave it out.
        "generation": {key: said[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in said},
        "cores": os.cpu_count(),
        "load_before": load_before,
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "peft")},
    }


def speeds(bench: Bench, blocks: Mapping[str, list[Block]]) -> dict[str, Any]:
    """How long each side took, and how many times as long as the bank."""
    compiling = [block.facts["compile_seconds"] for block in blocks.get("compiled", [])]
    difference, compared = loss_differences(blocks)
    return {
        "speedup_vs_trainer": ratio(blocks, "trainer", "bank_dropout"),
        "speedup_vs_loop": ratio(blocks, "loop", "bank"),
        "speedup_vs_compiled": ratio(blocks, "compiled", "bank"),
        "compile_seconds": statistics.median(compiling) if compiling else None,
        "seconds_per_adapter_step": {
            name: {"median": statistics.median(b.seconds for b in found), "rounds": [b.seconds for b in found]}
            for name, found in blocks.items()
            if found
        },
        "max_loss_difference": difference,
        "loss_differences_of": compared,
        **arithmetic(bench, blocks),
    }


def circumstances(bench: Bench, asked: argparse.Namespace, samples: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What was run, on which data and where."""
    tokens = tokens_of(bench, bench.jobs)
    sampled = tokens_of(bench, [bench.jobs[i] for sample in samples for i in sample])
    return {
        "adapters": len(bench.jobs),
        "plans": list(STRATEGIES[: asked.plans]),
        "rounds": len(samples),
        "steps": bench.steps,
        "warm_up": WARM_UP,
        "batch_size": bench.batch_size,
        "sample": asked.sample,
        "sample_compiled": 1,
        "sampled_adapters": samples,
        "sampling": "the one-at-a-time sides run `sample` adapters a round (compiled: the first of them), others "
        "each round; the bank runs all",
        "tokens_per_step": {**tokens, "sampled": sampled},
        "padding_share_loop": 1 - tokens["real"] / tokens["padded"],
        "data": {"source": Path(asked.data).name, "records": asked.records, "max_length": asked.max_length},
        "model": model_facts(bench, asked),
        "device": asked.device,
        "threads": torch.get_num_threads(),
        "machine": machine_facts(bench.device, asked.load_before),
    }


def report(bench: Bench, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything, measured."""
    everyone = bench
    bench = replace(bench, jobs=bench.jobs[: asked.adapters])
    blocks, samples, failure = run_rounds(bench, asked)
    compiled = last_facts(blocks, "compiled")
    return {
        **speeds(bench, blocks),
        "padding_share": last_facts(blocks, "bank").get("padding_share"),
        **peaks(bench, blocks, asked),
        **({"memory": memory_section(everyone, asked)} if asked.memory and "bank" in blocks else {}),
        "bank": last_facts(blocks, "bank"),
        "trainer": last_facts(blocks, "trainer"),
        "compiled": {**compiled, "error": failure} if compiled or failure else None,
        **circumstances(bench, asked, samples),
    }


# The command


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def silence() -> None:
    """Keeps the libraries' bars and warnings out of the way."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda")
    add("--model", default="demo", help=f"demo, a folder, a hub name, or {', '.join(SHAPES)}")
    add("--layers", type=int, help="of a shape, instead of its own")
    add("--width", type=int, help="likewise, a multiple of 64")
    add("--vocabulary", type=int, help="likewise")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--adapters", type=int, default=20, help="plans x seeds")
    add("--plans", type=int, default=5, choices=range(1, len(STRATEGIES) + 1))
    add("--budget", default="rank:8")
    add("--batch-size", type=int, default=4)
    add("--steps", type=int, default=20, help="measured updates a side and round")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, help="no further round begins after so many; the first is always run")
    add("--data", default="demo:fine-tuning", help=f"or a file of records, or {MADE}, for shapes")
    add("--template", default="auto")
    add("--max-length", type=int, default=256)
    add("--records", type=int, default=200, help="training records of a seed, whole batches of them")
    add("--sample", type=int, default=2, help="adapters a round that the one-at-a-time sides run")
    add("--skip", default="", help=f"comma list of {', '.join(SKIPPABLE)}")
    add("--memory", action="store_true", help=f"the bank's memory with {MEMORY_COUNTS} adapters")
    add("--memory-child", choices=["loop", "bank"], help=argparse.SUPPRESS)
    add("--out", type=Path, help="file for the JSON")
    asked = parser.parse_args()
    asked.skip = [name for name in asked.skip.split(",") if name]
    if unknown := set(asked.skip) - set(SKIPPABLE):
        parser.error(f"--skip knows {', '.join(SKIPPABLE)}, not {', '.join(sorted(unknown))}")
    if asked.records % asked.batch_size:
        parser.error("--records must be whole batches: the Trainer's batches would part from the others' order")
    if min(asked.adapters, asked.steps, asked.rounds, asked.sample) < 1:
        parser.error("--adapters, --steps, --rounds and --sample start at 1")
    if (asked.width or 0) % 64:
        parser.error("--width must be a multiple of 64, the width of a head")
    asked.sample = min(asked.sample, asked.adapters)
    check_device(asked.device)
    asked.load_before = os.getloadavg()[0]
    return asked


def main() -> None:
    asked = arguments()
    silence()
    if asked.memory_child:
        print(json.dumps(measure_memory(open_bench(asked, asked.adapters), asked.memory_child)))
        return
    further = max(MEMORY_COUNTS) if asked.memory and asked.device != "cpu" else 0
    text = json.dumps(report(open_bench(asked, max(asked.adapters, further)), asked), indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
