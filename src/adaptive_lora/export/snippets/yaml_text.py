"""YAML that readers of version 1.1 (PyYAML, in Axolotl, LLaMA-Factory and mlx-lm) and of 1.2 understand alike."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import SingleQuotedScalarString

Name = SingleQuotedScalarString
"""Text that is written in quotes whatever it is: module names, patterns, paths."""


class _Representer(RoundTripRepresenter):  # type: ignore[misc]  # ruamel is untyped
    """Writes floats with a dot, which version 1.1 needs to see a number in an exponent."""

    def represent_float(self, data: float) -> ScalarNode:
        mantissa, sign, exponent = repr(data).partition("e")
        return self.represent_scalar(
            "tag:yaml.org,2002:float", f"{mantissa}{'' if '.' in mantissa else '.0'}{sign}{exponent}"
        )


_Representer.add_representer(float, _Representer.represent_float)


def yaml_text(keys: Mapping[str, Any]) -> str:
    """The keys in their order, one a line.

    >>> print(yaml_text({"names": [Name("on")], "rate": 1e-05}), end="")
    names:
    - 'on'
    rate: 1.0e-05
    """
    writer = YAML()
    writer.Representer = _Representer
    writer.width = 1 << 20  # no line is folded
    stream = io.StringIO()
    writer.dump(dict(keys), stream)
    return stream.getvalue()
