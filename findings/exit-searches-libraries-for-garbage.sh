#!/usr/bin/env bash
# What: a process that has imported peft spends more than half a second on ending, after its last line: Python searches
#   hundreds of thousands of objects that the libraries have made for garbage, several times. Once they are set aside (gc.freeze, just before the
#   end) it ends in a fraction of that. So does every command, test and worker that only imports peft.
# Version: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU), CPython 3.11.
# Why it hurts: a short command (a plan, a merge, --help of a tool built on them) takes that much longer than its work, two or
#   three times as much where further libraries are loaded. Profilers end before it and do not show it.
# Where: finalisation of the interpreter, collection of the oldest generation; what torch, transformers and peft leave in it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
"$folder/venv/bin/python" -I - <<'PY'
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

ENDS = "print(len(gc.get_objects()), time.time(), flush=True)"


def ending(last: str) -> tuple[float, int]:
    """Seconds from a process's last statement to its end, and how many objects it had."""
    code = f"import gc, time, peft\n{last}\n{ENDS}"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    ended = time.time()
    objects, began = done.stdout.split()
    return ended - float(began), int(objects)


ending("pass")  # the first reads the files
plain, frozen = zip(*[(ending("pass"), ending("gc.freeze()")) for _ in range(5)])
usual = statistics.median(seconds for seconds, _ in plain)
sooner = statistics.median(seconds for seconds, _ in frozen)
print(f"peft {version('peft')}, transformers {version('transformers')}, torch {version('torch')}, Python {sys.version.split()[0]}")
print(f"Behaviour: a process that has only imported peft holds {plain[0][1]:,} objects and takes its time to end.")
print("Expected: that it ends at once, as it has nothing left to do.")
print(f"Seen: {usual:.2f} s from the last statement to the end; {sooner:.2f} s where gc.freeze() comes before")
assert usual > 2 * sooner, "changed: setting the libraries' objects aside makes no difference"
PY
