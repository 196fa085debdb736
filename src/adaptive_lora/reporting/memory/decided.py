"""What was decided, why it matters, and what was changed on the way: brief, context, decisions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.formatting import counted, listed
from adaptive_lora.reporting.memory.standing import Standing, diverged
from adaptive_lora.reporting.memory.words import bullets, code, day, few, grouped, safe
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.stats.seeds import smallest_p
from adaptive_lora.study.lock import verdicts_rest_on
from adaptive_lora.study.results import plain_name


def project_brief(found: Findings, standing: Standing) -> str:
    """What is asked, of what, and how an answer is reached."""
    spec, seeds = found.facts["spec"], found.facts["spec"]["seeds"]
    arms = [plain_name(arm["name"]) for arm in spec["arms"] if plain_name(arm["name"]) != found.baseline]
    sizes = found.facts.get("budgets", {})
    budgets = [f"{safe(b)} ({sizes[b]:,} trainable parameters)" if b in sizes else safe(b) for b in spec["budgets"]]
    asked = f"do {few(arms, 12)} reach" if len(arms) > 1 else f"does {few(arms) if arms else 'an arm'} reach"
    return "\n\n".join(
        [
            f"Study {code(found.facts['name'])}. With as many trainable parameters as {found.baseline}, {asked} "
            f"another test loss when {code(found.facts['model']['name'])} is fine-tuned on "
            f"{code(spec['data']['source'])}?",
            bullets(
                [
                    f"Hypotheses: {_hypotheses(found)}",
                    _rule(found),
                    f"Budgets: {listed(budgets)}.",
                    f"Seeds: {len(seeds['evaluation'])} evaluate on test, {len(seeds['tuning'])} others tune on "
                    "validation.",
                    f"Controls: {_controls(found)}.",
                ]
            ),
        ]
    )


def _hypotheses(found: Findings) -> str:
    if not found.judged:
        return "none; everything here is exploratory."
    return (
        f"{counted(len(found.judged), 'comparison')}, one family: each differs in test loss from {found.baseline}, or "
        f"is equivalent to it within ±{found.analysis['margin']:g} nats per token: {grouped(found.judged)}. "
        "All else is exploratory."
    )


def _rule(found: Findings) -> str:
    seeds = len(found.facts["spec"]["seeds"]["evaluation"])
    if not found.judged:
        return "Described by: mean differences paired by seed, with 95 % intervals; nothing is tested."
    return (
        f"Decided by: exact sign-flip tests over paired seeds, Holm at {found.analysis['alpha']:g} (smallest p with "
        f"{counted(seeds, 'seed')}: {smallest_p(seeds):.3g}); equivalent where the "
        f"{100 - 200 * found.analysis['alpha']:g} % interval lies within the margin."
    )


def _controls(found: Findings) -> str:
    controls = lock_of(found.facts).get("controls") or {}
    said = [f"{plain_name(arm)} (of {safe(source)})" if source else plain_name(arm)
            for arm, source in controls.get("arms", {}).items()]  # fmt: skip
    if alone := controls.get("baseline_alone_at"):
        said.append(f"{found.baseline} alone at {listed([safe(budget) for budget in alone])}")
    if longer := controls.get("compute"):
        said.append(f"at equal compute {few(sorted({plain_name(name) for name in longer.values()}), 4)}")
    if controls.get("twin"):
        said.append("the baseline's twin")
    return listed(said) if said else "none recorded"


def product_context(found: Findings, standing: Standing) -> str:
    """Who would use an answer, and what each verdict means to them."""
    base, margin, alpha = found.baseline, found.analysis["margin"], found.analysis["alpha"]
    verdicts = Counter(str(judgement.verdict) for judgement in found.judged.values())
    licence = render("study.licence", found.facts["data"])
    here = listed([f"{number} {name}" for name, number in verdicts.items()]) if verdicts else "no verdict"
    return "\n\n".join(
        [
            f"What a verdict means to a practitioner, a researcher, and the author of a method. Here: {here}.",
            bullets(
                [
                    f"better, worse: take, or avoid, the arm at this budget and its tuned rate; a difference from "
                    f"{base} under Holm at {alpha:g}; an effect to repeat elsewhere.",
                    f"equivalent: keep {base}, the plainer plan; the difference lies within ±{margin:g} nats per token "
                    f"(about {100 * math.expm1(margin):.2g} % of perplexity), if the task tells ranks apart; no gain "
                    "beyond that to claim.",
                    f"undecided: no reason yet to leave {base}; nothing to claim either way; neither a gain nor its "
                    "absence is shown.",
                ]
            ),
            "All of it holds for this model, these data and this length of training.",
            f"Licence of the data: {safe(licence, 300).removesuffix('.')}.",
        ]
    )


def decision_log(found: Findings, standing: Standing) -> str:
    """Dated, in order; made from the ledger, so that an entry never changes unless the record does."""
    return bullets([*_locked(found), *_deviations(found), *_rates(found), *_losses(standing)])


def _locked(found: Findings) -> list[str]:
    lock = lock_of(found.facts)
    if "locked" not in lock:
        return ["No lock is recorded: an earlier version began this study."]
    first = lock.get("first", verdicts_rest_on(found.facts["spec"], lock["primary"]))
    asked = counted(len(first["primary"]), "comparison") if first["primary"] else "no hypothesis"
    rule = first["analysis"]
    late = found.judged and not found.locked_first
    changed = " Verdicts rest on what was changed since, as said below." if late else ""
    return [
        f"{day(lock['locked'])}: locked before the first step: {asked}, baseline {rule['baseline']}, margin "
        f"{rule['margin']:g}, alpha {rule['alpha']:g}, {counted(len(first['seeds']), 'evaluation seed')}.{changed}"
    ]


def _deviations(found: Findings, most: int = 3) -> list[str]:
    said = []
    for deviation in found.deviations:
        differences: Sequence[str] = deviation["differences"]
        more = f"; {len(differences) - most} more in study.lock.json" if len(differences) > most else ""
        changes = "; ".join(safe(text, 120) for text in differences[:most])
        late = f" after {counted(results, 'result')}" if (results := deviation.get("results")) else ""
        said.append(f"{day(deviation['when'])}: deviation from the lock{late}. Why: {safe(deviation['reason'], 400)}. "
                    f"What: {changes}{more}.")  # fmt: skip
    return said


def _rates(found: Findings) -> list[str]:
    """Which rate each arm is judged at, and what widening added."""
    tuning = found.runs[found.runs["phase"] == Phase.TUNING]
    if tuning.empty:
        rates = sorted({arm.learning_rate for arm in found.arms})
        return [f"Learning rate {listed([f'{rate:g}' for rate in rates])}, for all; none was tuned."] if rates else []
    given = found.facts["spec"]["train"]
    added = sorted(set(tuning["learning_rate"]) - set(given["learning_rate"]))
    said = []
    if given.get("widen"):
        grown = f"added {listed([f'{rate:g}' for rate in added])} for all arms" if added else "added none"
        said.append(f"`auto` widened the grid while a best rate lay at its edge: {grown}.")
    if chosen := _by_rate(found):
        said.append(
            f"Rates chosen on validation: {'; '.join(f'{rate:g}: {few(a, 10)}' for rate, a in chosen.items())}."
        )
    return said


def _by_rate(found: Findings) -> Mapping[float, list[str]]:
    """Rate -> arms, with the budget where it matters."""
    rates: dict[str, dict[str, float]] = {}
    for arm in found.arms:
        rates.setdefault(arm.arm, {})[arm.budget] = arm.learning_rate
    chosen: dict[float, list[str]] = {}
    for name, own in rates.items():
        for rate in sorted(set(own.values())):
            budgets = [budget for budget, at in own.items() if at == rate]
            everywhere = len(budgets) == len(own)
            chosen.setdefault(rate, []).append(name if everywhere else f"{name} at {' and '.join(budgets)}")
    return dict(sorted(chosen.items()))


def _losses(standing: Standing) -> list[str]:
    said = diverged(standing)
    return [f"{said} Means are over the seeds that remain."] if said else []
