"""Measurements: what each depends on, what is taken together, progress, stopping, and failures that stay alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lora.errors import TrainingError, UsageError
from adaptive_lora.measures import adalora, measuring, over_ranked
from adaptive_lora.measures.groups import MeasurementResult, Value
from adaptive_lora.measures.measuring import MeasuringProgress, Taken, collect, measure, measurements, take
from adaptive_lora.measures.request import Measurement, Request
from adaptive_lora.planning.plan import Scaling
from adaptive_lora.planning.strategies.base import (
    MEASURES,
    AgreementOptions,
    CalibrationOptions,
    ComponentOptions,
    HindsightOptions,
    OverRankOptions,
    SearchOptions,
    ShortRunOptions,
)
from adaptive_lora.planning.strategies.registry import OutsideMeasure, register_measure
from adaptive_lora.training.base import FrozenBase, load_base
from tests.measures.conftest import Recorder, assert_clean, inner_state, request_of

BATCHES = {"calibration_batches": 2, "calibration_batch_size": 3}
BY_PASS = ("input-spectrum", "weight-gradient", "gradient-norm", "b-gradient", "whitened-rank")
BY_INPUTS = ("update-spectrum-on-inputs", "output-norm", "update-spectrum-on-loss")
BY_ROUNDS = ("marginal-gain", "loss-attribution")
BY_RUNS = ("update-spectrum", *BY_INPUTS, "adalora-rank", *BY_ROUNDS, "random-search")
OPTIONS: Mapping[str, CalibrationOptions] = {
    "stable-rank": CalibrationOptions(),
    "condition-number": CalibrationOptions(),
    **dict.fromkeys(BY_PASS, ComponentOptions(**BATCHES, rho=1.0)),
    **dict.fromkeys(BY_RUNS[:4], OverRankOptions(**BATCHES, short_run_steps=2)),
    "adalora-rank": ShortRunOptions(short_run_steps=6),
    "marginal-gain": AgreementOptions(**BATCHES, runs=2, race=False),
    "loss-attribution": HindsightOptions(**BATCHES, runs=1, rounds=2),
    "random-search": SearchOptions(**BATCHES, draws=2),
}


@dataclass(frozen=True)
class Variant:
    """One change to all requests, and the measures that it concerns."""

    changes: Mapping[str, Any]
    concerns: tuple[str, ...]
    """All others have the same key and the same bits."""


VARIANTS: Mapping[str, Variant] = {
    "seed": Variant({"seed": 6}, (*BY_PASS, *BY_RUNS)),
    "learning rate": Variant({"learning_rate": 0.2}, BY_RUNS),
    "planned steps": Variant({"steps": 4}, (*BY_ROUNDS, "random-search")),  # the others have steps of their own
    "batch size of training": Variant({"batch_size": 3}, BY_RUNS),
    "budget": Variant({"rank": 3}, ("input-spectrum", "b-gradient", *BY_RUNS)),
    "scaling": Variant({"scaling": Scaling("constant", 30.0, 2.0)}, BY_RUNS),
    "short_run_steps": Variant({"short_run_steps": 9}, BY_RUNS),
    "over_rank": Variant({"over_rank": 1.5}, (*BY_RUNS[:4], "loss-attribution")),
    "calibration_batches": Variant({"calibration_batches": 3}, (*BY_PASS, *BY_INPUTS, "marginal-gain")),
    "rho": Variant({"rho": 2.0}, ("input-spectrum",)),
    "tokens": Variant({"tokens": "completion"}, ("input-spectrum",)),
    "mode": Variant({"mode": "stream"}, ("weight-gradient", "gradient-norm")),
    "rounds": Variant({"rounds": 1}, BY_ROUNDS),
    "max_rank of rounds": Variant({"max_rank": 2}, (*BY_ROUNDS, "random-search")),
    "nothing": Variant({}, ()),
}


@pytest.fixture(scope="module")
def base(model_folders: dict[str, Path]) -> FrozenBase:
    """The tiny GPT-2, one for all tests: no measure changes it."""
    return load_base("gpt2", model_folders["gpt2"])


def wanted(base: FrozenBase, measures: tuple[str, ...] = tuple(OPTIONS), **changes: Any) -> list[Measurement]:
    """Measurements of small requests; changes go to the options that know them, or to the request."""
    found = []
    known = {name for options in OPTIONS.values() for name in type(options).model_fields}
    rank = changes.pop("rank", 2)
    budget = rank * sum(m.params_per_rank for m in base.outline.modules)
    own = {name: value for name, value in changes.items() if name not in known}
    for name in measures:
        fields = type(OPTIONS[name]).model_fields
        update = {name: value for name, value in changes.items() if name in fields}
        options = OPTIONS[name].model_copy(update=update)
        found += measurements([name], request_of(base, options, **{"budget": budget, "steps": 3, **own}))
    return found


def values_of(wanted: list[Measurement]) -> dict[str, Mapping[str, Value]]:
    """By measure, each taken by itself."""
    return {m.measure: measure([m.measure], m.request).scores[m.measure] for m in wanted}


@pytest.fixture(scope="module")
def alone(base: FrozenBase) -> dict[str, Mapping[str, Value]]:
    """All measures of the plain requests."""
    return values_of(wanted(base))


def test_the_table_has_every_measure() -> None:
    assert OPTIONS.keys() == MEASURES.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_values_change_with_the_inputs_that_are_named_and_with_no_others(
    base: FrozenBase, alone: dict[str, Mapping[str, Value]], name: str
) -> None:
    variant = VARIANTS[name]
    before, after = wanted(base), wanted(base, **variant.changes)
    found = values_of(after)
    assert [b.measure for b, a in zip(before, after, strict=True) if b.key != a.key] == [
        measure for measure in OPTIONS if measure in variant.concerns
    ]
    # A search names one of two draws, which other runs may name too.
    assert [measure for measure in OPTIONS if found[measure] != alone[measure] and measure != "random-search"] == [
        measure for measure in OPTIONS if measure in variant.concerns and measure != "random-search"
    ]
    assert "random-search" in variant.concerns or found["random-search"] == alone["random-search"]


def test_together_is_as_alone_in_fewer_passes_and_banks(
    base: FrozenBase, alone: dict[str, Mapping[str, Value]]
) -> None:
    record = Recorder()
    several = [*wanted(base, bank=record.bank()), *wanted(base, bank=record.bank(), seed=6)]
    several = [replace(m, request=replace(m.request, training=several[0].request.training)) for m in several]
    found = list(take([*several, *several]))
    results = {key: result for taken in found for key, result in taken.results.items()}
    assert sum(len(taken.results) for taken in found) == len(results) == 2 * len(OPTIONS) - 2  # one each of the weights
    for m in several[: len(OPTIONS)]:
        assert result_of(results[m.key]).values == alone[m.measure]
    others = values_of(several[len(OPTIONS) :])
    for m in several[len(OPTIONS) :]:
        assert result_of(results[m.key]).values == others[m.measure]

    counts = {name: sum(t.counts.get(name, 0) for t in found) for name in ("gradient_passes", "short_runs")}
    assert counts == {"gradient_passes": 2 + 2 * 2 + 2, "short_runs": 2 + 2 * 4 + 2 + 2 * 2 + 2 * 2}
    assert [len(members) for members in record.members[:6]] == [2, 4, 4, 4, 2, 2]  # over-ranked, a search, and rounds
    for taken in found:
        own = [sum(result_of(r).facts["seconds"].values()) for r in taken.results.values()]
        assert max(own) <= taken.seconds


def result_of(result: MeasurementResult | Exception) -> MeasurementResult:
    assert isinstance(result, MeasurementResult), result
    return result


def test_budgets_share_a_pass(base: FrozenBase) -> None:
    names = ("input-spectrum", "b-gradient", "whitened-rank")
    several = [*wanted(base, names), *wanted(base, names, rank=3)]
    (taken,) = take(several)
    assert len(taken.results) == 5 and taken.counts == {"gradient_passes": 1}
    for m in several:
        assert result_of(taken.results[m.key]).values == measure([m.measure], m.request).scores[m.measure]


def test_results_are_kept_exactly_by_json(base: FrozenBase) -> None:
    for taken in take(wanted(base)):
        for result in map(result_of, taken.results.values()):
            assert MeasurementResult(**json.loads(json.dumps(result.to_json()))) == result


def test_what_is_stored_is_collected(base: FrozenBase, alone: dict[str, Mapping[str, Value]]) -> None:
    request = wanted(base, ("gradient-norm",))[0].request
    needs = ["gradient-norm", "stable-rank"]
    stored = {key: result for taken in take(measurements(needs, request)) for key, result in taken.results.items()}
    found = collect(needs, request, stored)
    assert found.scores == {name: alone[name] for name in needs}
    assert found.facts["seconds"].keys() == {"weights", "calibration pass"}
    assert found.facts["calibration_records"] == 6


GROUPS = {"gradient-norm": 2, "output-norm": 2, "marginal-gain": 6, "adalora-rank": 6}
"""Measure -> its batches or updates."""


@pytest.mark.parametrize("name", GROUPS)
def test_progress_counts_batches_and_updates(base: FrozenBase, name: str) -> None:
    heard: list[MeasuringProgress] = []
    list(take(wanted(base, ("stable-rank", name)), heard.append))
    assert (heard[0].group, heard[0].done) == ("weights", 0)
    own = [progress for progress in heard if progress.measures == (name,)]
    assert all((p.done, p.total, p.seeds) == (1, 2, (5,)) for p in own)
    steps = [p.step for p in own]
    assert steps == sorted(steps) and set(steps) == set(range(GROUPS[name] + 1))
    assert {p.steps for p in own[1:]} == {GROUPS[name]}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_is_heard_within_one_update(base: FrozenBase, name: str, at: int) -> None:
    before, heard, record = inner_state(base), list[MeasuringProgress](), Recorder()
    stored: list[Taken] = []
    with pytest.raises(KeyboardInterrupt):
        for taken in take(
            wanted(base, ("stable-rank", name), bank=record.bank()),
            heard.append,
            lambda: bool(heard and heard[-1].measures == (name,) and heard[-1].step >= at),
        ):
            stored.append(taken)
    assert [progress.step for progress in heard if progress.measures == (name,)] == list(range(at + 1))
    assert len(stored) == 1  # what came before it
    if name in ("output-norm", "marginal-gain"):
        assert record.updates == (at + 1 if name == "output-norm" else 2 * (at + 1))
    assert_clean(base, before)


def test_a_run_that_diverges_costs_its_neighbours_nothing(
    base: FrozenBase, alone: dict[str, Mapping[str, Value]]
) -> None:
    names = ("update-spectrum", "marginal-gain")
    good, wild = wanted(base, names), wanted(base, names, learning_rate=1e30, max_grad_norm=None)
    results = {key: result for taken in take([*wild, *good]) for key, result in taken.results.items()}
    for m in good:
        assert result_of(results[m.key]).values == alone[m.measure]
    for m in wild:
        with pytest.raises(TrainingError, match="diverged at step"):
            collect([m.measure], m.request, results)


def test_a_failure_of_all_is_taken_in_halves(
    base: FrozenBase, alone: dict[str, Mapping[str, Value]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = over_ranked.over_ranked_seed
    bad = plain(over_ranked.short_run_of(wanted(base, ("output-norm",), seed=7)[0].request, 1))

    def fail(short: Any) -> int:
        if plain(short) == bad:
            raise MemoryError("not enough memory")
        return plain(short)

    monkeypatch.setattr(over_ranked, "over_ranked_seed", fail)
    several = [m for seed in (5, 6, 7) for m in wanted(base, ("output-norm",), seed=seed)]
    results = {key: result for taken in take(several) for key, result in taken.results.items()}
    assert result_of(results[several[0].key]).values == alone["output-norm"]
    assert isinstance(results[several[1].key], MeasurementResult)
    assert isinstance(results[several[2].key], MemoryError)


def test_one_strategy_fails_and_the_measure_says_why(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adalora, "ranks_of", lambda model: 1 / 0)
    (only,) = wanted(base, ("adalora-rank",))
    with pytest.raises(ZeroDivisionError):
        measure(["adalora-rank"], only.request)


def outside(function: Any, digest: str = "3f") -> str:
    """A function as a measure from outside the package; its key."""
    register_measure(OutsideMeasure("size", "data", function), "a_file.py", digest * 32)
    return f"size@{digest * 6}"


def test_a_measure_from_outside_is_taken_as_the_packages_own_are(
    base: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "GROUPS", dict(measuring.GROUPS))
    key = outside(lambda base, modules, batches: {m.name: tuple(map(len, batches)) for m in modules})
    request = wanted(base, ("gradient-norm",))[0].request
    found = measure([key, "gradient-norm"], request)
    assert all(value == [3.0, 3.0] for value in found.scores[key].values())
    assert found.facts["seconds"].keys() == {"calibration pass", "size"} and found.facts["calibration_records"] == 6
    first, again, other = (measurements([key], replace(request, seed=seed))[0].key for seed in (5, 5, 9))
    assert first == again != other
    with pytest.raises(UsageError, match=r"no measure 'size'.*stable-rank"):
        measurements(["size"], request)


def test_edited_code_is_another_measure(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "GROUPS", dict(measuring.GROUPS))
    keys = [
        outside(lambda base, modules: dict.fromkeys((m.name for m in modules), 1), "41"),
        outside(lambda base, modules: dict.fromkeys((m.name for m in modules), 2), "42"),
    ]
    request = wanted(base, ("gradient-norm",))[0].request
    assert len({m.key.digest for m in measurements(keys, request)}) == 2
    assert [set(values.values()) for values in measure(keys, request).scores.values()] == [{1.0}, {2.0}]


def test_keys_name_the_base_and_the_modules(base: FrozenBase) -> None:
    (plain,) = wanted(base, ("stable-rank",))
    fewer = replace(plain.request, modules=plain.request.modules[1:])
    other = replace(plain.request, base=replace(base, revision="another"))
    keys = {measurements(["stable-rank"], request)[0].key for request in (plain.request, fewer, other)}
    assert len(keys) == len({key.digest for key in keys}) == 3
    assert torch.get_num_threads() == 1


def test_requests_of_one_seed_draw_the_same_batches(base: FrozenBase) -> None:
    def batches(request: Request) -> Any:
        return request.batches

    first, again = (wanted(base, ("gradient-norm",))[0].request for _ in range(2))
    assert batches(first) == batches(again) != batches(replace(first, seed=6))
