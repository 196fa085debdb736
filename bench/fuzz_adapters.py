"""Adapter folders with random damage, read by `read_adapter`: every one is read, or refused in clear words.

Sound folders are saved by PEFT (LoRA with patterns and regular expressions, GPT-2's, AdaLoRA's). Each case damages one
of them once to four times: bytes, fields of the configuration or of the header, names and values of tensors, files.
Nothing but our own reader sees it. A case fails by any other error than AdapterError, by a message that is long or not
printable, by a reading with values that are not numbers, or by its time. The process may take `MEMORY` more address
space than it has when it begins.

    python bench/fuzz_adapters.py [--count N] [--seed S] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.folder_files import CONFIG_FILE, WEIGHTS_FILE
from adaptive_lora.export.reading import read_adapter
from adaptive_lora.files import write_atomically
from adaptive_lora.models.libraries import quiet_libraries

MEMORY = 1024**3
"""Bytes of address space."""
SECONDS = 10.0  # one case
LONGEST_MESSAGE = 6_000
_SIGNS = [*"ab01_.*+?()[]{}|^$\\,-", r"\d", r"\.", "(?:", "(?=", "(?!", "q_proj", "layers", ".*", "{2,9}", "[^.]"]


def sound_folders(root: Path) -> list[Path]:
    """What is damaged: one folder a form, saved by PEFT."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    forms: dict[str, tuple[Any, Any]] = {
        "plain": (llama, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 3})),
        "expressions": (
            llama,
            LoraConfig(target_modules=r".*\.(?:[qv]|up)_proj", alpha_pattern={r".*\.\d+\.mlp.*": 3, "q_proj": 5}),
        ),
        "gpt2": (gpt2, LoraConfig(r=1, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_rslora=True)),
        "adalora": (llama, AdaLoraConfig(init_r=3, target_modules=["q_proj", "v_proj"], total_step=10)),
    }
    for name, (config, adapter) in forms.items():
        with quiet_libraries(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            base = (GPT2LMHeadModel if config is gpt2 else LlamaForCausalLM)(config)
            model = get_peft_model(base, adapter)
            if name == "adalora":
                layers = [f"model.layers.{i}.self_attn.{leaf}_proj.lora_E.default" for i in (0, 1) for leaf in "qv"]
                adapter.rank_pattern = {layer: [True, False, i > 0] for i, layer in enumerate(layers)}
            model.save_pretrained(str(root / name))
    return sorted(root / name for name in forms)


def some_value(rng: random.Random, depth: int = 0) -> Any:
    """A random value of JSON, most of them wrong in most places."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice([None, True, False, "none", "", "all-linear", "LORA", "ADALORA", "pissa", []])
    if kind == 1:
        return rng.choice([0, -1, 1, 2, 3, 8, 2**31, 2**63, 10**30, rng.randrange(10**9)])
    if kind == 2:
        return rng.choice([0.5, -2.0, 1e300, 1e-300, 3.0, rng.random()])
    if kind in (3, 4):
        return expression(rng)
    if kind == 5:
        return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x2FF)])) for _ in range(rng.randrange(40)))
    if kind == 6:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {expression(rng): some_value(rng, depth + 1) for _ in range(rng.randrange(5))}


def expression(rng: random.Random) -> str:
    """Signs of regular expressions in random order, one in ten many times over."""
    text = "".join(rng.choice(_SIGNS) for _ in range(rng.randrange(1, 14)))
    return text if rng.random() < 0.9 else text * rng.randrange(2, 200)


def _content(path: Path) -> bytes:
    """A file's bytes; not of a pipe or a device that other damage has put there."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


def damage_bytes(folder: Path, rng: random.Random) -> None:
    path = rng.choice([p for p in sorted(folder.iterdir()) if p.is_file()])
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content) + 1) if rng.random() < 0.5 else rng.randrange(min(len(content), 16) + 1)
    piece = bytes(rng.randrange(256) for _ in range(rng.choice([1, 1, 2, 8, 100])))
    way = rng.randrange(4)
    if way == 0:
        content[place : place + len(piece)] = piece
    elif way == 1:
        content[place:place] = piece
    elif way == 2:
        del content[place:]
    else:
        content[place:place] = content[place : place + rng.randrange(1, 5_000)] * rng.randrange(1, 50)
    path.write_bytes(bytes(content))


def damage_config(folder: Path, rng: random.Random) -> None:
    path = folder / CONFIG_FILE
    said = json.loads(_content(path))
    key = rng.choice([*said, "rank_pattern", "alpha_pattern", "target_modules", "r", "lora_alpha", "new_key"])
    if rng.random() < 0.15:
        said.pop(key, None)
    elif isinstance(said.get(key), dict) and rng.random() < 0.7:
        said[key] |= {expression(rng): rng.choice([some_value(rng), 2, 3.0]) for _ in range(rng.choice([1, 3, 300]))}
    else:
        said[key] = some_value(rng)
    items = list(said.items())
    rng.shuffle(items)
    path.write_text(json.dumps(dict(items)))


def damage_header(folder: Path, rng: random.Random) -> None:
    path = folder / WEIGHTS_FILE
    content = _content(path)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = rng.choice(list(header))
    way = rng.randrange(5)
    if way == 0:
        header.pop(name)
    elif way == 1:
        new = rng.choice(
            [expression(rng), name.replace("lora_A", "lora_B"), name[rng.randrange(len(name)) :], name * 9]
        )
        header[new] = header.pop(name)
    elif way == 2:
        header[name] = some_value(rng)
    elif isinstance(header[name], dict):
        key = rng.choice(list(header[name]) or ["shape"])
        old = header[name].get(key)
        if isinstance(old, list) and old and rng.random() < 0.7:
            old[rng.randrange(len(old))] = rng.choice([0, 1, 2, 8, 64, 2**40, -1, some_value(rng)])
        else:
            header[name][key] = rng.choice(["F16", "I64", "BOOL", some_value(rng)])
    written = json.dumps(header).encode()
    size = rng.choice([len(written)] * 6 + [length, 2**63, rng.randrange(10_000)])
    path.write_bytes(size.to_bytes(8, "little") + written + content[8 + length :])


def damage_values(folder: Path, rng: random.Random) -> None:
    """Done before all other damage, so that what it loads is sound."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS_FILE)
    name = rng.choice(sorted(tensors))
    change: Callable[[torch.Tensor], torch.Tensor] = rng.choice(
        [
            lambda t: t * math.nan,
            lambda t: t[:1],
            lambda t: t[None],
            lambda t: t.to(torch.bfloat16),
            lambda t: t * 1e38 * 9,
        ]
    )
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE)


def damage_files(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    names = ["adapter_model.bin", "adapter_model-00001-of-00002.safetensors", "inner", CONFIG_FILE]
    target = folder / rng.choice(names)
    way = rng.randrange(5)
    if way == 0 and path.is_file():
        path.unlink()
    elif way == 1 and not target.is_dir():
        path.rename(target)
    elif way == 2:
        path.rename(folder.parent / "away")
        path.symlink_to(rng.choice(["../away", "/dev/zero", path.name]))
    elif way == 3 and path.is_file():
        path.unlink()
        path.mkdir() if rng.random() < 0.5 else os.mkfifo(path)
    else:
        (folder / "inner").mkdir(exist_ok=True)
        for file in list(folder.iterdir()):
            if file.name != "inner":
                file.rename(folder / "inner" / file.name)


DAMAGES = [damage_bytes] * 3 + [damage_config] * 5 + [damage_header] * 4 + [damage_values] * 2 + [damage_files]


@dataclass
class Outcomes:
    """What became of all cases."""

    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def fuzz(count: int, seed: int, sources: Sequence[Path], root: Path) -> Outcomes:
    """Damages and reads `count` copies of `sources`; nothing is raised, failures are in what is returned."""
    found = Outcomes()
    for case in range(count):
        rng = random.Random(f"{seed}-{case}")
        place = root / "case"
        shutil.copytree(rng.choice(sources), place / "adapter")
        chosen = rng.choices(DAMAGES, k=rng.choice([1, 1, 2, 4]))
        for damage in sorted(chosen, key=lambda damage: damage is not damage_values):
            # Where earlier damage leaves nothing that this one could be done to, it is not done.
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                damage(place / "adapter", rng)
        _judge(place / "adapter", case, found)
        shutil.rmtree(place)
    return found


def _judge(folder: Path, case: int, found: Outcomes) -> None:
    """Reads one folder and counts what became of it."""
    began = time.perf_counter()
    try:
        weights = read_adapter(folder)
        found.read += 1
        told = "\n".join(weights.notes)
        sound = all(u.delta().isnan().sum() == 0 and math.isfinite(u.scaling) for u in weights.modules.values())
        problem = "" if sound and weights.modules else "a reading without values"
    except AdapterError as error:
        found.refused += 1
        told, problem = str(error), ""
    except BaseException as error:
        told, problem = "", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    found.slowest_s = max(found.slowest_s, seconds)
    if len(told) > LONGEST_MESSAGE or not told.replace("\n", "").isprintable():
        problem = f"a message of {len(told)} characters: {told[:200]!r}"
    if seconds > SECONDS:
        problem = f"{seconds:.1f} s"
    if problem:
        found.failures.append(f"case {case}: {problem}")


@contextlib.contextmanager
def limited(memory: int) -> Iterator[None]:
    """At most so much more address space than now; a case that hangs kills the process with its traceback."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the outcome as JSON")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(60 + args.count, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        sources = sound_folders(Path(folder) / "sound")
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with limited(MEMORY):
            found = fuzz(args.count, args.seed, sources, Path(folder))
        seconds = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told = {"cases": args.count, "seed": args.seed, **asdict(found), "seconds": round(seconds)}
    told |= {"slowest_s": round(found.slowest_s, 3), "peak_memory_grew_mb": round(grown)}
    print(json.dumps(told, indent=2))
    if args.out:
        write_atomically(args.out, json.dumps(told, indent=2) + "\n")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
