"""Filters, environments and the sentences of `templates/`: what is said of each kind of result."""

from __future__ import annotations

import csv
import doctest
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pandas as pd
import pytest

from adaptive_lora.reporting import formatting, templating
from adaptive_lora.reporting.findings import Findings, findings_of
from adaptive_lora.reporting.formatting import FILTERS, counted, formatted, listed, magnitude, signed
from adaptive_lora.reporting.html import sections
from adaptive_lora.reporting.html.sections import look_of
from adaptive_lora.reporting.tables import to_csv
from adaptive_lora.reporting.templating import environment, render, render_all
from adaptive_lora.stats.assays import Assay
from adaptive_lora.stats.cost_equivalents import ParameterEquivalent
from adaptive_lora.stats.crossed import of_seed_means
from adaptive_lora.stats.divergence import NONE_DIVERGED, DivergedPairs
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.margins import Margin
from adaptive_lora.stats.power import ArmPower, Design
from adaptive_lora.stats.verdicts import Evidence, Rule, judge_family
from adaptive_lora.study.learning_rate_search import Edge
from adaptive_lora.study.outlook import Outlook, Size
from tests.stats.tables import ANALYSIS, BASE, diverge, losses_by_record, moved, table

TEMPLATES = Path(templating.__file__).parent / "templates"


def test_every_filter_says_in_an_example_what_it_does() -> None:
    for module in (formatting, templating):
        done = doctest.testmod(module)
        assert not done.failed and done.attempted
    undocumented = [name for name, filter_ in FILTERS.items() if ">>>" not in (filter_.__doc__ or "")]
    assert not undocumented


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ 1 | counted('seed') }}, {{ 1200 | counted('seed') }}", "1 seed, 1,200 seeds"),
        ("{{ ['a', 'b', 'c'] | listed }}; {{ ['a', 'b', 'c'] | listed(2) }}", "a, b and c; a, b and 1 more"),
        ("{{ -0.0035 | signed }} {{ 0.5 | percent }} {{ 0.0003 | rate }}", "−0.0035 50 % 0.0003"),
        ("{{ ['a'] | agreeing('is', 'are') }} {{ 2 | agreeing('is', 'are') }}", "is are"),
        ("{{ [8, 2] | number_range('seed') }} {{ -2e-6 | magnitude }}", "2 to 8 seeds 2e-06"),
        ("{{ i | formatted('+.2f') }}, {{ i | interval_ends('.1f') }}", "−1.00 [−2.00, +0.50], [−2.0, 0.5]"),
        ("{{ none | formatted('.2f') }}{{ none | signed }}{{ none | percent }}{{ none | rate }}", ""),
    ],
)
def test_filters_stand_in_every_environment(template: str, text: str) -> None:
    made = environment("templates", autoescape=False)
    assert made.from_string(template).render(i=Interval(-1.0, -2.0, 0.5, 3, 0.95)) == text


def test_python_and_templates_write_alike() -> None:
    assert (counted(2, "loss", "losses"), listed(["a"]), signed(-1.5, 1)) == ("2 losses", "a", "−1.5")
    assert (magnitude(None), formatted("as it is")) == ("", "as it is")


def test_what_a_template_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="nobody"):
        environment("templates", autoescape=False).from_string("{{ nobody }}").render()


def test_the_caller_chooses_escaping_and_delimiters() -> None:
    assert environment("html", autoescape=True).from_string("{{ '<b>' }}").render() == "&lt;b&gt;"
    other = environment("paper/text", autoescape=False, variable_start_string="<<", variable_end_string=">>")
    assert other.from_string("<< 1 | counted('run') >> {{ x }}").render() == "1 run {{ x }}"


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.txt")), ids=lambda path: path.name)
def test_sentence_files_hold_macros_and_nothing_else(path: Path) -> None:
    assert str(templating._sentences().get_template(path.name).module).strip() == ""


def verdict(*differences: float, diverged: DivergedPairs | None = None) -> str:
    own = Evidence(of_seed_means(dict(enumerate(differences))), diverged=diverged or NONE_DIVERGED)
    return render("comparisons.verdict", judge_family({"arm": own}, Rule(margin=0.01))["arm"])


BETTER = (-0.021, -0.022, -0.023, -0.021, -0.022, -0.023)


def test_a_verdict_in_a_cell() -> None:
    assert verdict(*BETTER) == "better by 0.0220, beyond the margin"
    assert verdict(*(-d for d in BETTER)) == "worse by 0.0220, beyond the margin"
    assert verdict(*(d + 0.012 for d in BETTER)) == "better by 0.0100"  # its interval reaches into the margin
    assert verdict(0.001, -0.001, 0.0005) == "equivalent"
    assert verdict(*(0.0005 + 1e-5 * i for i in range(6))) == "equivalent (higher by 0.0005)"
    assert verdict(*(-2e-6 - 1e-9 * i for i in range(6))) == "equivalent (lower by 2e-06)"
    assert verdict(0.1) == "undecided (fewer than 2 seeds)"
    assert verdict(0.03, -0.01, 0.02) == "undecided (known to ±0.052; 6 seeds give ±0.022)"
    assert verdict(1.0, -1.0) == "undecided (known to ±13; 4 seeds give ±2.3)"


def test_a_verdict_names_the_pairs_that_diverged() -> None:
    assert verdict(*BETTER, diverged=DivergedPairs(1, 0, 7)) == "undecided (diverged on 1 of 7 seeds)"
    told = verdict(*BETTER, diverged=DivergedPairs(0, 2, 8))
    assert told == "better by 0.0220, beyond the margin (the baseline diverged on 2 of 8 seeds)"
    both = render("comparisons.diverged", DivergedPairs(1, 2, 9))
    assert both == "diverged on 1 of 9 seeds, the baseline diverged on 2 of 9 seeds"
    assert render("comparisons.diverged", DivergedPairs(seeds=9)) == ""


@pytest.mark.parametrize(
    "interval, says",
    [
        (None, "Too few seeds at rank:4 to know"),
        (
            (0.05, 0.03, 0.07),
            "can tell ranks apart: half of it, rank:4, is worse (+0.050 nats per token, 90 % interval over new seeds",
        ),
        ((0.005, -0.01, 0.02), "cannot tell ranks apart: half of it, rank:4, is not shown to be worse (+0.005"),
        ((0.005, 0.004, 0.006), "cannot tell ranks apart by more than the margin of 0.01: half of it,"),
        ((0.008, 0.004, 0.012), "it is not known whether this task can tell ranks apart"),
    ],
)
def test_an_assay(interval: tuple[float, float, float] | None, says: str) -> None:
    loss = Interval(*interval, 8, 0.9) if interval else None
    assert says in render("comparisons.assay", Assay("rank:8", "rank:4", loss, Margin(0.01, None, True)))


def test_an_assay_with_a_measured_margin() -> None:
    share = Interval(0.00125, -0.003, 0.0055, 8, 0.95)
    blind = Assay("rank:8", "rank:4", Interval(0.005, -0.012, 0.022, 8, 0.9), Margin(0.00125, share, False))
    said = render("comparisons.assay", blind)
    assert "is not shown to be worse" in said and said.endswith("Nothing can be called equivalent there.")
    sharp = Assay("rank:8", "rank:4", Interval(0.005, 0.002, 0.008, 8, 0.9), Margin(0.00125, share, True))
    assert "can tell ranks apart: half of it" in render("comparisons.assay", sharp)


def test_a_rate_at_the_edge_of_its_grid() -> None:
    one = Edge("a", "rank:8", 1e-3, 3e-3)
    assert render("rates.at_edge", one) == (
        "a at rank:8 does best at 0.001, the edge of the grid: add 0.003 to `learning_rate`, or write `auto` in it."
    )
    assert "diverges at every rate: add 0.0003" in render("rates.at_edge", Edge("a", "rank:8", 1e-3, 3e-4, False))


def test_the_outlook_on_power() -> None:
    design = Design(seeds=8, alpha=0.05, comparisons=2, margin=0.01, records=2000)
    assert "not known" in render("power.outlook", None, design) and "--pilot" in render("power.outlook", None, design)
    assert "says nothing of power" in render("power.outlook", Outlook((), None, (), None, None), design)
    typical = ArmPower("a", "rank:8", 0.01, 0.008, 0.03, 0.01, None, 40, True)
    widest = ArmPower("b", "rank:8", 0.02, 0.016, 0.06, 0.01, None, None, True)
    sizes = Size(8, 2000, 0.31, 0.074, 3600.0), Size(30, 5500, 0.84, 0.8, 90_000.0)
    found = Outlook((widest, typical), typical, (), *sizes)
    assert render_all("power.outlook", found, design) == [
        "Power, by the spread of the pilot: with 8 seeds and 2,000 test records the interval of a typical difference "
        "reaches 0.0080 nats per token to either side, that of the widest, b at rank:8, 0.0160. With 2 primary "
        "comparisons a difference of 0.0300 is found in 80 % of studies. To find one as large as the margin of 0.0100 "
        "as often takes more than 1,000 seeds on as many records; to show equivalence as often, were there no "
        "difference, 40 seeds.",
        "The cheapest size that does both in 80 % of studies: 30 seeds and 5,500 test records, about 25 hours in all; "
        "the file's 8 seeds and 2,000 test records take 1, find such a difference in 31 % of studies and show "
        "equivalence in 7 %.",
    ]
    assert "No size reckoned with does both in 80 % of studies; the file's" in render(
        "power.outlook", replace(found, cheapest=None), design
    )


def test_the_outlook_by_a_pilot_that_lacks_something() -> None:
    design = Design(seeds=8, alpha=0.05, comparisons=2, margin=None, records=2000)
    typical = ArmPower("a", "rank:8", 0.01, 0.008, 0.03, None, None, None, False)
    said = render("power.outlook", Outlook((typical,), typical, (), None, None), design)
    assert "does not show that half the budget costs anything" in said and "cheapest" not in said
    assert "no losses by record, so that all of this is about its own records alone" in said


def test_paragraphs_are_lines_without_their_marks() -> None:
    lines = render_all("comparisons.diverged", DivergedPairs(1, 0, 9))
    assert lines == ["diverged on 1 of 9 seeds"]


def test_a_difference_in_parameters_as_far_as_the_curve_goes() -> None:
    ends = (-50.0, 100.0)
    for found, says in (
        (ParameterEquivalent("a", "rank:8", 12.0, -3.0, None, ends), "+12 % [−3 %, above +100 %]"),
        (ParameterEquivalent("a", "rank:8", -40.0, None, 0.0, ends), "−40 % [below −50 %, +0 %]"),
        (ParameterEquivalent("a", "rank:8", None, None, None, ends), "beyond the curve"),
    ):
        assert render("comparisons.parameter_equivalent", found) == says


def findings(losses: Mapping[tuple[str, str], Sequence[float]], *primary: tuple[str, str], **changes: Any) -> Findings:
    """Of a table of runs, with these hypotheses."""
    return findings_with(table(losses), *primary, **changes)


def findings_with(
    runs: pd.DataFrame, *primary: tuple[str, str], looks: Sequence[int] = (), by_record: bool = False, **analysis: Any
) -> Findings:
    seeds = {"evaluation": list(range(8)), **({"looks": list(looks)} if looks else {})}
    spec = {"budgets": sorted(set(runs["budget"])), "arms": [], "seeds": seeds}
    lock = {"primary": [{"arm": arm, "budget": budget} for arm, budget in primary], "deviations": []}
    facts = {"spec": {**spec, "analysis": {**ANALYSIS, "baseline": "uniform", **analysis}}, "lock": lock}
    source = SimpleNamespace(by_record=losses_by_record(runs)) if by_record else None
    found = findings_of(facts, runs, source)
    # Those of learning rates rest on curves, which a table of runs does not have.
    found.__dict__["cautions"] = {c: judged.cautions for c, judged in found.judged.items()}
    return found


def verdicts(found: Findings) -> list[str]:
    return render_all("comparisons.verdicts", found)


ONE_SET = (
    "Losses by test record are not known: these verdicts are of the records that were tested, and with others some may "
    "differ."
)


def test_verdicts_of_one_kind_share_a_sentence() -> None:
    noisy = [loss + 0.1 * w for loss, w in zip(BASE, [1, -1, 2, -2, 1, -1, 1, -2], strict=True)]
    losses = {("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(-0.05), ("b", "rank:8"): moved(-0.06),
              ("c", "rank:8"): moved(-0.07), ("d", "rank:8"): noisy}  # fmt: skip
    named = [(arm, "rank:8") for arm in "abcd"]
    assert verdicts(findings(losses, *named)) == [
        "a, b and c are better than uniform.", "d is not decided against uniform.",
        "By more than the margin, as the whole interval says: a, b and c.", ONE_SET,
    ]  # fmt: skip
    assert ONE_SET not in verdicts(findings(losses, *named, by_record=True))


def test_without_runs_or_hypotheses_the_page_says_why_there_is_no_verdict() -> None:
    assert verdicts(findings({("uniform", "rank:8"): BASE}))[0].startswith("Nothing to compare yet")
    assert "everything on this page is exploratory" in verdicts(
        findings({("uniform", "rank:8"): BASE, ("a", "rank:8"): BASE})
    )[0]  # fmt: skip


def test_verdicts_name_diverged_pairs() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05)})
    diverge(runs, "low", [0, 1])
    diverge(runs, "high", [0])
    assert verdicts(findings_with(runs, ("low", "rank:8"), ("high", "rank:8"))) == [
        "high (diverged on 1 of 8 seeds) is worse than uniform.",
        "low (diverged on 2 of 8 seeds) is not decided against uniform.",
        "By more than the margin, as the whole interval says: high.",
        ONE_SET,
    ]


def test_equivalence_is_said_with_what_it_rests_on() -> None:
    blunt = {("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(0.0), ("a", "rank:8"): moved(0.0)}
    said = verdicts(findings(blunt, ("a", "rank:8"), by_record=True))
    assert said[0] == "a is equivalent to uniform." and "cannot tell ranks apart" in said[1] and len(said) == 2
    sharp = {(arm, budget): moved(by) for budget, by in (("rank:8", 0.0), ("rank:4", 0.1), ("rank:2", 0.2))
             for arm in ("uniform", "a")}  # fmt: skip
    said = verdicts(findings(sharp, ("a", "rank:2"), ("a", "rank:4"), by_record=True))
    assert said[0] == "a at rank:2 and a at rank:4 are equivalent to uniform."
    assert said[1:] == ["Whether this task can tell ranks apart was not tested at rank:2 (`controls: [half]`)."]


def test_the_description_has_ranges_and_what_is_missing() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.002)})
    diverge(runs, "high", [0, 1])
    said = render_all("comparisons.description", findings_with(runs))
    assert said == [
        "Over 6 to 8 seeds, mean differences from uniform run from −0.0500 (low) to +0.0020 (high) nats per token; "
        "outside the margin of 0.01: low.",
        "Runs diverged and are missing from the means: high (2).",
    ]
    lost = render_all("comparisons.description", findings_with(runs.assign(base_loss=[1.96] + [9.0] * (len(runs) - 1))))
    assert lost[-1] == "Runs ended no better than the frozen model, and learned nothing: uniform (1)."
    few = render_all("comparisons.description", findings({("uniform", "rank:8"): BASE[:3], ("a", "rank:8"): BASE[:3]}))
    assert few[0].endswith("all inside the margin of 0.01.") and len(few) == 1
    one = render_all("comparisons.description", findings({("uniform", "rank:8"): BASE[:1], ("a", "rank:8"): BASE[:1]}))
    assert one[1].startswith("With one seed nothing is known of other seeds")
    measured = findings_with(runs, margin="half-budget")
    assert render_all("comparisons.description", measured)[0].endswith("+0.0020 (high) nats per token.")
    assert render_all("comparisons.description", findings({("uniform", "rank:8"): BASE})) == []


def test_how_well_comparisons_are_known() -> None:
    runs = {("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.01, 3.0)}
    told = render("comparisons.reach", findings(runs, ("a", "rank:8")))
    assert told == (
        "Over new seeds the primary comparisons are known to ±0.0039 nats per token (median) and ±0.0039 (widest); "
        "twice the seeds would give ±0.0025 (median)."
    )
    both = render("comparisons.reach", findings(runs, ("a", "rank:8"), by_record=True))
    assert both.startswith("Over new seeds and records") and "on as many records" in both
    assert render("comparisons.reach", findings(runs)) == ""


def test_without_a_measured_margin_nothing_is_called_equivalent_and_it_says_why() -> None:
    same = {("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.0)}
    untested = verdicts(findings(same, ("a", "rank:8"), margin="half-budget"))
    assert untested[0] == "a is not decided against uniform."
    assert untested[-1].endswith(
        "what half of the budget costs is not known there, and nothing can be called equivalent."
    )
    blunt = {**same, ("uniform", "rank:4"): moved(0.0, 3.0)}
    blind = verdicts(findings(blunt, ("a", "rank:8"), margin="half-budget"))
    assert blind[-1].endswith("Nothing can be called equivalent there.")
    sharp = {**same, ("uniform", "rank:4"): moved(0.1)}
    assert verdicts(findings(sharp, ("a", "rank:8"), margin="half-budget"))[0] == "a is equivalent to uniform."


def test_looks_are_told_with_what_each_decided() -> None:
    losses = {("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("open", "rank:8"): moved(0.006, 6.0)}
    found = findings(losses, ("low", "rank:8"), ("open", "rank:8"), looks=(4, 6, 8))
    plan, first, last = render_all("comparisons.looks", found)
    assert "judged after 4, 6 and 8 seeds" in plan and "decided at p ≤ 0.0047, 0.019 and 0.038" in plan
    assert first == "Look 1, 4 seeds: low (better)."
    assert last == "Not decided at the last look there was: open (look 3)."
    assert [look_of(found, j) for j in found.judged.values()] == ["1 of 3", "3 of 3"]
    assert render_all("comparisons.looks", findings(losses, ("low", "rank:8"))) == []


def test_the_table_of_verdicts_has_both_sources_margin_looks_and_cautions() -> None:
    losses = {("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(0.08), ("low", "rank:8"): moved(-0.05),
              ("same", "rank:8"): moved(0.0)}  # fmt: skip
    named = ("low", "rank:8"), ("same", "rank:8")
    whole = findings(losses, *named, looks=(4, 8), by_record=True, margin="half-budget")
    table_ = sections.verdicts(whole)
    assert table_ is not None
    assert [column.name for column in table_.columns] == [
        "arm", "budget", "verdict", "difference", "cautions", "adjusted_p", "equivalence_p", "margin", "seeds", "look",
        "records", "over_seeds", "over_records",
    ]  # fmt: skip
    low = dict(zip((c.name for c in table_.columns), table_.rows[0].cells, strict=True))
    assert low["look"] == "1 of 2" and low["cautions"] == "few seeds; few records" and low["records"] == 50
    assert "a quarter of what half the budget costs" in table_.caption and "and the looks" in table_.caption
    head, first, _ = to_csv(table_).splitlines()
    assert "over_seeds_low,over_seeds_high,over_records_low" in head and "over_seeds," not in head
    assert len(next(csv.reader([first]))) == len(head.split(","))
    bare = sections.verdicts(findings(losses, *named))
    assert bare is not None and "±0.01 nats per token" in bare.caption
    assert {"margin", "records", "look", "over_seeds"}.isdisjoint(column.name for column in bare.columns)
