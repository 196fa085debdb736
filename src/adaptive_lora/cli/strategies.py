"""`strategies` and `check-strategy`: the ways of spending a budget, and the contract that they keep to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json, working


@app.command()
@explained
def strategies(as_json: JsonFlag = False) -> None:
    """The ways of spending a budget that there are, those of installed packages too."""
    from adaptive_lora.cli.terminal import strategies_rows, strategies_view
    from adaptive_lora.planning.strategies.registry import all_strategies

    for complaint in all_strategies()[1]:
        err.print(f"warning: {complaint}", markup=False, soft_wrap=True)
    if as_json:
        print_json(strategies_rows())
    else:
        out.print(strategies_view())


@app.command()
@explained
def check_strategy(
    strategy: Annotated[str, typer.Argument(help="A name, or `my_file.py:name` for one in a file of your own.")],
    as_json: JsonFlag = False,
) -> None:
    """Check a strategy against the contract that all keep to, and make one plan of the embedded model with it."""
    from adaptive_lora.planning.strategies import find_strategy
    from adaptive_lora.planning.strategies.contract import Finding
    from adaptive_lora.planning.strategies.contract import check_strategy as check
    from adaptive_lora.planning.strategies.registry import pinned

    reference = pinned(strategy)
    with working(f"checking {reference}"):
        findings = [*check(find_strategy(reference)), Finding("plan", *_demo_plan(reference))]
    if as_json:
        print_json({"strategy": reference, "rules": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            said = finding.asked if finding.came is None else f"asked: {finding.asked}; came: {finding.came}"
            state = "ok" if finding.came is None else "failed"
            out.print(f"{state:8}{finding.rule:12}{said}", markup=False, soft_wrap=True)
    if any(finding.came for finding in findings):
        raise typer.Exit(1)


def _demo_plan(reference: str) -> tuple[str, str | None]:
    """What is asked of a plan of the embedded model, its measures taken, and what came instead."""
    from adaptive_lora import api, demo
    from adaptive_lora.errors import AdaptiveLoraError
    from adaptive_lora.planning.strategies import find_strategy

    asked = f"a plan of the model `{demo.MODEL}`, its measures taken"
    quick = {"short_run_steps": 2} if "short_run_steps" in find_strategy(reference).options.model_fields else {}
    try:
        api.plan(demo.MODEL, reference, data=f"{demo.SOURCE_PREFIX}fine-tuning", max_length=128, options=quick)
    except AdaptiveLoraError as error:
        return asked, str(error)
    return asked, None
