"""Our counts of components against those of PEFT's own EVA on the same batches."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import initialize_lora_eva_weights

from adaptive_lora.data.encoding import Example
from adaptive_lora.measures.calibration_pass import Pass, Quantity, run_pass
from adaptive_lora.planning.strategies.eva import component_counts
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import collate

RANK, RHO = 4, 2.0


def ranks_of_peft(base: FrozenBase, batches: list[list[Example]], completion: bool) -> dict[str, int]:
    """Ranks after `initialize_lora_eva_weights`; 0 for the modules that it takes the adapter from."""
    config = LoraConfig(
        r=RANK, target_modules=[m.name for m in base.outline.modules], init_lora_weights="eva",
        eva_config=EvaConfig(rho=RHO, tau=0.999, use_label_mask=completion),
        fan_in_fan_out=base.outline.modules[0].fan_in_fan_out,
    )  # fmt: skip
    tensors = [collate(batch) for batch in batches]
    given: list[dict[str, Any]] = [vars(batch) for batch in tensors]
    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(copy.deepcopy(base.model), config, low_cpu_mem_usage=True)
        initialize_lora_eva_weights(model, given, show_progress_bar=False)
    found = {name: m.r["default"] for name, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    return {m.name: found.get(m.name, 0) for m in base.outline.modules}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.parametrize("tokens", ["all", "completion"])
def test_counts_are_those_of_peft_within_one(base: FrozenBase, examples: list[Example], tokens: Any) -> None:
    """By groups of modules that share an input: PEFT breaks the ties inside a group by its own order.

    PEFT centres the inputs, as we do, and takes incremental low-rank decompositions, of which ours is the limit.
    """
    batches = [examples[:20], examples[20:]]
    wanted = Quantity("input-spectrum")
    plan = Pass(
        quantities=frozenset({wanted}), base=base, modules=base.outline.modules, batches=batches, seed=0, tokens=tokens
    )
    spectra = {name: tuple(spectrum) for name, spectrum in run_pass(plan)[0][wanted].items()}
    counts = component_counts(spectra, RANK * len(spectra), round(RHO * RANK))
    theirs = ranks_of_peft(base, batches, completion=tokens == "completion")

    ours_by_input, theirs_by_input = Counter[Any](), Counter[Any]()
    for name, spectrum in spectra.items():
        ours_by_input[spectrum] += counts[name]
        theirs_by_input[spectrum] += theirs[name]
    assert len(ours_by_input) == 12  # four inputs in each of three blocks
    assert sum(theirs.values()) == sum(counts.values()) == RANK * len(spectra)
    assert all(abs(ours_by_input[key] - theirs_by_input[key]) <= 1 for key in ours_by_input)
    assert max(counts.values()) - min(counts.values()) >= 2  # there is something to agree on
