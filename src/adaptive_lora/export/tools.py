"""Which tool reads which form, and what to start it with: one row a tool.

`run`: executed with that version, adapters of mixed ranks against their own logits. `read`: read in the release's code.
`make interop` runs what can be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from adaptive_lora.errors import UsageError, nearest_hint
from adaptive_lora.export.forms import MERGED, Form

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""


@dataclass(frozen=True)
class Tool:
    """A row of the table."""

    name: str
    """As `--for` has it."""
    title: str
    version: str
    evidence: Literal["run", "read"]
    accepts: Mapping[Form, str]
    """Form -> the command or call to start with; the first is the one to choose. In braces: {base}, {folder}, {name},
    {rank} (the largest), {vllm_rank} (that, rounded up to what vLLM takes)."""
    wrong: Mapping[Form, str] = field(default_factory=dict)
    """Form -> what happens instead."""
    remarks: tuple[str, ...] = ()
    conv1d: bool = False
    """Whether adapters on GPT-2's transposed weights are read right; where not, merged weights are."""
    conv1d_why: str = "reads no adapters on the transposed weights of {family} right"
    """Where not: why."""
    needs: Mapping[Form, str] = field(default_factory=dict)
    """Form -> what the command needs besides, such as a conversion."""


_PEFT_FORMS: tuple[Form, ...] = ("peft", "padded", "single-alpha", "unit")
_RANKS_APART: tuple[Form, ...] = ("peft", "single-alpha", "unit")
_ONE_ALPHA = "one lora_alpha is read for all tensors, and the scale is alpha / rank of each"
_LLAMA_WRONG: Mapping[Form, str] = {
    "peft": f"silently wrong: {_ONE_ALPHA}",
    "unit": f"silently wrong where ranks differ: {_ONE_ALPHA}",
}
_TRT = (
    'LLM("{base}", lora_config=...) whose largest rank is {rank}, then generate(..., '
    'lora_request=LoRARequest("{name}", 1, "{folder}"))'
)
_OLLAMA = "only adapters of Llama and Gemma 2 with whole alphas are converted; give it a GGUF file"
_NO_PATTERNS = "rank_pattern is not known"
_LLAMA_BASE = "the base model as GGUF: python convert_hf_to_gguf.py {base} --outfile base.gguf"
_CONVERT = "first convert it: python convert_lora_to_gguf.py {folder} --base {base} --outfile {name}.gguf"
_CONVERT_MERGED = "first convert it: python convert_hf_to_gguf.py {folder} --outfile {name}.gguf"
_PEFT_LOAD = 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{folder}")'
_GENAI = "python -m onnxruntime_genai.models.builder -m {base} -o {name}-onnx -p fp32 -e cpu"
_OPENVINO = 'LLMPipeline(MODEL, "CPU", adapters=AdapterConfig(Adapter("{folder}/adapter_model.safetensors"), 1.0))'
_OLIVE = "olive convert-adapters --adapter_path {folder} --output_path {name} --adapter_format onnx_adapter"
_SGLANG = "python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank {rank}"
_VLLM = "vllm serve {base} --enable-lora --max-lora-rank {vllm_rank} --lora-modules {name}={folder}"

TOOLS: tuple[Tool, ...] = (
    Tool(
        "peft", "PEFT", "0.21.2", "run",
        dict.fromkeys(_PEFT_FORMS, _PEFT_LOAD)
        | {"merged": 'AutoModelForCausalLM.from_pretrained("{folder}")'},
        remarks=("`hotswap_adapter` is right where every scale is alpha / r of the whole file: padded always is",),
        conv1d=True,
    ),
    Tool(
        "lm-eval", "lm-evaluation-harness", "0.4.13", "run",
        dict.fromkeys(_PEFT_FORMS,
                      "lm_eval --model hf --model_args pretrained={base},peft={folder} --tasks TASK")
        | {"merged": "lm_eval --model hf --model_args pretrained={folder} --tasks TASK"},
        conv1d=True,
    ),
    Tool(
        "vllm", "vLLM", "0.33", "read",
        dict.fromkeys(_PEFT_FORMS, _VLLM) | {"merged": "vllm serve {folder}"},
        remarks=(
            "up to 0.31 patterns are ignored without a word: give padded there",
            "--max-lora-rank must reach the largest rank, and takes 1, 8, 16, 32, 64, 128, 256, 320 and 512",
            "there are no adapters for GPT-2's family",
        ),
    ),
    Tool(
        "sglang", "SGLang", "0.5.23", "read",
        {"padded": f"{_SGLANG} --lora-paths {{name}}={{folder}}",
         "merged": "python -m sglang.launch_server --model-path {folder}"},
        dict.fromkeys(_RANKS_APART, f"refused: {_NO_PATTERNS}"),
    ),
    Tool(
        "llama.cpp", "llama.cpp", "October 2026", "run",
        {"gguf": "llama-server -m base.gguf --lora {folder}/adapter.gguf",
         "single-alpha": "llama-server -m base.gguf --lora {name}.gguf",
         "padded": "llama-server -m base.gguf --lora {name}.gguf",
         "gguf-merged": "llama-server -m {folder}/model.gguf",
         "merged": "llama-server -m {name}.gguf"},
        _LLAMA_WRONG,
        remarks=(
            "rsLoRA's flag is ignored: exports never set it",
            "the converter transposes adapters for GPT-2's family, refused or silently wrong: take merged weights",
        ),
        needs={"gguf": _LLAMA_BASE, "single-alpha": _CONVERT, "padded": _CONVERT, "merged": _CONVERT_MERGED},
    ),
    Tool(
        "ollama", "Ollama", "October 2026", "read",
        {"gguf": "ollama create {name} -f Modelfile, where Modelfile says `FROM ./base.gguf` and "
                 "`ADAPTER {folder}/adapter.gguf`",
         "gguf-merged": "ollama create {name} -f Modelfile, where Modelfile says `FROM {folder}/model.gguf`",
         "merged": "ollama create {name} -f Modelfile, where Modelfile says `FROM {folder}`"},
        {**_LLAMA_WRONG, "padded": _OLLAMA, "single-alpha": _OLLAMA},
        needs={"gguf": _LLAMA_BASE},
    ),
    Tool(
        "mlx", "mlx-lm", "0.32.2", "run",
        {"mlx": "mlx_lm.generate --model {base} --adapter-path {folder} --prompt TEXT",
         "merged": "mlx_lm.generate --model {folder} --prompt TEXT"},
        dict.fromkeys(_PEFT_FORMS, "refused: it has names and a format of its own"),
        remarks=(
            "one rank for all; its `scale` is the multiplier itself",
            "a Llama that transformers 5 saved lacks `rope_theta`, and is read with 10,000: merged weights have it",
        ),
        conv1d_why="reads a {family} only where no name begins with `transformer.`, as in merged weights",
    ),
    Tool(
        "openvino", "OpenVINO GenAI", "2026.4.1", "run",
        {"padded": _OPENVINO, "unit": _OPENVINO, "merged": "optimum-cli export openvino --model {folder} {name}-ov"},
        {"peft": "silently wrong with its default alpha of 1; right with alpha = the scale where that is one for all",
         "single-alpha": "silently wrong: no alpha of the file is read"},
        remarks=("the argument alpha is the multiplier itself: pass 1.0",),
        conv1d=True,
    ),
    Tool(
        "onnxruntime", "ONNX Runtime GenAI", "0.18", "run",
        dict.fromkeys(_PEFT_FORMS, f"{_GENAI} --extra_options adapter_path={{folder}}")
        | {"onnx-adapter": 'Adapters(model).load("{folder}/adapter.onnx_adapter", "{name}")',
           "merged": "python -m onnxruntime_genai.models.builder -m {folder} -o {name}-onnx -p fp32 -e cpu"},
        needs={"onnx-adapter": f"a model made with an adapter of the same rank: {_GENAI} --extra_options "
                               "adapter_path=PADDED_FOLDER"},
    ),
    Tool(
        "olive", "Olive", "0.13", "run",
        {"padded": _OLIVE, "unit": _OLIVE},
        {"peft": "right only where one scale is for all: one alpha / r is read",
         "single-alpha": "silently wrong: one alpha / r is read"},
    ),
    Tool(
        "lmdeploy", "LMDeploy", "0.18", "read",
        {"padded": "lmdeploy serve api_server {base} --backend pytorch --adapters {name}={folder}",
         "merged": "lmdeploy serve api_server {folder}"},
        dict.fromkeys(_RANKS_APART, f"refused or wrong: {_NO_PATTERNS}; a module of rank 1 is "
                                                        "broadcast without a word"),
    ),
    Tool(
        "tensorrt-llm", "TensorRT-LLM", "October 2026", "read",
        {"padded": _TRT,
         "merged": 'LLM("{folder}")'},
        dict.fromkeys(_RANKS_APART, f"no: {_NO_PATTERNS}"),
    ),
    Tool("ctranslate2", "CTranslate2", "4.8.5", "run",
         {"merged": "ct2-transformers-converter --model {folder} --output_dir {name}-ct2"},
         dict.fromkeys(_PEFT_FORMS, "refused: it has no adapters")),
)  # fmt: skip


def find_tool(name: str) -> Tool:
    """A row by its name; UsageError with those there are."""
    found = next((tool for tool in TOOLS if tool.name == name.lower()), None)
    if found is None:
        names = [tool.name for tool in TOOLS]
        raise UsageError(f"There is no tool {name!r} in the table{nearest_hint(name, names)}. There is: "
                         f"{', '.join(names)}.")  # fmt: skip
    return found


def form_for(tool: Tool, transposed: bool, converter: bool) -> Form:
    """The form to give a tool: a merged one where it reads adapters on GPT-2's weights wrongly, and one of GGUF only
    where llama.cpp's `converter` is here. UsageError where none is left.
    """
    forms = [form for form in tool.accepts if form in MERGED or not transposed or tool.conv1d]
    if not converter:
        forms = [form for form in forms if not form.startswith("gguf")]
    if not forms:
        raise UsageError(f"{tool.title} takes adapters alone, and reads none on transposed weights such as GPT-2's.")
    return forms[0]


@dataclass(frozen=True)
class Filled:
    """What stands in for the braces of a command."""

    base: str
    folder: str
    name: str
    rank: int

    def into(self, command: str) -> str:
        """The command for this export."""
        allowed = vllm_rank(self.rank) if "{vllm_rank}" in command else None
        return command.format(**vars(self), vllm_rank=allowed)


def vllm_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that vLLM takes and that reaches this rank; UsageError above its largest.

    >>> vllm_rank(12), vllm_rank(256)
    (16, 256)
    """
    found = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    if found is None:
        raise UsageError(
            f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and the adapter has one of {rank}: export it merged."
        )
    return found


def not_read(tool: Tool, form: Form) -> str:
    """Why a tool is not to be given a form, whatever the model."""
    other = "it takes adapters, and no merged weights" if form in MERGED else "it has a format of its own"
    return tool.wrong.get(form, other)


def compatible(form: Form, transposed: bool) -> list[tuple[Tool, str | None]]:
    """Every tool with the command for this form, or None with where `Tool.wrong` says why."""
    rows = []
    for tool in TOOLS:
        fits = form in tool.accepts and (form in MERGED or not transposed or tool.conv1d)
        rows.append((tool, tool.accepts[form] if fits else None))
    return rows


def table_json() -> list[dict[str, Any]]:
    """The table as JSON values."""
    return [asdict(tool) for tool in TOOLS]
