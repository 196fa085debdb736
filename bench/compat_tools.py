"""What `compat.py` runs in processes of their own: llama.cpp's converter and engine, ONNX Runtime GenAI's builder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.export.gguf import find_converter

BUILDER = "onnxruntime_genai.models.builder"
Task = tuple[str, list[Any]]
"""A script or module, and its arguments."""

SHIM = """
import runpy, sys
from pathlib import Path
script = Path({real!r}) / Path(__file__).name
sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
import conversion.base
for kind in vars(conversion.base).values():
    if isinstance(kind, type) and "get_vocab_base_pre" in vars(kind):
        kind.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(str(script), run_name="__main__")
"""
"""The tiny models have a tokenizer that the converter does not know; no weight depends on its kind."""
BATCH = """
import json, runpy, sys
for name, (target, arguments) in json.loads(sys.argv[1]).items():
    sys.argv, said = [target, *arguments], None
    try:
        if target.endswith(".py"):
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        said = f"exit {error.code}" if error.code else None
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print("DONE", json.dumps([name, said]), flush=True)
"""
"""Several in one process, as each takes longer to start than to work."""
ENGINE = """
import json, sys
import xllamacpp
model, lora, texts, vocabulary = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.fit_params = model, 128, 1, False, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if lora:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = lora, 1.0
    params.lora_adapters = [adapter]
server = xllamacpp.Server(params)
for ids in texts:
    asked = {"prompt": ids, "max_tokens": 1, "logprobs": vocabulary, "temperature": 0.0, "cache_prompt": False}
    said = server.handle_completions(asked)["choices"][0]["logprobs"]
    told = said["content"][0]["top_logprobs"] if said else []
    print("ANSWER", json.dumps({str(token["id"]): token["logprob"] for token in told}), flush=True)
"""
"""A process of its own, as what the engine refuses may end the process."""


def shim(place: Path) -> Path | None:
    """llama.cpp's converter, told what the tokenizer is; None where it is not here."""
    real = find_converter()
    if real is None:
        return None
    place.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (place / name).write_text(SHIM.format(real=str(real)))
    return place


def run_all(tasks: Mapping[str, Task]) -> dict[str, str | None]:
    """Runs scripts and modules one after another; by name what went wrong, None where nothing did."""
    said = {name: (target, [str(argument) for argument in own]) for name, (target, own) in tasks.items()}
    done = subprocess.run([sys.executable, "-c", BATCH, json.dumps(said)], capture_output=True, text=True)
    ends = dict(json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("DONE "))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return {name: ends.get(name, f"ended before its end: {last}") for name in tasks}


def next_tokens_by_llama_cpp(
    model: Path, lora: Path | None, texts: Sequence[Sequence[int]], vocabulary: int
) -> list[Tensor | None]:
    """Log-probabilities of the next token after each text; None where it ends there, of which the engine says none.

    RuntimeError with what the engine says.
    """
    command = [sys.executable, "-c", ENGINE, str(model), str(lora or ""), json.dumps(texts), str(vocabulary)]
    done = subprocess.run(command, capture_output=True, text=True)
    answers = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if len(answers) != len(texts):
        said = [line for line in done.stderr.splitlines() if "error" in line.lower() or " E " in line]
        raise RuntimeError((said or done.stderr.splitlines() or ["the engine said nothing"])[-1])
    return [torch.tensor([answer[str(i)] for i in range(vocabulary)]) if answer else None for answer in answers]


def logits_by_onnxruntime(built: Path, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of every text by a model that the builder made, (tokens, vocabulary)."""
    import numpy as np
    import onnxruntime

    heads = json.loads((built / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(built / "model.onnx"), settings)
    found = []
    for ids in texts:
        known = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, len(ids)), dtype=np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        }
        given = {entry.name: known[entry.name] for entry in session.get_inputs() if entry.name in known}
        for entry in session.get_inputs():
            if entry.name not in known:  # nothing has been read before
                given[entry.name] = np.zeros((1, heads["num_key_value_heads"], 0, heads["head_size"]), dtype=np.float32)
        found.append(torch.from_numpy(session.run(["logits"], given)[0][0]))
    return found


def logits_by_ctranslate2(folder: Path, to: Path, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of every text by the model of a folder, converted into another, (tokens, vocabulary)."""
    import ctranslate2
    import ctranslate2.converters
    import numpy as np
    import transformers

    class Converter(ctranslate2.converters.TransformersConverter):  # type: ignore[misc]
        """As it is, for a tokenizer with the special tokens that it wants to note; no weight depends on them."""

        def load_tokenizer(self, kind: Any, name: str, **given: Any) -> Any:
            tokenizer = super().load_tokenizer(kind, name, **given)
            first = tokenizer.convert_ids_to_tokens(0)
            for role in ("bos_token", "eos_token", "unk_token"):
                if getattr(tokenizer, role) is None:
                    setattr(tokenizer, role, first)
            return tokenizer

    Converter(str(folder)).convert(str(to))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    engine = ctranslate2.Generator(str(to), device="cpu", compute_type="float32", intra_threads=1)
    found = [np.array(engine.forward_batch([tokenizer.convert_ids_to_tokens(list(ids))]))[0] for ids in texts]
    return [torch.from_numpy(own) for own in found]
