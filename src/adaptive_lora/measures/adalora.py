"""`adalora-rank`: AdaLoRA through PEFT, for its final allocation alone (arXiv 2303.10512).

Triplets of P Λ Q are scored by smoothed sensitivity times uncertainty and the lowest masked, by a cubic
schedule from 1.5 times the budget's uniform rank down to it. What its ranks are worth by themselves is seen
by training them again as an ordinary plan.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick, no_tick
from adaptive_lora.measures.request import Measurement
from adaptive_lora.measures.short_run import INPUTS, ShortRun, short_run_of
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.budget import uniform_rank
from adaptive_lora.streams import numpy_stream
from adaptive_lora.training.batches import collate, label_loss
from adaptive_lora.training.options import DataOrder

INITIAL = 1.5
"""The first rank over the last (PEFT's default: 12 over 8)."""


def adalora_ranks(short: ShortRun, tick: Tick = no_tick) -> dict[str, float]:
    """Module -> rank that AdaLoRA ends with, possibly 0.

    Its schedule: a tenth of the steps before anything is masked, six tenths of masking, three tenths after.
    TrainingError if the allocation did not change, as where its update is never called (huggingface/peft#1801).
    """
    if short.steps < 2:
        raise TrainingError(f"AdaLoRA needs at least 2 steps, got {short.steps}. Give it more `short_run_steps`.")
    options = short.training.options
    with _adalora(short) as model:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
        order = DataOrder(short.seed, len(short.examples), options.batch_size)
        for step in range(short.steps):
            examples = [short.examples[i] for i in order.batch(step)]
            batch = collate(examples).to(short.base.device)
            # With labels PEFT adds its penalty for factors that are not orthogonal.
            found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
            if short.training.loss is label_loss:
                loss = found.loss
            else:
                penalty = found.loss - label_loss(found.logits, batch, examples)
                loss = penalty + short.training.loss(found.logits, batch, examples)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = options.rate_at(step)
            optimizer.step()
            model.base_model.update_and_allocate(step)  # wants the gradients that zero_grad takes away
            optimizer.zero_grad()
            tick(step + 1, short.steps)
        ranks = ranks_of(model)
    if set(ranks) != {m.name for m in short.modules}:
        raise TrainingError("AdaLoRA gave no rank to some target modules; this model is not supported by it.")
    if set(ranks.values()) in ({0.0}, {float(first_rank(short))}):
        raise TrainingError(
            f"AdaLoRA left every module at rank {next(iter(ranks.values())):g} after {short.steps} steps: its "
            "allocation never changed. Give it more `short_run_steps`."
        )
    return ranks


def first_rank(short: ShortRun) -> int:
    """The rank of every module before anything is masked."""
    rank = uniform_rank(short.modules, short.budget)
    return max(rank + 1, round(INITIAL * rank))


def parameters(short: ShortRun) -> int:
    """What is trained, masked or not: P, Λ and Q of every module at its first rank."""
    return first_rank(short) * sum(m.params_per_rank + 1 for m in short.modules)


def ranks_of(model: Any) -> dict[str, float]:
    """How many triplets of every module are not masked, by full module name."""
    from peft.tuners.adalora import AdaLoraLayer

    return {
        name: float((module.lora_E["default"] != 0).sum())
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, AdaLoraLayer)  # of a quantised layer too
    }


def _begin(model: Any, seed: int) -> None:
    """The factors' first values (normal, 0.02, as PEFT draws them) from streams of (seed, parameter)."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            drawn = numpy_stream(seed, "init", name).normal(0.0, 0.02, tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(drawn))


@contextlib.contextmanager
def _adalora(short: ShortRun) -> Iterator[Any]:
    """The base as PEFT's AdaLoRA model; taken off again at the end."""
    from peft import AdaLoraConfig, get_peft_model
    from peft.tuners.adalora import AdaLoraLayer

    steps, rank = short.steps, uniform_rank(short.modules, short.budget)
    config = AdaLoraConfig(
        init_r=first_rank(short),
        target_r=rank,
        tinit=steps // 10,
        tfinal=max(1, 3 * steps // 10),
        deltaT=max(1, steps // 50),
        total_step=steps,
        lora_alpha=short.scaling.reference_scaling * rank,
        target_modules=[m.name for m in short.modules],
        fan_in_fan_out=any(m.fan_in_fan_out for m in short.modules),
        task_type="CAUSAL_LM",
    )
    inner = short.base.model
    try:
        with torch.random.fork_rng(devices=[]), quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(inner, config)
        _begin(model, short.seed)
        model.eval()
        yield model
    finally:
        layers = {name: module for name, module in inner.named_modules() if isinstance(module, AdaLoraLayer)}
        for name, layer in layers.items():
            inner.set_submodule(name, layer.get_base_layer())
        if hasattr(inner, "peft_config"):
            del inner.peft_config
        inner.requires_grad_(False)


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    (request,) = (measurement.request for measurement in measurements)
    short = short_run_of(request, request.budget)
    facts = {**short.facts([short.seed]), "short_run_parameters": parameters(short)}
    return GroupResult([MeasurementResult(adalora_ranks(short, tick), facts)], {"short_runs": 1})


GROUP = MeasureGroup("adalora", {"adalora-rank": ("parameters", *INPUTS)}, _take)
"""One at a time: PEFT masks and trains one adapter in the model itself."""
