"""Texts of a study file that are more than text: paths with variables, budgets, templates, names."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from adaptive_lora.data.templates import as_template
from adaptive_lora.errors import UsageError
from adaptive_lora.planning.budget_text import BUDGET, parse_budget


def _with_known_variables(text: str) -> str:
    if len(text.encode(errors="replace")) > 4096 or any(
        len(part.encode(errors="replace")) > 255 for part in text.split("/")
    ):
        raise ValueError("a path or a name of at most 4,096 bytes, and 255 between two slashes")
    unset = [name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ]
    if unset:
        raise ValueError(
            f"the environment variable {' and '.join(unset)} is not set; set it to the folder of the model or the data"
        )
    return text


def _parsed_budget(text: str) -> str:
    """`params:50_000` and `params:50000` are one budget: one way of writing it."""
    unit, number = parse_budget(text)
    return f"{unit}:{number}"


def _spelled(text: str) -> str:
    try:
        return as_template(text)
    except UsageError as error:
        raise ValueError(str(error)) from None


TemplateText = Annotated[str, AfterValidator(_spelled)]
PathText = Annotated[str, AfterValidator(_with_known_variables)]
BudgetText = Annotated[str, AfterValidator(_parsed_budget), WithJsonSchema({"type": "string", "pattern": BUDGET})]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
