"""Every measure of a quantised base is that of a plain one with the weights that the codes stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptive_lora.measures.adalora import adalora_ranks
from adaptive_lora.measures.calibration_pass import GROUP
from adaptive_lora.measures.request import key_of
from adaptive_lora.measures.weights import condition_numbers, stable_ranks, weight_norms
from adaptive_lora.planning.outline import Quantise
from adaptive_lora.planning.strategies.base import CalibrationOptions
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.quantised import quantised_layers
from tests.measures.conftest import assert_clean, inner_state, request_of, short_of
from tests.measures.test_calibration_pass import in_threes, scores_of
from tests.training.conftest import demo_examples, plain_twin

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no quantised bases here")

KINDS: tuple[Quantise, ...] = ("nf4", "int8")
Pair = tuple[FrozenBase, FrozenBase]


@pytest.fixture(
    params=[(family, kind) for family in ("gpt2", "llama") for kind in KINDS], ids=lambda way: "-".join(way)
)
def pair(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> Pair:
    """A quantised base, and its plain twin."""
    family, kind = request.param
    base = load_base(family, model_folders[family], quantise=kind)
    return base, plain_twin(base, model_folders[family])


def test_measures_of_the_weights(pair: Pair) -> None:
    for measure in (stable_ranks, weight_norms):
        found, wanted = (measure(which, which.outline.modules) for which in pair)
        assert found == pytest.approx(wanted, rel=1e-6)
    found, wanted = (condition_numbers(which, which.outline.modules) for which in pair)
    assert found == pytest.approx(wanted, rel=1e-3)  # the smallest singular value has fewer digits


@pytest.mark.parametrize("mode", ["exact", "stream"])
def test_measures_of_the_pass(pair: Pair, mode: str) -> None:
    batches = in_threes(demo_examples(pair[0], 6))
    measures = sorted(GROUP.inputs)
    found, wanted = (scores_of(which, batches, *measures, mode=mode, components=4) for which in pair)
    for measure in measures:
        for name, value in wanted[measure].items():
            # A rank counts what is far below the largest, where float32 has fewer digits.
            assert found[measure][name] == pytest.approx(value, rel=1e-3 if measure == "whitened-rank" else 1e-4)


def test_adalora_goes_by_peft_on_the_quantised_layers(pair: Pair) -> None:
    base = pair[0]
    before = inner_state(base)
    layers = dict(quantised_layers(base.model))
    found = adalora_ranks(short_of(base, steps=20))
    assert set(found) == {m.name for m in base.outline.modules} and len(set(found.values())) > 1
    assert dict(quantised_layers(base.model)) == layers
    assert_clean(base, before)


def test_a_measurement_says_how_the_weights_are_kept(pair: Pair) -> None:
    keys = [key_of("stable-rank", (), request_of(which, CalibrationOptions())).inputs for which in pair]
    assert f'"quantised": "{pair[0].quantised}"' in keys[0] and "quantised" not in keys[1]
