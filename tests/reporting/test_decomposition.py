"""What differences are made of, as page, paper and memory bank say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.figures.decomposition import decomposition_bars
from adaptive_lora.reporting.figures.theme import to_svg
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html.decomposition import decomposition
from adaptive_lora.reporting.html.sections import SECTIONS
from adaptive_lora.reporting.paper.text_environment import text_environment
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from tests.committed import superseded


@pytest.fixture(scope="module")
def gsm8k() -> Iterator[Findings]:
    with open_findings(superseded("gsm8k-stories260k")) as found:
        yield found


def test_the_table_has_both_parts_and_their_tests(gsm8k: Findings) -> None:
    table = decomposition(gsm8k)
    assert table is not None
    row = {c.name: cell for c, cell in zip(table.columns, table.rows[-1].cells, strict=True)}
    assert (row["arm"], row["control"], row["seeds"]) == ("lora-drop", "random", 10)
    assert row["price"].mean + row["value"].mean == pytest.approx(row["difference"].mean)  # type: ignore[union-attr]
    assert row["value_p"] < 0.001 < row["price_p"] < 0.01  # type: ignore[operator]
    assert (
        "or random ranks where the arm has no shuffle of its own" in table.caption and "95 % intervals" in table.caption
    )
    (section,) = (s for s in SECTIONS if s.name == "decomposition")
    assert section.tables == (decomposition,) and len(section.remarks(gsm8k)) == len(table.rows)


def test_sentences_claim_what_is_shown(gsm8k: Findings) -> None:
    said = {text.split(",")[0]: text for text in render_all("decomposition.findings", gsm8k)}
    drop = said["lora-drop at rank:4"]
    assert "against random (random ranks, as it has no shuffle of its own): unevenness costs +0.0281 [" in drop
    assert "knowing where ranks go is worth −0.0408 [" in drop and "together −0.0126 [" in drop
    decay = said["linear-decay at rank:4"]
    assert "shuffled (its ranks at places drawn by chance): what unevenness costs is not decided, +0.0113" in decay
    assert "its places are worse than chance, +0.0192" in decay
    assert "whether it helps to know where ranks go is not decided" in said["spectral at rank:4"]


def test_the_paper_tells_them_with_their_verdicts(gsm8k: Findings) -> None:
    write = text_environment().get_template("decomposition.txt").render
    text = " ".join(write(found=gsm8k, named=lambda what: what.arm, nats="nats per token").split())
    for sign in "\x02\x03":
        text = text.replace(sign, "")
    assert "`tables/decomposition.csv`" in text and "::figure decomposition" in text
    assert text.count("the price is") == 5 and text.count("(it helps)") == 1 and text.count("(a cost)") == 4


def test_the_bars_go_from_the_baseline_to_the_control_and_on_to_the_arm(gsm8k: Findings) -> None:
    found = gsm8k.decompositions
    figure = decomposition_bars(found, "uniform")
    assert figure is not None
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    for d, price, value in zip(found, bars[::2], bars[1::2], strict=True):
        assert (price.get_x(), price.get_width()) == (0.0, d.price.size.mean)
        assert value.get_x() == d.price.size.mean
        assert value.get_x() + value.get_width() == pytest.approx(d.total.mean)
        assert price.get_hatch() and not value.get_hatch()  # told apart without colours
    svg = to_svg(figure)
    assert svg.count("<title>") == 3 * len(found) and 'data-arm="lora-drop"' in svg
    assert "price of unevenness (random): +0.0281" in svg
    two = [*found, *(replace(d, budget="rank:8") for d in found)]
    assert len(decomposition_bars(two, "uniform").axes) == 2  # type: ignore[union-attr]
    assert decomposition_bars([], "uniform") is None
    assert render("decomposition.figure", gsm8k).startswith("What differences from uniform are made of.")


def test_a_study_with_own_shuffles_says_whose_ranks_they_are(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """Trained for real: the control is as uneven as its arm, at places that each seed draws, and the lock says so."""
    arms = "arms: [uniform, {name: half, strategy: stable-rank, options: {power: 2}}]"
    controls = ("analysis: {primary: []}\ncontrols: none", "analysis: {margin: 0.01}\ncontrols: [own-shuffled]")
    study = load_study(study_file(
        ("arms: [uniform, linear-decay, empirical, random]", arms), ("rank:2", "rank:4"), ("steps: 6", "steps: 2"),
        controls, ("{evaluation: 2}", "{evaluation: 6}"),
    ))  # fmt: skip
    run_study(study, tmp_path / "out")
    with open_findings(tmp_path / "out") as found:
        (made,) = found.decompositions
        assert (made.arm, made.control, made.own) == ("half", "shuffled-half", True)
        assert made.price.size.over == "seeds and records"
        assert found.lock["controls"]["shadows"] == {"shuffled-half": "half"}
        ranks = found.ranks
    assert ranks.groupby(["arm", "seed"])["parameters"].sum().nunique() == 1  # one size, whatever the places
    uneven = ranks.groupby(["arm", "seed"])["rank"].std().groupby("arm").mean()
    assert uneven["uniform"] == 0 < 0.5 * uneven["half"] < uneven["shuffled-half"] < 2 * uneven["half"]
    places = ranks[ranks["arm"] == "shuffled-half"].groupby("seed")["rank"].agg(tuple)
    assert len(set(places)) > 3  # drawn anew for every seed
