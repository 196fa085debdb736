"""Every number of a result in README is that of a committed file, to the digits that are shown."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from tests.committed import RESULTS
from tests.reporting.snapshot import SNAPSHOT

ROOT = RESULTS.parent
STUDIES: dict[str, Any] = json.loads(SNAPSHOT.read_text())
"""Verdicts, differences and losses, which `test_committed_verdicts` compares with the committed studies."""
LADDER = ("third-of-the-rate", "three-times-the-rate", "query-value", "attention-only", "random", "linear-growth",
          "linear-decay")  # fmt: skip
"""Arms that README's first picture tells of; the last three are allocations."""
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NO_RESULT = re.compile(r"Python 3\.\d+|\d+ MB\)|Apache-2\.0|CC BY-NC 4\.0")
"""Numbers of README's prose that no measurement of ours gave: versions, the size of a download."""


def flat(text: str) -> str:
    return " ".join(text.split())


def prose(page: str) -> str:
    """Without code, links' targets and html."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    return flat(re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text)))


def bench(name: str, key: str) -> float:
    return float(json.loads((RESULTS / "bench" / f"{name}.json").read_text())[key])


def judged(study: str, arm: str) -> tuple[float, float, float]:
    """How much lower the loss is, and its interval's ends, the smaller first."""
    mean, low, high, *_ = STUDIES[study]["judged"][arm]["interval"]
    return -mean, -high, -low


def verdicts(study: str) -> Counter[str]:
    return Counter(one["verdict"] for one in STUDIES[study]["judged"].values())


def difference(study: str, arm: str) -> float:
    return float(STUDIES[study]["arms"][arm]["difference"][0])


def half_of(study: str) -> float:
    """What half the budget costs at rank 4."""
    half, whole = (STUDIES[study]["arms"][f"uniform@rank:{rank}"]["loss"][0] for rank in (2, 4))
    return float(half - whole)


def claims() -> list[str]:
    """Sentences of README as they must stand there."""
    gsm, full, alpaca = "gsm8k-stories260k", "alpaca-babyllama-full", "alpaca-stories260k"
    price = difference(gsm, "shuffled-lora-drop@rank:4")
    worth = price - difference(gsm, "lora-drop@rank:4")
    counted, on_alpaca, on_llama = verdicts(gsm), verdicts(alpaca), verdicts(full)
    apart = max(abs(arm["difference"][0]) for arm in STUDIES["smollm2-alpaca"]["arms"].values() if arm["difference"])
    ceiling = "ceiling-smollm2-reasoning"
    (h2, *e2), (h4, *e4) = (STUDIES[ceiling]["judged"][f"hindsight@rank:{r}"]["interval"][:3] for r in (2, 4))
    drop2, drop4 = (difference(ceiling, f"lora-drop@rank:{r}") for r in (2, 4))
    half = STUDIES[ceiling]["assays"]["rank:2"]["loss_of_half"][0]
    closed = STUDIES["ceiling-stories260k-alpaca"]["ceilings"]["rank:4"]
    assert closed["verdict"] == "closed" and len(closed["beyond"]) == 4
    best = max((closed["gains"][arm] for arm in closed["beyond"]), key=lambda gain: gain[0])
    pays = STUDIES["ceiling-stories260k-gsm8k"]["ceilings"]["rank:8"]
    assert pays["verdict"] == "pays"
    ladder = {name: abs(difference("ladder-smollm2", f"{name}@rank:4")) for name in LADDER}
    moved = sorted([half_of("ladder-smollm2"), *(ladder[name] for name in LADDER[:4])])
    assert max(ladder[name] for name in LADDER[4:]) < 0.01
    small = {name: difference("ladder-babyllama", f"{name}@rank:4")
             for name in ("three-times-the-rate", "query-value", "hindsight")}  # fmt: skip
    low, high = STUDIES["ladder-babyllama"]["ladder"]["half the budget"][1:3]
    assert low < 0 < high
    babyllama, xeon, smollm2 = "throughput-babyllama", "throughput-babyllama-xeon", "throughput-smollm2"
    avx2, stories, tiles = "throughput-babyllama-avx2", "throughput-stories260k", "throughput-smollm2-even"

    def speeds(name: str) -> str:
        return f"{bench(name, 'speedup_vs_trainer'):.1f} times | {bench(name, 'speedup_vs_loop'):.1f} times"

    return [
        "is *better* than uniform by {:.3f} nats per token [{:.3f}, {:.3f}]".format(*judged(gsm, "lora-drop@rank:4")),
        f"its information is worth {worth:.3f}, its unevenness costs {price:.3f}",
        f"it is better by {judged(gsm, 'lora-drop-half@rank:4')[0]:.3f}",
        f"there {WORDS[counted['worse']]} are worse, {WORDS[counted['equivalent']]} equivalent, "
        f"{WORDS[counted['undecided']]} undecided",
        f"{WORDS[on_alpaca['worse']]} are worse and {WORDS[on_alpaca['equivalent']]} equivalent",
        f"of {WORDS[on_llama.total()]} comparisons",
        f"{WORDS[on_llama['worse']]} are worse and {WORDS[on_llama['undecided']]} undecided",
        f"four plans ended within {apart:.4f} nats of uniform",
        f"the loss differs by {h2:.3f} nats per token [{e2[0]:.3f}, {e2[1]:.3f}] at rank 2 and by {h4:.3f} "
        f"[{e4[0]:.3f}, {e4[1]:.3f}] at rank 4, and halving the budget costs {half:.3f} at rank 2",
        f"at rank 4 halving the budget costs {closed['half'][0]:.3f}, and the best of four plans gains "
        "{:.3f} [{:.3f}, {:.3f}]".format(*best),
        "gains {:.3f} [{:.3f}, {:.3f}], more than a quarter".format(*pays["gains"]["lora-drop"]),
        f"of the {pays['half'][0]:.3f} that half the budget costs",
        "is better than uniform at rank 2, by {:.3f} [{:.3f}, {:.3f}]".format(
            *judged("ceiling-babyllama-alpaca", "hindsight@rank:2")
        ),
        "learning rate, targets and budget move the test loss by "
        f"{moved[0]:.2f} to {moved[-1]:.2f} nats per token, three allocations of rank by "
        "less than 0.01",
        f"costs {small['three-times-the-rate']:.2f} nats, query and value alone {small['query-value']:.2f} and the "
        f"ranks of {small['hindsight']:.3f}",
        f"is worse there by {drop2:.3f} and {drop4:.3f}",
        f"({bench(babyllama, 'speedup_vs_trainer'):.1f} times faster",
        f"| {speeds(babyllama)} |",
        f"| {speeds(avx2)} | {bench(avx2, 'share_of_matmul_peak'):.2f} |",
        f"| {speeds(stories)} | {bench(stories, 'share_of_matmul_peak'):.2f} |",
        f"| {speeds(xeon)} | {bench(xeon, 'share_of_matmul_peak'):.2f} |",
        f"| {speeds(smollm2)} | {bench(smollm2, 'share_of_matmul_peak'):.2f} |",
        f"| {speeds(tiles)} | {bench(tiles, 'share_of_matmul_peak'):.2f} |",
        f"evaluated at {bench('evaluation-smollm2-even', 'speedup_vs_loop'):.1f} times",
        f"takes {bench('memory-smollm2', 'state_bytes_per_adapter') / 1e6:.0f} MB",
        f"{int(bench('throughput-babyllama', 'adapters'))} adapters take a quarter of the time",
        "babyllama, 1.0M",
    ]


def test_readme_has_the_numbers_of_committed_files() -> None:
    said = prose("README.md")
    assert not [claim for claim in claims() if flat(claim) not in said]


def test_readme_has_no_other_number_of_a_result() -> None:
    """A number with a decimal point that no claim has is nobody's."""
    left = prose("README.md")
    for claim in claims():
        left = left.replace(flat(claim), "")
    found = re.findall(r".{0,40}\d+\.\d+.{0,20}", NO_RESULT.sub("", left))
    assert not found


def test_another_number_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES["smollm2-alpaca"]["arms"]["random@rank:8"], "difference", [0.0123, 0.01, 0.02, 3])
    said = prose("README.md")
    assert [claim for claim in claims() if flat(claim) not in said] == [
        "four plans ended within 0.0123 nats of uniform"
    ]
