"""How fast this machine trains and evaluates a model on a data set: a few updates, no more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.budget import resolve_budget, spend
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.recommend.material import Material
from adaptive_lora.recommend.sizing import Speed
from adaptive_lora.recommend.study_text import Question
from adaptive_lora.study.prepare import open_base, open_records
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.study.targets import encoder_of

if TYPE_CHECKING:
    from adaptive_lora.training.bank import Bank

_TRIED = 128
"""Records that are trained and evaluated on."""
_MOST_TOGETHER = 8
"""Adapters side by side: many cost less each where a pass is short."""
_UPDATES = 60
"""More than there is patience for."""


def measure_speed(question: Question, material: Material, device: str | None, listener: ProgressListener) -> Speed:
    """Loads the model, trains uniform ranks for some updates and evaluates some records; nothing is kept."""
    import torch

    from adaptive_lora.study.pricing import PATIENCE, seconds_per_token, timed_update
    from adaptive_lora.training.bank import Bank, Member
    from adaptive_lora.training.base import check_device, default_device
    from adaptive_lora.training.memory import members_at_once
    from adaptive_lora.training.options import TrainingOptions

    began = time.monotonic()
    listener.stage("loading the model")
    base = open_base(question.model, None, question.dtype, str(check_device(device or default_device())))
    encoder = encoder_of(base.outline, base.tokenizer, question.max_length, question.template)
    some = open_records(question.data).records[: 4 * _TRIED]
    examples = [e for e in encoder.encode_all(r for r in some if not r.is_empty) if e.completion_tokens][:_TRIED]
    start = time.monotonic() - began
    listener.stage("timing a few updates")
    options = TrainingOptions(learning_rate=1e-4, steps=_UPDATES, batch_size=material.batch_size)
    member = Member(plan=uniform_plan(material, question.rank), options=options, seed=0, examples=examples)
    tokens = sum(len(example.ids) for example in examples) / len(examples)
    times = []
    for together in (1, min(_MOST_TOGETHER, members_at_once(base, [member.plan] * _MOST_TOGETHER))):
        with Bank(base, [member] * together) as bank:
            times.append(seconds_per_token(bank, timed_update(bank)) * tokens)
            evaluated = _evaluated(bank, examples, PATIENCE / 3) / together
        if times[0] * material.batch_size > PATIENCE / 3:
            break  # long passes cost as much side by side
    machine = f"cpu, {torch.get_num_threads()} threads" if base.device.type == "cpu" else str(base.device)
    return Speed(min(times), evaluated, times[0], start, machine)


def _evaluated(bank: Bank, examples: Sequence[Example], patience: float) -> float:
    """Seconds a record of the whole bank, by more and more records until that takes long enough."""
    count = 8
    while True:
        some = examples[:count]
        began = time.perf_counter()
        bank.evaluate(some)
        took = time.perf_counter() - began
        if took > patience or count >= len(examples):
            return took / len(some)
        count *= 2


def uniform_plan(material: Material, rank: int) -> RankPlan:
    """Equal ranks on the target modules at alpha = 2 r."""
    budget = resolve_budget(f"rank:{rank}", material.modules)
    ranks = spend(material.modules, {m.name: 1.0 for m in material.modules}, budget.parameters)
    facts = {"model": material.outline.name, "budget": f"rank:{rank}"}
    return RankPlan(
        "uniform", budget.parameters, material.modules, ranks, Scaling(reference_rank=rank), provenance=facts
    )
