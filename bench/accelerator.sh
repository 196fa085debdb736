#!/usr/bin/env bash
# What an accelerator makes of the bank, in one call of at most eight minutes: parity, throughput, memory.
#
#     bench/accelerator.sh OUT [--device cuda] [--parts parity,dialogpt,...] [--tiny]
#
# Each part writes OUT/PART.json as soon as it is done, and is skipped where that is there: a call that was cut short is
# made again. Nothing is downloaded: models are shapes with random weights, records are made. `--tiny` is the same on a
# CPU in minutes. LIMIT is the seconds of the whole call (480), PYTHON the interpreter.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

usage() { sed -n '4p' "$0" | cut -c7- >&2; exit 2; }
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage
out="$1"; shift
all="parity,dialogpt,smollm2,llama-1b,dialogpt-compiled,memory"
device=cuda; parts="$all"; tiny=()
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device="${2:?--device needs a name, such as cuda}"; shift 2 ;;
    --parts) parts="${2:?--parts needs a comma list}"; shift 2 ;;
    --tiny)
      device=cpu
      tiny=(--layers 2 --width 64 --vocabulary 512 --adapters 3 --sample 1 --steps 1 --rounds 1 --records 8 --max-length 64)
      shift ;;
    *) usage ;;
  esac
done

python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || python="$(command -v "$python" || command -v python3)"
export PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$out"
ends=$((SECONDS + ${LIMIT:-480}))

command_of() { # PART FILE: fills the array `command`
  command=("$python" "$root/bench/throughput.py" --device "$device" --dtype bfloat16 --data made --adapters 30
    --batch-size 4 --steps 10 --rounds 3 --out "$2")
  case "$1" in
    parity)
      # Of the tiny one a few tests: all of them run in the test suite.
      command=("$python" "$root/bench/parity.py" --device "$device" --out "$2")
      [ ${#tiny[@]} -eq 0 ] || command+=(--select "gpt2 and (all or once)")
      return ;;
    dialogpt) command+=(--model gpt2-medium-shape --skip compiled,memory --seconds 60) ;;
    smollm2) command+=(--model smollm2-shape --skip compiled,memory --seconds 40) ;;
    llama-1b) command+=(--model llama-1b-shape --skip compiled,memory --seconds 40) ;;
    # Each round compiles anew, which takes a minute or more.
    dialogpt-compiled) command+=(--model gpt2-medium-shape --skip trainer,loop,memory --rounds 1) ;;
    memory) command+=(--model gpt2-medium-shape --skip trainer,loop,compiled,memory --memory --rounds 1 --steps 1) ;;
    *) echo "There is no part $1; there are $all." >&2; exit 2 ;;
  esac
  command+=("${tiny[@]}")
}

seconds_for() { # PART: at most
  case "$1" in dialogpt-compiled) echo 180 ;; dialogpt) echo 150 ;; *) echo 120 ;; esac
}

for part in ${parts//,/ }; do command_of "$part" none; done # an unknown one stops it before anything is run
failed=(); left=()
for part in ${parts//,/ }; do
  if [ -s "$out/$part.json" ]; then
    echo "$part: done before" >&2
    continue
  fi
  seconds=$((ends - SECONDS))
  if [ "$seconds" -lt 15 ]; then
    left+=("$part")
    continue
  fi
  [ "$seconds" -le "$(seconds_for "$part")" ] || seconds="$(seconds_for "$part")"
  echo "$part: at most $seconds s" >&2
  began=$SECONDS; status=0
  command_of "$part" "$out/.$part.part"
  timeout -k 5 "$seconds" "${command[@]}" 2>&1 >/dev/null | tee -a "$out/log.txt" >&2 || status=$?
  if [ -s "$out/.$part.part" ]; then mv "$out/.$part.part" "$out/$part.json"; fi
  if [ "$status" -ne 0 ]; then failed+=("$part (exit status $status)"); fi
  echo "$part: $((SECONDS - began)) s" >&2
done

if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}; see $out/log.txt" >&2; fi
if [ ${#left[@]} -gt 0 ]; then echo "no time left for: ${left[*]}; run it again" >&2; fi
[ ${#failed[@]} -eq 0 ] && [ ${#left[@]} -eq 0 ]
