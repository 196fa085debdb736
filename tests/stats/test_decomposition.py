"""What a difference is made of: two parts that add up, in a family of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adaptive_lora.stats.crossed import crossed
from adaptive_lora.stats.decomposition import Decomposition, decompositions, shadows_of
from adaptive_lora.stats.evidence import StudyTables
from adaptive_lora.stats.step_down import family_p
from adaptive_lora.study.results import read_export
from tests.committed import superseded
from tests.stats.tables import BASE, diverge, moved, table

CONTROLS: dict[str, Any] = {
    "arms": {"random": None, "shuffled-arm": "arm"}, "shadows": {"shuffled-arm": "arm"},
}  # fmt: skip


def spec_of(*arms: str, looks: tuple[int, ...] = ()) -> dict[str, Any]:
    """A study file of these arms, each a strategy that measures."""
    named = [{"name": "uniform", "strategy": "uniform"}, *({"name": arm, "strategy": "eva"} for arm in arms)]
    return {
        "arms": named, "analysis": {"baseline": "uniform", "alpha": 0.05, "margin": 0.01},
        "seeds": {"evaluation": list(range(8)), **({"looks": list(looks)} if looks else {})},
    }  # fmt: skip


def found_in(runs: pd.DataFrame, spec: dict[str, Any], by_record: Any = None) -> list[Decomposition]:
    primary = [{"arm": arm["name"], "budget": "rank:8"} for arm in spec["arms"][1:]]
    tables = StudyTables(runs, by_record or (lambda run_id, split: None))
    return decompositions(tables, {"primary": primary, "controls": CONTROLS}, spec)


def costly_and_clever(value: float = -0.03) -> pd.DataFrame:
    """Shuffled ranks cost 0.02; the arm's places are worth `value`."""
    return table({("uniform", "rank:8"): BASE, ("shuffled-arm", "rank:8"): moved(0.02),
                  ("arm", "rank:8"): moved(0.02 + value, -1.0)})  # fmt: skip


def test_the_parts_add_up_and_are_judged_each() -> None:
    (found,) = found_in(costly_and_clever(), spec_of("arm"))
    assert (found.arm, found.budget, found.control, found.own) == ("arm", "rank:8", "shuffled-arm", True)
    assert found.price.size.mean == pytest.approx(0.02, abs=1e-3) and str(found.price.verdict) == "worse"
    assert found.value.size.mean == pytest.approx(-0.03, abs=1e-3) and str(found.value.verdict) == "better"
    assert found.price.size.mean + found.value.size.mean == pytest.approx(found.total.mean, abs=1e-12)
    assert found.price.size == found.price.judged.interval  # one look, and what is printed is what was judged


def test_small_parts_are_never_equivalent() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("shuffled-arm", "rank:8"): moved(0.0005), ("arm", "rank:8"): BASE})
    (found,) = found_in(runs, spec_of("arm"))
    assert str(found.price.verdict) == str(found.value.verdict) == "undecided"


def test_both_parts_of_all_arms_are_one_family() -> None:
    """By hand for two comparisons: the smallest p against both, at the correlation of the two rows."""
    runs = costly_and_clever(-0.002)
    (found,) = found_in(runs, spec_of("arm"))
    tables = StudyTables(runs, lambda run_id, split: None)
    cells = [(arm, "rank:8") for arm in ("uniform", "shuffled-arm", "arm")]
    price, value = tables.paired(cells[1], cells[0]), tables.paired(cells[2], cells[1])
    assert price is not None and value is not None
    rho = min(0.9, max(0.0, float(np.corrcoef(price.by_seed, value.by_seed)[0, 1])))
    p = stats.ttest_1samp(price.by_seed, 0.0).pvalue
    assert found.price.judged.p == pytest.approx(p)
    assert found.price.judged.adjusted_p == pytest.approx(family_p(p, 2, rho), rel=1e-6)


def test_records_count_where_they_are_known() -> None:
    runs = costly_and_clever()
    rng = np.random.default_rng(0)
    easy, tokens = rng.normal(size=40), np.full(40, 10)

    def by_record(run_id: str, split: str) -> Any:
        loss = float(runs.loc[runs["run_id"] == run_id, "test_loss"].iloc[0])
        return SimpleNamespace(nll=10 * (loss + 0.01 * easy * run_id.startswith("arm")), tokens=tokens)

    (found,) = found_in(runs, spec_of("arm"), by_record)
    assert found.value.size.over == "seeds and records" and found.value.judged.records == 40
    (alone,) = found_in(runs, spec_of("arm"))
    assert found.value.size.low < alone.value.size.low  # type: ignore[operator]  # records vary too


def test_seeds_that_one_of_the_three_lacks_count_for_none() -> None:
    runs = costly_and_clever()
    diverge(runs, "arm", [3])
    (found,) = found_in(runs, spec_of("arm"))
    assert found.price.size.n == found.value.size.n == found.total.n == 7
    assert found.price.size.mean + found.value.size.mean == pytest.approx(found.total.mean, abs=1e-12)
    assert str(found.value.verdict) == "undecided" and found.value.judged.diverged_pairs.arm == 1  # survivors


def test_without_a_control_there_is_nothing_to_tell() -> None:
    runs = costly_and_clever()
    assert found_in(runs[runs["arm"] != "shuffled-arm"], spec_of("arm")) == []


def test_random_ranks_stand_in_and_their_price_counts_once() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("random", "rank:8"): moved(0.02),
                  ("one", "rank:8"): moved(0.01, 2.0), ("two", "rank:8"): moved(0.03, -2.0)})  # fmt: skip
    one, two = found_in(runs, spec_of("one", "two"))
    assert (one.control, one.own) == ("random", False) and one.price == two.price
    spec = spec_of("one", "two")
    spec["arms"][2]["strategy"] = "attention-only"  # another question than where rank goes
    assert [d.arm for d in found_in(runs, spec)] == ["one"]


def test_looks_decide_a_part_early() -> None:
    (found,) = found_in(costly_and_clever(), spec_of("arm", looks=(4, 8)))
    assert found.price.judged.look in (1, 2) and found.price.size.n == 8


def test_whose_ranks_a_control_has() -> None:
    arms = [{"name": "a", "strategy": "lora-drop"}, {"name": "b", "strategy": "lora-drop"}]
    assert shadows_of({"arms": {"random": None, "shuffled": "lora-drop"}}, arms) == {"shuffled": "a"}
    named = {"arms": {"shuffled-b": "b"}, "shadows": {"shuffled-b": "b"}}
    assert shadows_of(named, arms) == {"shuffled-b": "b"}
    assert shadows_of({"arms": {"shuffled": "empirical"}}, arms) == {}  # the ranks of no arm of the study


def test_the_decomposition_of_gsm8k_from_its_export() -> None:
    """Issue 18: information helps, unevenness costs, and they nearly cancel; by seeds alone, plain t intervals."""
    facts, runs = read_export(superseded("gsm8k-stories260k"))
    tables = StudyTables(runs, lambda run_id, split: None)
    by_arm = {d.arm: d for d in decompositions(tables, facts["lock"], facts["spec"])}
    drop = by_arm["lora-drop"]
    assert (drop.control, drop.own) == ("random", False)
    assert round(drop.price.size.mean, 4) == 0.0281 and round(drop.value.size.mean, 4) == -0.0408
    assert (str(drop.price.verdict), str(drop.value.verdict)) == ("worse", "better")
    value = tables.paired(("lora-drop", "rank:4"), ("random", "rank:4"))
    assert value is not None and (value.by_seed < 0).all()
    interval = crossed(value).over_seeds()
    assert interval is not None and [round(end or 0, 4) for end in (interval.low, interval.high)] == [-0.0588, -0.0227]
    decay = by_arm["linear-decay"]
    assert (decay.control, decay.own) == ("shuffled", True)  # in that study the control shuffles linear-decay's ranks
