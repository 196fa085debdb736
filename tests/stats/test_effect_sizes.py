"""Sizes of differences, from a real ledger."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.effect_sizes import effect_sizes, record_intervals
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.results import runs_table
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study


def test_sizes_agree_with_the_ledgers_records(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study = load_study(study_file(("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]"),
                                  ("evaluation: 2", "evaluation: 3")))  # fmt: skip
    run_study(study, tmp_path / "out")
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        runs, facts = runs_table(ledger), ledger.facts()
        arms = summarise(runs, "uniform")
        (size,) = effect_sizes({}, record_intervals(ledger.by_record, runs, arms, "uniform"), runs, arms, facts)
        results = {
            arm: [ledger.by_record(run_id, "test") for run_id in own.sort_values("seed")["run_id"]]
            for arm, own in runs.groupby("arm")
        }
    own, base = ([sum(r.nll) / sum(r.tokens) for r in results[arm] if r] for arm in ("linear-decay", "uniform"))
    apart = np.subtract(own, base)
    assert size.effect.nats_per_token == pytest.approx(apart.mean()) and size.sd == pytest.approx(apart.std(ddof=1))
    assert size.effect.perplexity_percent == pytest.approx(100 * (math.exp(apart.mean()) - 1))
    frozen = runs["base_loss"].iloc[0]
    assert size.effect.share_of_gain == pytest.approx(-apart.mean() / (frozen - np.mean(base)))
    test = prepare(study).splits.test
    tokens = sum(example.completion_tokens for example in test)
    assert size.effect.bits_per_byte == pytest.approx(apart.mean() / math.log(2) * tokens / facts["data"]["test_bytes"])
    assert size.over_records is not None
    assert (size.over_seeds.over, size.over_records.over) == ("seeds", "test records")
    assert (size.over_seeds.n, size.over_records.n) == (3, len(test))
    assert size.over_records.mean == pytest.approx(size.over_seeds.mean)


def test_completion_bytes_are_those_of_the_text(study_file: Callable[..., Path]) -> None:
    splits = prepare(load_study(study_file())).splits
    records = [e for e in splits.test if not e.truncated]
    texts = [splits.encoder.tokenizer.decode(e.ids[e.prompt_length :], skip_special_tokens=True) for e in records]
    assert splits.encoder.completion_bytes(records) == sum(len(text.encode()) for text in texts) > len(records)
