#!/usr/bin/env bash
# What: with longrope (Phi-3) or dynamic NTK the longest row of a padded batch decides the rotary frequencies of all rows:
#   a short text gets other logits beside a long neighbour than alone, although the padding itself is masked rightly.
# Version: transformers 5.23.0 with torch 2.13.0, CPU.
# Why it hurts: a text's loss depends on the batch that it was put into, so that batch size, shuffling and sorting by
#   length change it; what was learnt beside long texts is then served alone, with the other frequencies.
# Where: transformers/modeling_rope_utils.py, `longrope_frequency_update` and `dynamic_frequency_update`: one length for
#   the whole batch, the largest position in it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

torch.set_num_threads(1)
small = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
)
longrope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
longrope |= {"short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
lengths = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
torch.manual_seed(0)
models = {
    "longrope": Phi3ForCausalLM(Phi3Config(**small, **lengths, rope_parameters=longrope)).eval(),
    "dynamic": LlamaForCausalLM(LlamaConfig(**small, max_position_embeddings=32, rope_parameters=dynamic)).eval(),
}
short = torch.randint(3, 96, (1, 20))


@torch.no_grad()
def off_beside(model, length):
    """How far the short text's logits are from those it has alone, of the largest, beside a text of so many tokens."""
    alone = model(short).logits
    ids, mask = torch.randint(3, 96, (2, length)), torch.ones(2, length, dtype=torch.long)
    ids[0, :20], ids[0, 20:], mask[0, 20:] = short[0], 0, 0
    beside = model(ids, attention_mask=mask).logits[:1, :20]
    return float((beside - alone).abs().max() / alone.abs().max())


print(f"transformers {transformers.__version__}, torch {torch.__version__}; original length 32, a text of 20 tokens")
print("Behaviour: a row's logits depend on its neighbour: they change when that is longer than the original length.")
print("Expected: rows of a padded batch do not know of each other; each has the frequencies of its own length.")
for name, model in models.items():
    near, far = off_beside(model, 30), off_beside(model, 60)
    print(f"Seen: {name}: logits off by {near:.1e} beside 30 tokens, by {far:.1e} beside 60 tokens (of the largest)")
    assert near < 1e-5, "changed: padding alone makes a difference"
    assert far > 1e-2, "changed: each row has its own frequencies"
PY
