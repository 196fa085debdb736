#!/usr/bin/env bash
# What: with "dynamic" rotary scaling (dynamic NTK) a model of transformers remembers the longest text that it has seen.
#   The same text gives other logits and another loss afterwards, until a text shorter than the original length comes by.
# Version: transformers 5.23.0 with torch 2.13.0, CPU.
# Why it hurts: an evaluation's loss depends on what was evaluated before it, a resumed run (a fresh process) differs from
#   one that went on, and shuffling the data changes more than its order. Nothing is saved, so no checkpoint tells.
# Where: transformers/modeling_rope_utils.py, `dynamic_frequency_update`: frequencies grow with the longest text and go
#   back only below the original length. Known upstream for years as a trade for speed; still a surprise in training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=32, initializer_range=0.2,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
)
model = LlamaForCausalLM(config).eval()
text, longer, short = (torch.randint(96, (1, length)) for length in (40, 60, 20))


@torch.no_grad()
def loss_of(tokens):
    return model(tokens, labels=tokens).loss.item()


fresh, again = loss_of(text), loss_of(text)
loss_of(longer)
after_longer = loss_of(text)
loss_of(short)
after_short = loss_of(text)

print(f"transformers {transformers.__version__}, torch {torch.__version__}; original length 32, no weight changes")
print("Behaviour: the loss of a text of 40 tokens changes once a text of 60 tokens has been through the model.")
print("Expected: evaluating a model does not change it; the same text with the same weights has the same loss.")
print(f"Seen: {fresh:.6f} fresh, {again:.6f} again, {after_longer:.6f} after 60 tokens, {after_short:.6f} after 20 tokens")
assert fresh == again == after_short, "changed: the loss varies otherwise too"
assert abs(after_longer - fresh) > 1e-3, "changed: the longer text is forgotten"
PY
