"""What an estimate says of memory: passes cut as a bank cuts them, and the peak of the process itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.reporting.templating import render
from adaptive_lora.study import estimated_memory
from adaptive_lora.study.estimate import estimate
from adaptive_lora.study.estimated_memory import Pass, first_bank, largest_training_pass
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.prepare import PreparedStudy, prepare
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training import memory
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.packing import chunks_of
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]


def opened(study_file: WriteStudy, *replacements: tuple[str, str]) -> PreparedStudy:
    return prepare(load_study(study_file(*replacements)), "cpu")


def member_of(prepared: PreparedStudy, run: Run) -> Member:
    """Of uniform ranks."""
    task = prepared.plan_task(first_bank(prepared)[0])
    plan = task if isinstance(task, RankPlan) else task.plan({}, {})
    options, examples = prepared.training_options(run), prepared.training_examples(run.seed)
    return Member(plan=plan, options=options, seed=run.seed, examples=examples)


@pytest.mark.parametrize(("limit", "workers"), [(4096, 2), (300, 2), (4096, 1)])
def test_the_largest_pass_is_that_of_a_real_bank(study_file: WriteStudy, limit: int, workers: int) -> None:
    prepared = opened(study_file)
    runs = first_bank(prepared)
    members = [member_of(prepared, run) for run in runs]
    largest = 0
    with Bank(prepared.base, members, chunk_tokens=limit, workers=workers) as bank:
        while bank.running:
            bank.step()
            chunks = chunks_of(bank.tokens, limit, workers)
            largest = max(largest, *(sum(bank.tokens[i] for i in chunk) for chunk in chunks))
    found = largest_training_pass(prepared, runs, limit, workers)
    assert (found.positions, found.at_once) == (largest, workers) and 0 < found.learnt < found.positions


def test_the_bank_is_as_large_as_the_study_makes_it(study_file: WriteStudy) -> None:
    """Of all runs of a phase, and not of one a cell."""
    assert len(first_bank(opened(study_file))) == 4 * 2
    assert len(first_bank(opened(study_file, ("{evaluation: 2}", "{evaluation: 40}")))) == 64
    tuned = ("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2, 1e-1]"), ("evaluation: 2", "evaluation: 2, tuning: 2")
    assert {run.phase.value for run in first_bank(opened(study_file, *tuned))} == {"tuning"}


@pytest.mark.parametrize(
    "replacements", [(), (REFERENCE,), (("steps: 6", "activation_checkpointing: true, steps: 6"),)]
)
def test_the_estimate_is_of_the_whole_process(
    study_file: WriteStudy, replacements: tuple[tuple[str, str], ...]
) -> None:
    prepared = opened(study_file, *replacements)
    before = memory.resident_bytes(prepared.base.device)
    found = estimate(prepared)
    assert before < found.memory_bytes < before + 400e6
    assert "MB of memory at the most, as `top` shows it" in render("power.cost", found)


def test_more_adapters_and_longer_passes_take_more(study_file: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = opened(study_file)
    one = member_of(prepared, first_bank(prepared)[0])
    members = [one] * len(prepared.study.matrix.cells)
    with Bank(prepared.base, [one]) as bank:
        bank.step()
        each, state = bank.bytes_per_position(), memory.state_bytes(prepared.base, one.plan)
        own = estimated_memory._pass_of(bank)
        for passes in (1, 2):
            largest = Pass(own.positions + 1000, own.learnt, passes)
            monkeypatch.setattr(estimated_memory, "largest_training_pass", lambda *_, found=largest: found)
            monkeypatch.setattr(estimated_memory, "_largest_evaluation_pass", lambda *_: Pass(0, 0, 1))
            taken = estimated_memory.bank_bytes(prepared, bank, members, None)
            logits = 3 * 4 * own.learnt * 768
            whole = passes * (each * (own.positions + 1000) + logits)
            expected = 7 * state + 1.25 * whole - (each * own.positions + logits)
            assert taken == pytest.approx(expected, rel=1e-6)
