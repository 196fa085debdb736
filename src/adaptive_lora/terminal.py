"""What the verbs show in a terminal: tables and heat maps, as rich values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaptive_lora.data.profile import DataProfile, quantiles
from adaptive_lora.judging.arms import ArmSummary
from adaptive_lora.planning.modules import role_labels, role_of
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.record.status import StudyStatus

if TYPE_CHECKING:
    from adaptive_lora.estimate import Estimate

# Sampled from matplotlib's viridis; the number in each cell carries the value, the colour repeats it.
_VIRIDIS = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
)


def coverage_table(plan: RankPlan) -> Table:
    """Every module with kind, shape, rank, scaling, alpha and parameters."""
    table = Table(
        title=f"{plan.strategy}: {plan.trainable_parameters:,} of {plan.budget:,} parameters",
        title_justify="left",
    )
    for name, justify in (("module", "left"), ("kind", "left"), ("shape", "right"), ("rank", "right"),
                          ("scaling", "right"), ("alpha", "right"), ("parameters", "right")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for m in plan.modules:
        rank = plan.ranks[m.name]
        table.add_row(Text(m.name), m.kind, f"{m.d_out}×{m.d_in}", str(rank), f"{plan.scaling_of(m.name):.4g}",
                      f"{plan.alpha_of(m.name):.4g}", f"{rank * m.params_per_rank:,}")  # fmt: skip
    return table


def heat_map(plan: RankPlan) -> Table:
    """Ranks per block (rows) and module (columns), coloured from the lowest to the highest."""
    roles = list(dict.fromkeys(role_of(m.name) for m in plan.modules))
    cells = {(m.depth, role_of(m.name)): plan.ranks[m.name] for m in plan.modules}
    top = max(plan.ranks.values())
    table = Table(box=None, padding=(0, 0), title="rank per block and module", title_justify="left")
    table.add_column("block", justify="right")
    for label in role_labels(roles):
        table.add_column(Text(f" {label}"), justify="center")
    for depth in sorted({m.depth for m in plan.modules}):
        table.add_row(str(depth), *(_cell(cells.get((depth, role)), top) for role in roles))
    return table


def _cell(rank: int | None, top: int) -> Text:
    if rank is None:
        return Text(" ")
    level = min(len(_VIRIDIS) - 1, int(rank / top * len(_VIRIDIS)))
    return Text(f"{rank:^8}", style=f"{'black' if level > 5 else 'white'} on {_VIRIDIS[level]}")


def arms_table(arms: Sequence[ArmSummary], baseline: str) -> Table:
    """Arms with loss, difference to the baseline and parameters."""
    table = Table(
        title=f"test loss, nats per token (differences paired by seed against {baseline})",
        title_justify="left",
    )
    for name in ("arm", "budget", "parameters", "rate", "seeds", "test loss", "difference", "95 % interval"):
        table.add_column(name, justify="left" if name in ("arm", "budget") else "right")
    for arm in arms:
        name = arm.arm + (f" ({arm.diverged} diverged)" if arm.diverged else "")
        sizes = " / ".join(f"{n:,}" for n in arm.trainable_parameters)
        difference = f"{arm.difference.mean:+.4f}" if arm.difference else ""
        interval = ""
        if arm.difference and arm.difference.low is not None:
            interval = f"[{arm.difference.low:+.4f}, {arm.difference.high:+.4f}]"
        table.add_row(Text(name), arm.budget, sizes, f"{arm.learning_rate:g}", str(arm.loss.n if arm.loss else 0),
                      f"{arm.loss.mean:.4f}" if arm.loss else "", difference, interval)  # fmt: skip
    return table


def histogram(counts: Sequence[int], edges: Sequence[float], width: int = 40) -> Text:
    """Horizontal bars, one a bin."""
    top = max([*counts, 1])
    lines = []
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * math.ceil(width * count / top) if count else ""
        lines.append(f"{low:>6.0f}–{high:<6.0f} {bar} {count:,}")
    return Text("\n".join(lines))


def plain(value: Any) -> Text:
    """Foreign text without its control characters, so that data cannot drive the terminal."""
    text = str(value)
    return Text("".join(c if c in "\n\t" or (c.isprintable()) else "�" for c in text))


def profile_view(found: DataProfile) -> Group:
    """Facts, histogram and samples of a data set."""
    facts = Table(box=None, show_header=False)
    facts.add_column(style="dim")
    facts.add_column()
    totals = [p + c for p, c in zip(found.prompt_tokens, found.completion_tokens, strict=True)]
    share = 100 * found.truncated / found.records
    for name, value in (
        ("source", found.source),
        ("form", found.form),
        ("licence", found.licence or "not known; look it up before you publish"),
        ("records", f"{found.records:,}"),
        ("duplicates", f"{found.duplicates:,} exact, {found.same_prompt:,} more that ask the same"),
        ("empty completions", f"{found.empty_completions:,}"),
        ("prompt tokens", _quantiles(found.prompt_tokens)),
        ("completion tokens", _quantiles(found.completion_tokens)),
        (f"cut at {found.max_length} tokens", f"{found.truncated:,} ({share:.1f} %)"),
        ("no room for a completion", f"{found.without_room:,}"),
    ):
        facts.add_row(name, plain(value))
    counts, edges = np.histogram(totals, bins=12)
    parts: list[Any] = [
        facts,
        Text("\ntokens per record", style="bold"),
        histogram(counts.tolist(), edges.tolist()),
    ]
    for index, sample in enumerate(found.samples, 1):
        parts.append(Text(f"\nsample {index}: masked (dim), learnt (bold)", style="bold"))
        parts.append(
            Text.assemble((plain(sample.masked).plain, "dim"), ("⟦" + plain(sample.learnt).plain + "⟧", "bold green"))
        )
    return Group(*parts)


def _quantiles(lengths: Sequence[int]) -> str:
    q = quantiles(lengths)
    return f"median {q['median']:.0f}, 95 % {q['q95']:.0f}, largest {q['max']:.0f}"


def estimate_view(found: Estimate) -> Group:
    """What a study will cost."""
    runs = Table("phase", "runs", box=None)
    for phase, count in found.runs.items():
        runs.add_row(phase, f"{count:,}")
    sizes = Table("arm at budget", "trainable parameters", box=None)
    for label, count in found.parameters.items():
        sizes.add_row(Text(label), f"{count:,}")
    minutes = found.seconds / 60
    cost = (
        f"\n{found.steps:,} steps a run; about {found.memory_bytes / 1e6:,.0f} MB of memory for weights, "
        f"adapters, activations and logits; about {minutes:.1f} minutes in all on this machine"
    )
    return Group(
        runs,
        Text(),
        sizes,
        Text(cost),
        *(Text(f"warning: {text}", style="yellow") for text in found.warnings),
    )


def status_view(found: StudyStatus) -> Group:
    """Where a study stands."""
    state = "running now" if found.in_use else "not running"
    done = found.expected - found.left
    parts: list[Any] = [
        Text(f"{found.name}: {done} of {found.expected} runs have a result, {found.left} left; {state}")
    ]
    parts.append(Text(", ".join(f"{count} {name}" for name, count in found.counts.items()), style="dim"))
    for run in (*found.current, *found.troubles):
        step = f" step {run['step']}/{run['steps']}" if run["step"] is not None else ""
        label = f"{run['status']}: {run['phase']} {run['arm']} {run['budget']} seed {run['seed']}{step}"
        parts.append(plain(f"{label} {run['error'] or ''}"))
    return Group(*parts)


def strategies_rows() -> list[dict[str, Any]]:
    """All strategies with summary, needs, options and source."""
    return [
        {
            "name": s.name,
            "summary": s.summary,
            "rests_on": s.rests_on,
            "options": {name: field.default for name, field in s.options.model_fields.items()},
            "source": s.source,
        }
        for s in STRATEGIES.values()
    ]


def strategies_view() -> Group:
    """The strategies, three lines each."""
    lines = []
    for row in strategies_rows():
        options = ", ".join(f"{name}={default}" for name, default in row["options"].items() if default is not None)
        lines.append(Text.assemble((row["name"], "bold"), f"  {row['summary']}"))
        lines.append(Text(f"    rests on {row['rests_on']}; from {row['source']}", style="dim"))
        lines.append(Text(f"    options: {options}", style="dim"))
    return Group(*lines)
