"""What a file of a plan must be before anything is made of it: its size, its JSON, the type and range of each value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptive_lora.errors import PlanError
from adaptive_lora.files import parse_json, read_bounded

FORMAT = 1
LARGEST = 100_000_000
"""Bytes; a plan of 10,000 modules has 5 MB."""
_Size = Annotated[int, Field(ge=1, lt=2**31)]
_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Module(_Part):
    model_config = ConfigDict(extra="forbid")

    name: _Name
    kind: Literal["attention", "mlp", "other"]
    depth: Annotated[int, Field(ge=0, lt=2**31)]
    d_in: _Size
    d_out: _Size
    fan_in_fan_out: bool = False


class _Scaling(_Part):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rule: str
    reference_scaling: float
    reference_rank: Annotated[float, Field(gt=0)]


class _Provenance(_Part):
    model: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    warnings: list[str] = []


class _Plan(_Part):
    strategy: str
    budget: Annotated[int, Field(ge=0)]
    modules: list[_Module]
    ranks: dict[_Name, _Size]
    scaling: _Scaling
    options: dict[str, Any]
    scores: dict[str, float] | None
    provenance: _Provenance
    left_out: list[_Module] = []


def check_plan_data(data: Any) -> None:
    """PlanError with the first value that is missing, or that no plan has; so for a plan of another format."""
    if not isinstance(data, Mapping) or "format" not in data:
        raise PlanError("Not a rank plan: it has no `format`. Make one with `adaptive-lora plan`.")
    if data["format"] != FORMAT:
        raise PlanError(f"The plan has format {data['format']!r:.40}; this version reads format {FORMAT}.")
    try:
        _Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ascii(".".join(map(str, first["loc"])))[1:-1]
        raise PlanError(
            f"Not a rank plan: {place[:200]}: {first['msg']}. Make one with `adaptive-lora plan`."
        ) from None


def read_json(path: Path) -> Any:
    """Parsed JSON of a plan or rank file; PlanError with the file and line where it cannot be had."""
    try:
        return parse_json(read_bounded(path, LARGEST).decode("utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist. Make a plan with `adaptive-lora plan --out {path}`.") from None
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        known = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        raise PlanError(f"{path}{line}: not valid JSON; {'the file may be cut short' if known else error}.") from None
