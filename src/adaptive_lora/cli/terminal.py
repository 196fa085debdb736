"""What the verbs show in a terminal: tables and heat maps, as rich values."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaptive_lora.data.profile import DataProfile, quantiles
from adaptive_lora.data.records import Reading
from adaptive_lora.foreign.judging import Outcome
from adaptive_lora.planning.modules import role_labels, role_of
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import StrategyOptions
from adaptive_lora.planning.strategies.base import CalibrationOptions
from adaptive_lora.planning.strategies.registry import all_strategies
from adaptive_lora.reporting.formatting import interval_ends, percent, signed
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Judgement
from adaptive_lora.study.status import StudyStatus

if TYPE_CHECKING:
    from adaptive_lora.study.estimate import Estimate
    from adaptive_lora.study.outlook import Outlook

# Sampled from matplotlib's viridis; the number in each cell carries the value, the colour repeats it.
_VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b",
            "#fde725")  # fmt: skip
_NONE = "–"
"""Shown where a module is left out."""

_BOUNDS = tuple(StrategyOptions.model_fields)
_SHARED = tuple(CalibrationOptions.model_fields)
"""Options that many strategies share, listed once for all."""


def _table(*columns: str, numbers: Sequence[str] = (), **settings: Any) -> Table:
    """Columns of text, `numbers` to the right of them."""
    table = Table(title_justify="left", **settings)
    for name in (*columns, *numbers):
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def coverage_table(plan: RankPlan) -> Table:
    """Every target module with kind, shape, rank, scaling, alpha and parameters; those left out come last."""
    targets = [*plan.modules, *plan.left_out]
    stem = _stem([m.name for m in targets])
    within = f", modules of {stem}" if stem else ""
    title = f"{plan.strategy}: {plan.trainable_parameters:,} of {plan.budget:,} parameters{within}"
    table = _table("module", "kind", numbers=("shape", "rank", "scaling", "alpha", "parameters"), title=title, box=None,
                   collapse_padding=True, pad_edge=False)  # fmt: skip
    for m in targets:
        row = Text(m.name.removeprefix(f"{stem}.")), m.kind, f"{m.d_out}×{m.d_in}"
        if rank := plan.ranks.get(m.name):
            table.add_row(*row, str(rank), f"{plan.scaling_of(m.name):.4g}", f"{plan.alpha_of(m.name):.4g}",
                          f"{rank * m.params_per_rank:,}")  # fmt: skip
        else:
            table.add_row(*row, *[_NONE] * 4, style="dim")
    return table


def _stem(names: Sequence[str]) -> str:
    """What stands before the list of blocks in all names: `transformer` of `transformer.h.0.attn.c_attn`.

    It is the same in every row, and with it a row is too long for a terminal of 80 columns.
    """
    same = posixpath.commonpath([name.replace(".", "/") for name in names]).split("/")
    return ".".join(same[:-1]) if len(names) > 1 else ""


def heat_map(plan: RankPlan) -> Table:
    """Ranks per block (rows) and module (columns), coloured from the lowest to the highest."""
    targets = [*plan.modules, *plan.left_out]
    if plan.left_out:  # side by side in the same order, whichever kind it is
        targets.sort(key=lambda m: m.kind)
    roles = list(dict.fromkeys(role_of(m.name) for m in targets))
    cells = {(m.depth, role_of(m.name)): plan.ranks.get(m.name, 0) for m in targets}
    top = max(plan.ranks.values())
    title = "rank per block and module" + (f" ({_NONE}: left out)" if plan.left_out else "")
    table = _table(numbers=["block"], box=None, padding=(0, 0), title=title)
    for label in role_labels(roles):
        table.add_column(Text(f" {label}"), justify="center")
    for depth in sorted({m.depth for m in targets}):
        table.add_row(str(depth), *(_cell(cells.get((depth, role)), top) for role in roles))
    return table


def _cell(rank: int | None, top: int) -> Text:
    if not rank:
        return Text(" " if rank is None else f"{_NONE:^8}", style="dim")
    level = min(len(_VIRIDIS) - 1, int(rank / top * len(_VIRIDIS)))
    return Text(f"{rank:^8}", style=f"{'black' if level > 5 else 'white'} on {_VIRIDIS[level]}")


def planning_cost(facts: Mapping[str, Any]) -> Table:
    """What planning took, and what its measures say of themselves; `facts` as `api.plan_json` has them."""
    table = _table("what", numbers=("cost",), box=None, show_header=False, pad_edge=False, title="cost of planning")
    table.add_row("in all, loading included", f"{facts['plan_seconds']:.2f} s")
    measured: Mapping[str, Any] = facts["measured"] or {}
    for group, seconds in measured.get("seconds", {}).items():
        table.add_row(f"measuring: {group}", f"{seconds:.2f} s")
    for name, value in measured.items():
        for key, part in value.items() if isinstance(value, Mapping) else [("", value)]:
            if name != "seconds" and isinstance(part, int | float | str):
                shown = format(part, ",.4g" if isinstance(part, float) else "," if isinstance(part, int) else "")
                table.add_row(Text(f"{name} {key}".replace("_", " ").strip()), Text(shown))
    return table


def arms_table(
    arms: Sequence[ArmSummary], baseline: str, judged: Mapping[Comparison, Judgement], metric: Metric = TEST_LOSS
) -> Table:
    """Arms with loss, or what else they are judged by, difference from the baseline, its interval and the verdict;
    names fold so that no number does."""
    over = next((arm.difference.over for arm in arms if arm.difference), "seeds")
    title = f"{metric.title}, {metric.unit}; minus {baseline}: paired, 95 % intervals over new {over}"
    own = "loss" if metric.is_loss else metric.title
    several, table = len({arm.budget for arm in arms}) > 1, _table("arm", numbers=(own, "minus", ""), title=title)
    table.add_column("verdict")
    for column in table.columns[1:]:
        column.no_wrap = True
    for arm in arms:
        ends = ((arm.diverged, "diverged"), (arm.no_better, "no better than the frozen model"))
        name = arm.arm + "".join(f" ({count} {what})" for count, what in ends if count)
        found, verdict = arm.difference, judged.get(Comparison(arm.arm, arm.budget))
        level = arm.loss if metric.is_loss else arm.score
        places = metric.places
        difference = (signed(found.mean, places), interval_ends(found, f"+.{places}f")) if found else ("", "")
        table.add_row(Text(f"{name}, {arm.budget}" if several else name), f"{level.mean:.{places}f}" if level else "",
                      *difference, str(verdict.verdict) if verdict else "")  # fmt: skip
    return table


def verdicts_view(outcomes: Sequence[Outcome], baseline: str, others: Sequence[str]) -> Group:
    """Verdicts on results made elsewhere, and what they hold for; names fold so that no number does."""
    table = _table("arm", numbers=("difference", "interval", "p"), title=f"minus {baseline}, paired")
    table.add_column("verdict")
    for column in table.columns[1:]:
        column.no_wrap = True
    for o in outcomes:
        p, question = "" if o.adjusted_p is None else f"{o.adjusted_p:.3g}", o.paired.question
        unit = f"({question.unit})" if question.unit else ""
        means = " against ".join(f"{mean:.4g}" for mean in o.paired.means)
        asked = "\n".join(part for part in (o.paired.arm, question.task, question.metric, unit, means) if part)
        table.add_row(plain(asked), signed(o.difference), interval_ends(o.shown, "+.4f"), p, str(o.verdict))
    told = [render("judge.caption", outcomes, baseline), *render_all("judge.remarks", outcomes, others)]
    return Group(table, *(plain(line) for line in told))


def histogram(counts: Sequence[int], edges: Sequence[float], width: int = 40) -> Text:
    """Horizontal bars, one a bin."""
    bars = ["█" * math.ceil(width * count / max(counts)) if count else "" for count in counts]
    rows = zip(edges, edges[1:], bars, counts, strict=False)
    return Text("\n".join(f"{low:>6.0f}–{high:<6.0f} {bar} {count:,}" for low, high, bar, count in rows))


def plain(value: Any) -> Text:
    """Foreign text without its control characters, so that data cannot drive the terminal."""
    return Text("".join(c if c in "\n\t" or c.isprintable() else "�" for c in str(value)))


def _unknown_licence(source: str) -> str:
    return "Apache-2.0: generated" if source.startswith("demo:") else "not known; look it up before you publish"


def profile_view(found: DataProfile) -> Group:
    """Facts, histogram and samples of a data set."""
    facts = _table("what", "value", box=None, show_header=False)
    totals = [p + c for p, c in zip(found.prompt_tokens, found.completion_tokens, strict=True)]
    for name, value in (
        ("source", found.source),
        ("form", found.form),
        ("licence", found.licence or _unknown_licence(found.source)),
        ("records", f"{found.records:,}"),
        ("columns", _columns(found.reading)),
        ("duplicates", f"{found.duplicates:,} exact, {found.same_prompt:,} more that ask the same or go on"),
        ("empty completions", f"{found.empty_completions:,}"),
        ("unknown tokens", f"{found.texts.unknown_tokens:,} in {found.texts.unknown_records:,} records"),
        ("control tokens in text", f"{found.texts.control_records:,} records"),
        ("prompt tokens", _quantiles(found.prompt_tokens)),
        ("completion tokens", _quantiles(found.completion_tokens)),
        (f"cut at {found.max_length} tokens", f"{found.truncated:,} ({percent(found.truncated / found.records, 1)})"),
        ("no room for a completion", f"{found.without_room:,}"),
    ):
        facts.add_row(name, plain(value))
    for notice in found.notices:
        facts.add_row(Text("warning", style="yellow"), plain(notice))
    counts, edges = np.histogram(totals, bins=12)
    parts: list[Any] = [facts, Text("\ntokens per record", "bold"), histogram(counts.tolist(), edges.tolist())]
    for index, sample in enumerate(found.samples, 1):
        parts.append(Text(f"\nsample {index}: masked (dim), learnt (bold)", "bold"))
        masked, learnt = plain(sample.masked).plain, plain(sample.learnt).plain
        parts.append(Text.assemble((masked, "dim"), (f"⟦{learnt}⟧", "bold green")))
    return Group(*parts)


def _columns(reading: Reading) -> str:
    parts = (("used", reading.used), ("harmless", reading.harmless), ("UNUSED", reading.unused))
    return "; ".join(f"{how}: {', '.join(columns)}" for how, columns in parts if columns)


def _quantiles(lengths: Sequence[int]) -> str:
    q = quantiles(lengths)
    return f"median {q['median']:.0f}, 95 % {q['q95']:.0f}, largest {q['max']:.0f}"


def estimate_view(found: Estimate) -> Group:
    """What a study will cost."""
    tables = Table("phase", "runs", box=None), Table("arm at budget", "trainable parameters", box=None)
    for table, counts in zip(tables, (found.runs, found.parameters), strict=True):
        for label, count in counts.items():
            table.add_row(Text(label), f"{count:,}")
    power: list[Text | Table] = [Text(line) for line in render_all("power.outlook", found.outlook, found.design)]
    if found.outlook is not None and found.outlook.expected:
        power.insert(1, _expected_view(found.outlook, bool(found.design.looks)))
    warnings = (Text(f"warning: {text}", style="yellow") for text in found.warnings)
    return Group(tables[0], Text(), tables[1], Text("\n" + render("power.cost", found)), *power, *warnings)


def _expected_view(found: Outlook, looks: bool) -> Table:
    """What the study takes on average under several true differences; without looks all of them take the same."""
    names = ("no effect", "the margin", "twice the margin")
    table = _table(
        "if every arm differs by", "seeds an arm" if looks else "seeds", "runs", "hours", "decided", box=None
    )
    for row in found.expected:
        numbers = (
            f"{row.seeds:.1f}" if looks else f"{row.seeds:.0f}",
            f"{row.runs:,.0f}",
            render("power.hours", row.seconds),
        )
        table.add_row(names[row.margins], *numbers, percent(row.decided))
    return table


def status_view(found: StudyStatus) -> Group:
    """Where a study stands."""
    state = "an export" if found.exported else "running now" if found.in_use else "not running"
    done = found.expected - found.left
    counts = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    to_score = f" and {found.unscored} to be scored" if found.unscored else ""
    rest = f"{found.left} left{to_score}" + (f" at look {found.looking} of {found.looks}" if found.looking else "")
    if found.finished and found.expected:
        rest = "complete; its looks ask for no more" if found.looks else "complete"
    summary = f"{found.name}: {done} of {found.expected} runs have a result, {rest}; {state}"
    parts = [Text(summary), Text(counts, style="dim")]
    for run in (*found.current, *found.troubles):
        step = f" step {run['step']}" + (f"/{run['steps']}" if run["steps"] else "") if run["step"] is not None else ""
        label = f"{run['status']}: {run['phase']} {run['arm']} {run['budget']} seed {run['seed']}{step}"
        parts.append(plain(f"{label} {run['error'] or ''}"))
    return Group(*parts)


def strategies_rows() -> list[dict[str, Any]]:
    """All strategies: summary, what a plan takes (effort and measures), what it rests on, options, source."""
    return [
        {
            "name": name, "summary": strategy.summary, "needs": strategy.effort_of(options),
            "measures": list(strategy.needs(options)), "rests_on": strategy.rests_on,
            "covers": strategy.covers or ("named" if strategy.names else "all"), "source": strategy.source,
            "options": options.model_dump(mode="json", exclude={"source_options"}),
        }
        for name, strategy in all_strategies()[0].items()
        for options in (strategy.options(),)
    ]  # fmt: skip


def strategies_view() -> Group:
    """The strategies: what each does, what its plans need measured, where it comes from, its own options."""
    calibrating = [name for name in _SHARED if name not in (*_BOUNDS, "power")]
    bounds, measuring = (", ".join(f"`{name}`" for name in names) for names in (_BOUNDS, calibrating))
    headings = ("strategy", "needs", "what it does; source; options")
    table = _table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[1].no_wrap = True
    for row in strategies_rows():
        options = {name: value for name, value in row["options"].items() if name not in _SHARED}
        own = [f"{name}={value}" for name, value in options.items() if value is not None]
        about = "; ".join([row["source"], *([", ".join(own)] if own else [])])
        table.add_row(Text(row["name"], "bold"), row["needs"], Text.assemble(row["summary"], "\n", (about, "dim")))
    common = f"All have the options {bounds}; those that measure also `power`, and on data {measuring}"
    return Group(table, Text(f"\n{common}; `--json` gives all defaults.", style="dim"))
