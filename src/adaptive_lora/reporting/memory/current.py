"""Where the study stands and what it has found: active context and progress."""

from __future__ import annotations

from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.memory.standing import Standing, diverged, reasons
from adaptive_lora.reporting.memory.steps import next_steps
from adaptive_lora.reporting.memory.words import apart, bullets, day, few, first_words, grouped, told
from adaptive_lora.reporting.tables import Column, Row, Table, to_markdown
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.cost_equivalents import at_equal_compute
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Verdict
from adaptive_lora.study.results import plain_name

MOST_ARMS, MOST_BUDGETS = 12, 3
"""Of the table of differences."""
MOST_WORDS = 50
"""Of what is said of stability."""


def active_context(found: Findings, standing: Standing) -> str:
    """What is open now, what went wrong, and what to do next."""
    said = [standing.text, *reasons(standing)]
    said += [text] if (text := diverged(standing)) else []
    if found.deviations:
        when = day(found.deviations[-1]["when"])
        said.append(f"The study was changed after it was locked, last on {when}: decisionLog.md says what and why.")
    steps = "\n".join(f"{place}. {told(step)}" for place, step in enumerate(next_steps(found, standing), start=1))
    return f"{bullets(said)}\n\nNext, the most useful first; commands run in the study folder:\n\n{steps}"


def progress(found: Findings, standing: Standing) -> str:
    """What was learnt, with its sizes, and what stays open."""
    parts = [bullets([told(sentence) for sentence in _learnt(found, standing)])]
    if table := _differences(found):
        parts.append(table)
    if more := _beside(found, standing):
        parts.append("Exploratory:\n\n" + bullets([told(sentence) for sentence in more]))
    if left := _open(found, standing):
        parts.append("Open:\n\n" + bullets([told(sentence) for sentence in left]))
    return "\n\n".join(parts)


def _learnt(found: Findings, standing: Standing) -> list[str]:
    """Verdicts and what they rest on; of a study without hypotheses, what its numbers describe."""
    said = [f"{standing.text} What follows may change."] if standing.left else []
    said += render_all("comparisons.verdicts", found)
    assays = [render("comparisons.assay", assay) for assay in found.assays]
    said += [sentence for sentence in assays if sentence not in said]
    return said if found.judged else [*said, *render_all("comparisons.description", found)[:2]]


def _differences(found: Findings) -> str:
    """Every arm that has a difference, a column a budget."""
    summaries = [arm for arm in found.arms if arm.difference is not None]
    if not summaries:
        return ""
    arms, budgets = (list(dict.fromkeys(names)) for names in (
        [s.arm for s in summaries], [s.budget for s in summaries]))  # fmt: skip
    by_place = {(s.arm, s.budget): s for s in summaries}
    columns = (Column("arm", "arm", "text"),
               *(Column(f"at_{i}", b, "text") for i, b in enumerate(budgets[:MOST_BUDGETS])))  # fmt: skip
    rows = tuple(
        Row((arm, *(_cell(found, by_place.get((arm, budget))) for budget in budgets[:MOST_BUDGETS])))
        for arm in arms[:MOST_ARMS]
    )
    cut = len(arms) > MOST_ARMS or len(budgets) > MOST_BUDGETS
    caption = (
        f"Test loss minus {found.baseline}, nats per token, 95 % interval over seeds; negative is better. A word where "
        f"there is a verdict.{' More in the report.' if cut else ''}"
    )
    return to_markdown(Table("differences", "Differences", columns, rows, caption)).strip()


def _cell(found: Findings, summary: ArmSummary | None) -> str | None:
    if summary is None or summary.difference is None:
        return None
    judged = found.judged.get(Comparison(summary.arm, summary.budget))
    return apart(summary.difference) + (f" {judged.verdict}" if judged else "")


def _beside(found: Findings, standing: Standing) -> list[str]:
    """Equal compute and stability."""
    said = []
    controls = (lock_of(found.facts).get("controls") or {}).get("compute", {})
    named = {plain_name(arm): plain_name(control) for arm, control in controls.items()}
    equal = [f"{e.arm} at {e.budget}: {apart(e.difference)}" for e in at_equal_compute(found.runs, named)]
    if equal:
        said.append(f"Against {found.baseline} trained for as many updates in all: {few(equal, 5)}.")
    # The first sentence is the rule, which the report prints above its table.
    stable = render_all("stability.findings", found.stability_findings)
    return said + first_words(stable[1:] or stable, MOST_WORDS)


def _open(found: Findings, standing: Standing) -> list[str]:
    """What these results do not settle."""
    undecided = [c for c, judgement in found.judged.items() if judgement.verdict is Verdict.UNDECIDED]
    said = [f"Undecided: {grouped(undecided)}; activeContext.md says what would decide."] if undecided else []
    if standing.tuned and found.edges:
        said += first_words([render("rates.at_edge", edge) for edge in found.edges], 30)
    return said
