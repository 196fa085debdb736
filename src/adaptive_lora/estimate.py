"""What a study will cost, before it is run: runs, parameters, memory, time, and what its seeds can decide."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from adaptive_lora.judging.stats import seeds_needed, smallest_p
from adaptive_lora.material import Material
from adaptive_lora.planning.strategies import find_strategy
from adaptive_lora.record.runs import Phase, RunSpec, arms_on_budgets, count_runs, scaling_of
from adaptive_lora.training.adapter import attached, set_training, trainable
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.reference import update


@dataclass(frozen=True)
class Estimate:
    """A study's size."""

    runs: dict[str, int]
    """Runs by phase."""
    parameters: dict[str, int]
    """Arm at budget -> trainable parameters of its plan."""
    steps: int
    """Updates per run."""
    memory_bytes: int
    """At least: weights, adapter with gradient and AdamW state, logits of one batch with gradient."""
    seconds: float
    """All runs, from timed updates and evaluations on this machine."""
    warnings: tuple[str, ...]


def estimate(material: Material) -> Estimate:
    """Plans every arm once and times a few updates of the first; nothing is written."""
    spec = material.study.spec
    seed = spec.seeds.evaluation[0]
    examples = material.training_examples(seed)
    parameters, plan_seconds = {}, 0.0
    plans = []
    for text, arm in arms_on_budgets(spec):
        run = RunSpec(Phase.EVALUATION, arm, text, scaling_of(spec, arm), spec.train.learning_rate[0], seed)
        began = time.monotonic()
        plans.append((run, material.plan(run, examples)))
        plan_seconds += time.monotonic() - began
        parameters[f"{arm.name} at {text}"] = plans[-1][1].trainable_parameters
    run, plan = plans[0]
    options = material.training_options(run)
    with attached(material.base, plan, seed, options.dropout) as model:
        optimizer = torch.optim.AdamW(trainable(model).values())
        set_training(model, True)
        times = []
        for step in range(4):
            batch = list(examples[step * options.batch_size :][: options.batch_size] or examples[: options.batch_size])
            began = time.monotonic()
            update(model, optimizer, batch, options, step)
            times.append(time.monotonic() - began)
        set_training(model, False)
        began = time.monotonic()
        some = material.splits.validation[:50]
        evaluate(model, some, material.base.device)
        per_record = (time.monotonic() - began) / len(some)
    counts = count_runs(spec)
    step_seconds = sorted(times[1:])[1]  # the first update pays for warming up
    validation, test = spec.data.validation, spec.data.test
    seconds = sum(counts.values()) * (options.steps * step_seconds + validation * per_record)
    seconds += counts[Phase.EVALUATION] * test * per_record + sum(counts.values()) * plan_seconds / len(plans)
    return Estimate(
        runs={phase.value: count for phase, count in counts.items()},
        parameters=parameters,
        steps=options.steps,
        memory_bytes=_memory(material, max(parameters.values()), options.batch_size, max(len(e.ids) for e in examples)),
        seconds=seconds,
        warnings=tuple(_warnings(material, parameters)),
    )


def _memory(material: Material, trainable_parameters: int, batch_size: int, length: int) -> int:
    """Weights, and the larger of training (adapter, gradient, moments, logits) and scoring (a gradient per weight)."""
    model = material.base.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    logits = 3 * 4 * batch_size * length * model.config.get_text_config().vocab_size
    measures = any(arm.strategy and find_strategy(arm.strategy).rests_on == "data" for arm in material.study.spec.arms)
    scoring = 4 * sum(m.d_in * m.d_out for m in material.modules) if measures else 0
    return int(weights + max(16 * trainable_parameters, scoring) + logits)


def _warnings(material: Material, parameters: dict[str, int]) -> list[str]:
    spec = material.study.spec
    found = []
    seeds, alpha = len(spec.seeds.evaluation), spec.analysis.alpha
    comparisons = max(1, sum(arm.name != spec.analysis.baseline for _, arm in arms_on_budgets(spec)))
    needed = seeds_needed(alpha, comparisons)
    if seeds < needed:
        found.append(
            f"{seeds} evaluation seeds can never decide {comparisons} comparisons at {alpha:g}: the smallest exact p "
            f"is {smallest_p(seeds):.3g}; it takes {needed}."
        )
    if len(spec.train.learning_rate) == 1 and len(spec.arms) > 1:
        found.append("one learning rate for all arms: a difference may be the rate's; give a grid and tuning seeds.")
    cut = sum(example.truncated for example in material.splits.test)
    if cut > 0.2 * spec.data.test:
        limit = material.splits.encoder.max_length
        found.append(f"{cut} of {spec.data.test} test records are cut at {limit} tokens.")
    found += material.warnings()
    fixed = {arm.name for arm in spec.arms if arm.ranks is not None}
    sizes = {n for label, n in parameters.items() if label.split(" at ")[0] not in fixed}
    if fixed and len(set(parameters.values())) > len(sizes):
        found.append(f"{', '.join(sorted(fixed))}: fixed ranks, of a size of their own; not equal in parameters.")
    return found
