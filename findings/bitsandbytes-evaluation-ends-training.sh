#!/usr/bin/env bash
# What: on a CPU with AVX512-BF16 the first pass of a bitsandbytes 4-bit layer in evaluation mode, without a gradient,
#   rearranges its weights for good. From then on it computes in bfloat16, whatever `bnb_4bit_compute_dtype` says, by an
#   operator that has no gradient, in training mode too: adapters whose output reaches the loss through other 4-bit layers
#   get a gradient of 0. With LoRA on all linear layers that is q, k, v, gate and up of every block.
# Version: bitsandbytes 0.50.2, torch 2.13.0 (CPU), transformers 5.23.0, peft 0.21.2.
# Why it hurts: evaluating before training, or between two epochs, ends most of it. The loss still falls a little, by the
#   adapters that are left (o and down), and torch warns once of "silently incorrect behavior" in a line of its own.
# Where: bitsandbytes/nn/modules.py (`Linear4bit.forward`, `_convert_weight_packed_for_cpu`) and autograd/_functions.py
#   (`matmul_4bit` takes `gemv_4bit` wherever the weights are packed so).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate bitsandbytes==0.50.2
HF_HUB_OFFLINE=1 TMPDIR="$folder" "$folder/venv/bin/python" -I -W ignore - <<'PY'
import logging
import tempfile

import torch

logging.disable(logging.WARNING)
import bitsandbytes as bnb
import peft
import transformers as tr

tr.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
torch.manual_seed(0)
if not bnb.functional.has_avx512bf16():
    raise SystemExit("Not seen: this CPU has no AVX512-BF16, without which bitsandbytes does nothing of the kind.")
sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
folder = tempfile.mkdtemp()
tr.LlamaForCausalLM(tr.LlamaConfig(**sizes)).save_pretrained(folder)
four = tr.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
base = tr.AutoModelForCausalLM.from_pretrained(folder, quantization_config=four)
model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear"))
ids = torch.randint(0, 64, (2, 16))


def gradients():
    model.zero_grad()
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    named = [(name.split(".")[-4], p.grad) for name, p in model.named_parameters() if "lora_B" in name]
    return {role: max(float(g.norm()) for own, g in named if own == role) for role, _ in named}


before = gradients()
model.eval()
with torch.no_grad():
    model(input_ids=ids)
after = gradients()
print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}; a Llama of two blocks in NF4, LoRA on all linear layers")
print("Behaviour: one pass in evaluation mode takes the gradient from five of seven kinds of adapters, for good.")
print("Expected: a pass without gradients changes nothing, and training mode has gradients.")
for role, norm in before.items():
    print(f"Seen: {role}: norm of the gradient of B {norm:.4f} before the pass, {after[role]:.4f} after it")
assert min(before.values()) > 0, "changed: there was no gradient before"
assert [role for role, norm in after.items() if norm == 0] == ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], (
    "changed: other gradients are lost"
)
PY
