"""Strategies that a study takes from files: found beside the study file, and kept with the study, which may move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adaptive_lora.planning.strategies.registry import plain_strategy_name, source_text, strategy_file
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.yaml import Location


def with_located_strategies(data: dict[str, Any], locate: Callable[[str], str]) -> dict[str, Any]:
    """A study file's data with the place of every strategy's file, and a name for its arm; `ArmPart` loads them."""
    if not isinstance(data.get("arms"), list):
        return data
    arms = list(data["arms"])
    for (_, index, *rest), text in strategy_places(data):
        file, arm = strategy_file(text) or "", arms[index]  # type: ignore[index]
        located = locate(file) + text[len(file) :]
        if rest == ["options", "source"]:
            arms[index] = {**arm, "options": {**arm["options"], "source": located}}  # type: ignore[index]
        else:
            own = arm if isinstance(arm, dict) else {}
            arms[index] = {"name": plain_strategy_name(text), **own, "strategy": located}  # type: ignore[index]
    return {**data, "arms": arms}


def portable_strategies(data: dict[str, Any]) -> dict[Location, str]:
    """Where a study file names files of strategies, and what stands there once `kept_files` are beside it."""
    places = ((at, text, strategy_file(text) or "") for at, text in strategy_places(data))
    return {at: Path(file).name + text[len(file) :] for at, text, file in places if Path(file).name != file}


def kept_files(spec: StudySpec) -> dict[str, str]:
    """File name -> content of every strategy that the study takes from a file."""
    references = [text for arm in spec.arms for text in (arm.strategy, arm.options.get("source"))]
    return {
        file: source_text(text)
        for text in references
        if isinstance(text, str) and (file := strategy_file(text)) is not None
    }


def strategy_places(data: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    """Where a study file names files of strategies, and what it says there."""
    for index, arm in enumerate(data["arms"]):
        places: dict[Location, Any] = {("arms", index): arm}
        if isinstance(arm, dict):
            options = arm.get("options")
            source = options.get("source") if isinstance(options, dict) else None
            places = {("arms", index, "strategy"): arm.get("strategy"), ("arms", index, "options", "source"): source}
        yield from ((at, text) for at, text in places.items() if isinstance(text, str) and strategy_file(text))
