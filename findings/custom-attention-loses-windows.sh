#!/usr/bin/env bash
# What: Qwen2-MoE, PhiMoE and Llama 4 tell their window (or chunk) to the mask alone, not to the attention function. One
#   without a 4D mask, be it registered without a mask function (the docs say that it gets None) or with transformers' own
#   for flash attention, then sees beyond the window, even if it honours `sliding_window`, which Mistral hands over.
# Version: transformers 5.23.0 with torch 2.13.0, CPU. By its source `flash_attention_2` is told as little by the first two (not run).
# Why it hurts: a faster attention trains another model than sdpa runs later. Texts within the window agree, so quick
#   checks pass, and no warning is given.
# Where: transformers/models/{qwen2_moe,phimoe,llama4}/modeling_*.py (no window in the call of the attention), and
#   transformers/masking_utils.py (`flash_attention_mask`, and None where no mask function has the attention's name).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - <<'PY'
import logging.handlers

import torch
import transformers as tr
from transformers.masking_utils import flash_attention_mask

torch.set_num_threads(1)


def windowed(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
    assert attention_mask is None
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    seen = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - (sliding_window or length))
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return out.transpose(1, 2), None


for name in ("unmasked", "with_2d_mask"):
    tr.AttentionInterface.register(name, windowed)
tr.AttentionMaskInterface.register("with_2d_mask", flash_attention_mask)
small = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
small |= dict(num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
experts = dict(moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
configs = {
    "Mistral": tr.MistralConfig(**small, sliding_window=8),
    "Qwen2-MoE": tr.Qwen2MoeConfig(**small, **experts, use_sliding_window=True, sliding_window=8),
    "PhiMoE": tr.PhimoeConfig(**small, sliding_window=8, num_local_experts=4),
    "Llama 4": tr.Llama4TextConfig(**small, head_dim=8, intermediate_size_mlp=48, attention_chunk_size=8),
}
warnings = logging.handlers.BufferingHandler(99)
logging.getLogger("transformers").addHandler(warnings)
ids = torch.randint(3, 96, (1, 20))

print(f"transformers {tr.__version__}, torch {torch.__version__}; windows of 8, a text of 20 tokens, no padding")
print("Behaviour: with an attention of one's own, models whose window is in the mask alone lose it without a word.")
print("Expected: the attention function is told the window, as Mistral's is, or the model refuses to run without its mask.")
for name, config in configs.items():
    torch.manual_seed(0)
    model = tr.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    wanted = model(ids).logits[0].detach()
    warnings.flush()
    for attention in ("unmasked", "with_2d_mask"):
        model.set_attn_implementation(attention)
        off = (model(ids).logits[0].detach() - wanted).abs().amax(-1) / wanted.abs().max()
        within, beyond = float(off[:8].max()), float(off[8:].max())
        print(f"Seen: {name}, {attention}: off by {within:.0e} in the window, {beyond:.0e} behind it (of the largest)")
        assert within < 1e-5, "changed: the window's own tokens differ"
        assert (beyond < 1e-5) if name == "Mistral" else (beyond > 1e-2), "changed: the window is kept"
    assert not warnings.buffer, "changed: there is a warning"
PY
