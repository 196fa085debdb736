"""What a study will cost, before it is run: runs, parameters, memory, time, and what its seeds can decide."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.outlook import Question, outlook_text, outlooks
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.lock import undecidable
from adaptive_lora.study.prepare import Material
from adaptive_lora.study.protocol import arms_on_budgets, baseline_of, primary_comparisons
from adaptive_lora.study.runs import RunSpec, count_runs
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.settings import scaling_of, steps_of
from adaptive_lora.training.adapter import attached, set_training, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.head import LARGEST_LOGITS
from adaptive_lora.training.memory import members_at_once, state_bytes
from adaptive_lora.training.reference import update

_SPENT = 0.99
"""A plan that spends less than this share of its budget is worth a warning."""


@dataclass(frozen=True)
class Estimate:
    """A study's size."""

    runs: dict[str, int]
    """Runs by phase."""
    parameters: dict[str, int]
    """Arm at budget -> trainable parameters of its plan."""
    steps: int
    """Updates per run of the baseline."""
    memory_bytes: int
    """About: weights, adapters with gradient and AdamW state, activations (measured), logits."""
    seconds: float
    """All runs, from timed updates and evaluations on this machine."""
    power: str
    """The smallest difference the seeds would find."""
    warnings: tuple[str, ...]


def estimate(material: Material, pilot: Sequence[ArmSummary] = ()) -> Estimate:
    """Plans every arm once and times a few updates by the study's engine; nothing is written.

    What the seeds can tell apart is reckoned from the spread of a `pilot`: another study's arms.
    """
    spec = material.study.spec
    seed = spec.seeds.evaluation[0]
    examples = material.training_examples(seed)
    parameters, plan_seconds, unspent = {}, 0.0, []
    members = []
    for text, arm in arms_on_budgets(spec):
        run = RunSpec(Phase.EVALUATION, arm, text, scaling_of(spec, arm), spec.train.learning_rate[0], seed)
        began = time.monotonic()
        plan = material.plan(run, examples)
        plan_seconds += time.monotonic() - began
        members.append(Member(plan=plan, options=material.training_options(run), seed=seed, examples=examples))
        parameters[f"{arm.name} at {text}"] = plan.trainable_parameters
        if arm.ranks is None and plan.trainable_parameters < _SPENT * plan.budget:
            unspent.append(_unspent(f"{arm.name} at {text}", plan))
    counts = count_runs(spec)
    total = sum(counts.values())
    cost = _by_bank(material, members, total) if spec.engine == "bank" else _by_reference(material, members[0])
    steps = [steps_of(spec, arm) for _, arm in arms_on_budgets(spec)]
    seconds = total * (sum(steps) / len(steps) * cost.update + spec.data.validation * cost.record)
    seconds += counts[Phase.EVALUATION] * spec.data.test * cost.record + total * plan_seconds / len(members)
    return Estimate(
        runs={phase.value: count for phase, count in counts.items()},
        parameters=parameters,
        steps=steps_of(spec, baseline_of(spec)),
        memory_bytes=_weights(material) + max(cost.working_bytes, _scoring(material)),
        seconds=seconds,
        power=_power(spec, pilot),
        warnings=(*_warnings(material, parameters), *unspent),
    )


@dataclass(frozen=True)
class _Cost:
    update: float
    """Seconds of one adapter's update."""
    record: float
    """Seconds to evaluate one adapter on one record."""
    working_bytes: int
    """What training takes besides the base model."""


def _by_bank(material: Material, members: Sequence[Member], runs: int) -> _Cost:
    together = list(itertools.islice(itertools.cycle(members), min(runs, 8)))
    checkpointing = material.study.spec.train.activation_checkpointing
    with Bank(material.base, together, checkpointing=checkpointing) as bank:
        times = [_seconds(bank.step) for _ in range(4)]
        some = material.splits.validation[:50]
        record = _seconds(lambda: bank.evaluate(some)) / len(some)
        batch = sum(bank.tokens.values()) / len(together) / (1 - bank.padding_share)
        positions = min(bank.chunk_tokens, batch * runs) * bank.workers
        activations = positions * bank.bytes_per_position()
    plans = [member.plan for member in members]
    adapters = min(runs, members_at_once(material.base, plans)) * max(state_bytes(material.base, p) for p in plans)
    vocabulary = material.base.model.config.get_text_config().vocab_size
    logits = 3 * 4 * min(LARGEST_LOGITS, int(positions) * vocabulary)
    update = sorted(times[1:])[1]  # the first update pays for warming up
    return _Cost(update / len(together), record / len(together), int(adapters + activations + logits))


def _by_reference(material: Material, member: Member) -> _Cost:
    options, examples = member.options, member.examples
    with attached(material.base, member.plan, member.seed, options.dropout) as model:
        optimizer = torch.optim.AdamW(trainable(model).values())
        set_training(model, True)
        times = [
            _seconds(lambda step=step: update(model, optimizer, member.batch(step), options, step))  # type: ignore[misc]
            for step in range(4)
        ]
        set_training(model, False)
        some = material.splits.validation[:50]
        record = _seconds(lambda: evaluate(model, some, material.base.device)) / len(some)
    longest = max(len(example.ids) for example in examples)
    logits = 3 * 4 * options.batch_size * longest * material.base.model.config.get_text_config().vocab_size
    return _Cost(sorted(times[1:])[1], record, state_bytes(material.base, member.plan) + logits)


def _power(spec: StudySpec, pilot: Sequence[ArmSummary]) -> str:
    question = Question(
        len(spec.seeds.evaluation), spec.analysis.alpha, len(primary_comparisons(spec)), spec.analysis.margin
    )
    if pilot:
        return outlook_text(outlooks(pilot, question), question)
    return (
        "Power: not known. Which difference these seeds can find depends on how much runs of one arm differ: name the "
        "folder of a study like this one with --pilot."
    )


def _unspent(label: str, plan: RankPlan) -> str:
    return (
        f"{label} spends {plan.trainable_parameters:,} of {plan.budget:,} parameters: its {len(plan.modules)} modules "
        "hold no more, or their sizes do not divide it; arms of unequal size are hard to compare."
    )


def _seconds(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _weights(material: Material) -> int:
    return sum(p.numel() * p.element_size() for p in material.base.model.parameters())


def _scoring(material: Material) -> int:
    """A gradient for every target weight, where a strategy measures."""
    arms = [(find_strategy(arm.strategy), arm.options) for arm in material.study.spec.arms if arm.strategy]
    measures = any(strategy.basis(check_options(strategy, options)) == "data" for strategy, options in arms)
    return 4 * sum(m.d_in * m.d_out for m in material.modules) if measures else 0


def _warnings(material: Material, parameters: dict[str, int]) -> list[str]:
    spec = material.study.spec
    found = []
    if not primary_comparisons(spec):
        found.append("no primary comparison: the study describes and gives no verdict.")
    elif refused := undecidable(spec):
        found.append(f"`run` will refuse this study: {refused[1]}.")
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
