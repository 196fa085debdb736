"""Programs in a fresh interpreter without the half second to six that one takes to import what they need.

An interpreter that has imported that much and done nothing else forks for every program: each begins as if it were the
first, and what it imports or changes is gone with it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

FORKING = """\
import json, os, sys
for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for stream, path in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    sys.argv = ["-c", *asked["arguments"]]
    exec(compile(asked["program"], "<string>", "exec"), {"__name__": "__main__"})
    break
"""
WITHOUT_TRAIN = """\
import sys, warnings
warnings.simplefilter("error")
class Block:
    asked = set()
    def find_spec(self, name, *a):
        if (package := name.split(".")[0]) in ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors",
                                               "huggingface_hub", "tokenizers", "pyarrow"):
            self.asked.add(package)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""
"""Where only the base dependencies are; `sys.meta_path[0].asked` is what was looked for all the same."""
NEVER_ASKED = "import sys; assert sys.meta_path[0].asked <= {'pyarrow'}, sys.meta_path[0].asked"
"""Where nothing of torch's family may be looked for; pandas looks for pyarrow."""
FRONT = "import adaptive_lora.cli.main\n"
READING = f"{WITHOUT_TRAIN}{FRONT}import adaptive_lora.api, adaptive_lora.reporting.html.build, scipy.stats\n"


class Interpreter:
    """One that has run `imports`, and forks for every program."""

    def __init__(self, imports: str) -> None:
        command = [sys.executable, "-c", imports + FORKING]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self.close)

    def close(self) -> None:
        """Ends it."""
        with self._process:
            pass  # the end of its input is the end of it

    def run(
        self, program: str, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What `python -c program arguments` says here and ends with."""
        assert self._process.stdin is not None and self._process.stdout is not None
        words = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            asked = {"program": program, "arguments": words, "environment": dict(environment or {}),
                     "cwd": os.getcwd(), "out": str(out), "err": str(err)}  # fmt: skip
            self._process.stdin.write(f"{json.dumps(asked)}\n")
            self._process.stdin.flush()
            code = self._process.stdout.readline()
            assert code, "the interpreter could not import what it should; it says above why"
            return subprocess.CompletedProcess(["-c", *words], int(code), out.read_text(), err.read_text())


class Starting:
    """The same where a process cannot fork: an interpreter for every program."""

    def __init__(self, imports: str) -> None:
        self._imports = imports

    def run(
        self, program: str, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", self._imports + program, *map(str, arguments)]
        own = {**os.environ, **(environment or {})}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=own)


@functools.cache
def fresh(imports: str) -> Interpreter | Starting:
    """An interpreter that has run `imports`; one in a process of the suite."""
    return Interpreter(imports) if hasattr(os, "fork") else Starting(imports)
