"""Loads a text with the tool it is for, in a process of its own: `python -m adaptive_lora.export.snippets.loading`.

On stdin JSON: `tool`, `text`, and `adapter`, whether the text names one. Ends with 0, with 3 where the tool refuses
the text and with 1 where the tool itself cannot be imported; the reason is the last line on stderr.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from ruamel.yaml import YAML

Ready = Callable[[], object]
"""Hands the text to the tool; raises where the tool refuses it. The tool was imported before."""


def _yaml(text: str) -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(text))


def _python(text: str, **names: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict(names)
    exec(compile(text, "snippet.py", "exec"), found)
    return found


def _unsloth(text: str) -> Ready:
    unsloth: Any = importlib.import_module("unsloth")
    real = inspect.signature(unsloth.FastLanguageModel.get_peft_model)
    fields = inspect.signature(importlib.import_module("peft").LoraConfig).parameters

    def bind(model: object, **given: Any) -> None:
        beyond = real.bind(model, **given).arguments.get("kwargs", {})
        if unknown := sorted(beyond.keys() - fields.keys()):
            raise TypeError(f"get_peft_model and LoraConfig know no {', '.join(unknown)}")

    return lambda: _python(text, model=None, FastLanguageModel=types.SimpleNamespace(get_peft_model=bind))


def _axolotl(text: str) -> Ready:
    schema: Any = importlib.import_module("axolotl.utils.schemas.peft").LoraConfig
    keys = {key: value for key, value in _yaml(text).items() if key != "learning_rate"}

    def validate() -> None:
        _known(keys, schema.model_fields)
        schema.model_validate(keys)

    return validate


def _ms_swift(text: str) -> Ready:
    plugins: Any = importlib.import_module("swift.tuner_plugin")

    def register() -> None:
        _python(text)
        if "rank-plan" not in plugins.tuners_map:
            raise KeyError("rank-plan")

    return register


def _llama_factory(text: str) -> Ready:
    hparams: Any = importlib.import_module("llamafactory.hparams")
    known = {field.name for kind in (hparams.FinetuningArguments, hparams.ModelArguments) for field in
             dataclasses.fields(kind)} | {"learning_rate"}  # fmt: skip
    own = {field.name for field in dataclasses.fields(hparams.FinetuningArguments)}

    def parse() -> None:
        keys = _yaml(text)
        _known(keys, known)
        hparams.FinetuningArguments(**{key: value for key, value in keys.items() if key in own})

    return parse


def _torchtune(text: str) -> Ready:
    builders: Any = importlib.import_module("torchtune.models.llama3")
    return lambda: _known(_yaml(text)["model"], inspect.signature(builders.lora_llama3).parameters)


def _litgpt(text: str) -> Ready:
    setup: Any = importlib.import_module("litgpt.finetune.lora").setup
    return lambda: _known(_yaml(text), inspect.signature(setup).parameters)


def _mlx_lm(text: str) -> Ready:
    defaults: Any = importlib.import_module("mlx_lm.lora").CONFIG_DEFAULTS
    return lambda: _known(_yaml(text), defaults)


def _known(keys: Mapping[str, Any], known: Any) -> None:
    if unknown := sorted(key for key in keys if key not in known):
        raise KeyError(f"unknown: {', '.join(unknown)}")


_LOADERS: Mapping[str, Callable[[str], Ready]] = {
    "unsloth": _unsloth,
    "axolotl": _axolotl,
    "ms-swift": _ms_swift,
    "llama-factory": _llama_factory,
    "torchtune": _torchtune,
    "litgpt": _litgpt,
    "mlx-lm": _mlx_lm,
}


def main() -> int:
    """0 loaded, 1 the tool cannot be imported, 3 it refuses the text."""
    told = json.load(sys.stdin)
    tool = told["tool"]
    try:
        if tool == "ms-swift" and told["adapter"]:
            arguments: Any = importlib.import_module("swift.arguments").SftArguments
            known = {field.name for field in dataclasses.fields(arguments)}
            ready: Ready = lambda: _known(_yaml(told["text"]), known)  # noqa: E731
        else:
            ready = _LOADERS[tool](told["text"])
    except (Exception, SystemExit) as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    try:
        ready()
    except Exception as error:
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
