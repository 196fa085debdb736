"""The JSON schema of the study file: what the reader takes, shorthand included, with every strategy's options."""

from __future__ import annotations

from typing import Any

from adaptive_lora.planning.strategies import Strategy
from adaptive_lora.planning.strategies.registry import all_strategies
from adaptive_lora.study.schema import StudySpec


def study_json_schema() -> dict[str, Any]:
    """A schema (draft 2020-12) that accepts what `study_file.parse_study` accepts, but for what no schema can say:
    names that must exist or differ, environment variables, and what depends on the model."""
    schema = _without_titles(StudySpec.model_json_schema())
    parts, strategies = schema["$defs"], all_strategies()[0]
    names: dict[str, Any] = {"anyOf": [{"enum": list(strategies)}, {"type": "string", "pattern": r"\.py(:[^:]+)?$"}]}
    arm, train = parts["ArmPart"], parts["TrainPart"]
    arm["required"].remove("name")
    arm["properties"]["strategy"] |= {"anyOf": [*names["anyOf"], {"type": "null"}]}
    arm["anyOf"] = _either("strategy", "ranks")
    arm["allOf"] = [_options_of(strategy, parts) for strategy in strategies.values()]
    schema["properties"]["arms"]["items"] = {"anyOf": [names, {"$ref": "#/$defs/ArmPart"}]}
    train["anyOf"] = _either("epochs", "steps")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study file of adaptive-lora",
        **schema,
    }


def _either(one: str, other: str) -> list[dict[str, Any]]:
    """Exactly one of two keys has a value."""
    given, null = {"not": {"type": "null"}}, {"type": "null"}
    return [{"required": [a], "properties": {a: given, b: null}} for a, b in ((one, other), (other, one))]


def _options_of(strategy: Strategy, parts: dict[str, Any]) -> dict[str, Any]:
    """`options` for arms of a strategy; the schema of its options goes into `parts`."""
    name = f"options-of-{strategy.name}"
    options = _without_titles(strategy.options.model_json_schema())
    parts |= options.pop("$defs", {})
    parts[name] = options
    return {
        "if": {"properties": {"strategy": {"const": strategy.name}}, "required": ["strategy"]},
        "then": {"properties": {"options": {"$ref": f"#/$defs/{name}"}}},
    }


def _without_titles(schema: Any) -> Any:
    """Without the titles that pydantic makes of names; descriptions say more."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(value) for key, value in schema.items() if key != "title"}
