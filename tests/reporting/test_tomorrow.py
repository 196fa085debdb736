"""The memory bank's first three sentences: where rank goes tomorrow, how much of it, and what that holds for."""

from __future__ import annotations

import functools

from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.memory.memory_bank import memory_texts
from adaptive_lora.reporting.templating import render_all
from tests.committed import RESULTS


@functools.cache
def sentences(study: str, left: int = 0) -> list[str]:
    with open_findings(RESULTS / study) as found:
        return render_all("tomorrow.sentences", found, left)


def test_a_better_arm_is_named_with_its_interval() -> None:
    where, much, holds = sentences("gsm8k-stories260k")
    with open_findings(RESULTS / "gsm8k-stories260k") as found:
        better = [c for c, j in found.judged.items() if j.verdict == "better"]
        interval = found.judged[better[0]].interval
    assert interval is not None and interval.low is not None
    assert where.startswith(f"Tomorrow, spend the rank as {better[0].arm} at {better[0].budget} does (")
    assert f"{interval.low:+.4f}".replace("-", "−") in where and "are worse than uniform" in where
    assert much.startswith("How much rank there is matters here: half of rank:4 costs +")
    assert holds.startswith("Train uniform at a learning rate of ") and holds.endswith("this length of training.")


def test_without_a_better_one_the_baseline_stays() -> None:
    where, much, _ = sentences("alpaca-babyllama-full")
    assert where.startswith("Tomorrow, keep uniform: of 10 comparisons") and "none came out better" in where
    assert much.startswith("Take no less rank than rank:2,") and "half of rank:8 is not shown to cost anything" in much


def test_a_study_without_hypotheses_says_so() -> None:
    where, much, holds = sentences("smollm2-alpaca")
    assert where.startswith("This study gives no verdict")
    assert much == "How much rank is needed was not asked: no run had half the budget."
    assert "which was not tuned" in holds


def test_an_unfinished_study_settles_nothing() -> None:
    assert sentences("gsm8k-stories260k", left=1)[0] == (
        "Nothing is settled for tomorrow yet: 1 run is still to be trained, and what follows may change."
    )
    assert sentences("smollm2-alpaca", left=3)[0] == (
        "Nothing is settled for tomorrow yet: 3 runs are still to be trained."
    )


def test_they_stand_first_in_the_bank() -> None:
    with open_findings(RESULTS / "demo") as found:
        text = memory_texts(found, False)["activeContext"]
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "<!--"))]
    assert lines[0].strip() == " ".join(sentences("demo"))


def test_what_knows_the_end_is_said_to_and_only_larger_budgets_can_be_spared() -> None:
    """Half of rank 2 and of rank 8 is not shown to cost anything, and half of rank 4 is."""
    where, how_much, _ = sentences("ceiling-babyllama-alpaca")
    assert where.startswith("Tomorrow, spend the rank as hindsight at rank:2 does (")
    assert "), with ranks that are known only after trainings of the whole length." in where
    assert how_much.startswith("Take no less rank than rank:4,")
    assert how_much.endswith("and hardly more: half of rank:8 is not shown to cost anything.")
