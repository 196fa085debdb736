"""Tiny random models of many architectures: a configuration each, for the sweep of `architectures.py` and for tests.

Windows, chunks and switches of position scaling are shorter than `LONGEST`, so that texts reach beyond every one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import transformers

from adaptive_lora.data.encoding import Example

VOCABULARY, CONTEXT, LONGEST = 768, 128, 60
WINDOW = 8
"""Of every model that has one."""
SWITCH = 32
"""The length at which longrope and dynamic NTK change the frequencies."""


def texts(count: int = 12, seed: int = 0) -> list[Example]:
    """Random texts of 5 to `LONGEST` tokens, some on either side of every window and switch; a third is prompt."""
    random = np.random.default_rng(seed)
    lengths = [5, LONGEST, SWITCH, SWITCH + 1, *random.integers(6, LONGEST, count - 4).tolist()]
    return [Example(tuple(random.integers(1, VOCABULARY, n).tolist()), max(1, n // 3), False) for n in lengths]


def _text(**own: Any) -> dict[str, Any]:
    """What configurations of most families have in common."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return {**sizes, **heads, **tokens, "initializer_range": 0.2, **own}


def _gpt(**own: Any) -> dict[str, Any]:
    """The names of GPT-2 and its kin."""
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return {**sizes, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2, **own}


def _experts(**own: Any) -> dict[str, Any]:
    return _text(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, **own)


def _scaled(kind: str, **own: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **own}


def _longrope(half: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * half, "long_factor": [1.0 + 2.0 * i for i in range(half)]}
    return _scaled("longrope", original_max_position_embeddings=SWITCH, factor=CONTEXT / SWITCH, **factors)


_DEEPSEEK = {
    "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


def _c(name: str, **arguments: Any) -> Callable[[], Any]:
    """The configuration class of transformers, called when it is needed: a family that is missing stops no other."""
    return lambda: getattr(transformers, name)(**arguments)


def _wrapped(name: str, text: Callable[[], Any], vision: Mapping[str, Any], **own: Any) -> Callable[[], Any]:
    """A vision model around a text model."""
    return lambda: getattr(transformers, name)(text_config=text().to_dict(), vision_config=dict(vision), **own)


_SLIDING = ["sliding_attention", "full_attention"]
_GEMMA3 = _c("Gemma3TextConfig", **_text(head_dim=8, sliding_window=WINDOW, layer_types=_SLIDING))
_LLAMA4 = _c(
    "Llama4TextConfig",
    **_text(
        head_dim=8, attention_chunk_size=WINDOW, num_local_experts=4, intermediate_size_mlp=48,
        interleave_moe_layer_step=2, no_rope_layers=[1, 0],
    ),
)  # fmt: skip

ZOO: dict[str, Callable[[], Any]] = {
    "gpt2": _c("GPT2Config", **_gpt()),
    "gpt_neo (local layers)": _c(
        "GPTNeoConfig", vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=32, num_layers=2,
        num_heads=4, attention_types=[[["global", "local"], 1]], window_size=WINDOW, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    ),
    "gptj": _c("GPTJConfig", **_gpt(rotary_dim=4)),
    "gpt_neox": _c("GPTNeoXConfig", **_text()),
    "gpt_bigcode": _c("GPTBigCodeConfig", **_gpt()),
    "codegen": _c("CodeGenConfig", **_gpt(rotary_dim=4)),
    "openai-gpt": _c("OpenAIGPTConfig", **_gpt()),
    "opt": _c(
        "OPTConfig", vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, word_embed_proj_dim=32, init_std=0.2, dropout=0.0,
    ),
    "bloom": _c("BloomConfig", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    "mpt": _c(
        "MptConfig", vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT, expansion_ratio=2,
        initializer_range=0.2,
    ),
    "falcon": _c(
        "FalconConfig", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2,
    ),
    "xglm": _c(
        "XGLMConfig", vocab_size=VOCABULARY, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4,
        max_position_embeddings=CONTEXT, init_std=0.2, dropout=0.0,
    ),
    "biogpt": _c(
        "BioGptConfig", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT, initializer_range=0.2,
    ),
    "xlnet": _c("XLNetConfig", vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "ctrl": _c("CTRLConfig", vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=32, dff=48, n_layer=2, n_head=4),
    "llama": _c("LlamaConfig", **_text()),
    "llama, linear scaling": _c("LlamaConfig", **_text(rope_parameters=_scaled("linear", factor=2.0))),
    "llama, dynamic NTK": _c(
        "LlamaConfig", **_text(max_position_embeddings=SWITCH, rope_parameters=_scaled("dynamic", factor=4.0))
    ),
    "llama, yarn": _c(
        "LlamaConfig", **_text(rope_parameters=_scaled("yarn", factor=4.0, original_max_position_embeddings=SWITCH))
    ),
    "llama, llama3 scaling": _c(
        "LlamaConfig",
        **_text(
            rope_parameters=_scaled(
                "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=SWITCH
            )
        ),
    ),
    "llama, longrope": _c("LlamaConfig", **_text(rope_parameters=_longrope(4))),
    "llama4_text (chunks)": _LLAMA4,
    "llama4 (vision wrapper)": _wrapped(
        "Llama4Config", _LLAMA4,
        {**_VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
         "pixel_shuffle_ratio": 1.0},
    ),
    "mistral (window)": _c("MistralConfig", **_text(sliding_window=WINDOW)),
    "ministral (window)": _c("MinistralConfig", **_text(sliding_window=WINDOW, head_dim=8, layer_types=_SLIDING)),
    "ministral3": _c("Ministral3Config", **_text(head_dim=8)),
    "mixtral": _c("MixtralConfig", **_text(num_local_experts=4)),
    "starcoder2 (window)": _c("Starcoder2Config", **_text(sliding_window=WINDOW)),
    "qwen2": _c("Qwen2Config", **_text()),
    "qwen2 (window)": _c(
        "Qwen2Config", **_text(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen2_moe": _c("Qwen2MoeConfig", **_experts(shared_expert_intermediate_size=16)),
    "qwen2_moe (window in the mask alone)": _c(
        "Qwen2MoeConfig",
        **_experts(
            shared_expert_intermediate_size=16, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ),
    ),
    "qwen3": _c("Qwen3Config", **_text(head_dim=8)),
    "qwen3_moe (one dense layer)": _c("Qwen3MoeConfig", **_experts(head_dim=8, mlp_only_layers=[0])),
    "qwen3_next": _c("Qwen3NextConfig", **_experts(head_dim=8, shared_expert_intermediate_size=16, **_LINEAR)),
    "qwen3_5_text": _c("Qwen3_5TextConfig", **_text(head_dim=8, **_LINEAR)),
    "gemma": _c("GemmaConfig", **_text(head_dim=8)),
    "gemma2 (window, capped scores)": _c(
        "Gemma2Config", **_text(head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=5.0)
    ),
    "gemma3_text (window)": _GEMMA3,
    "gemma3 (vision wrapper)": _wrapped("Gemma3Config", _GEMMA3, _VISION, mm_tokens_per_image=4),
    "gemma3n_text": _c(
        "Gemma3nTextConfig",
        **_text(
            head_dim=8, sliding_window=WINDOW, layer_types=_SLIDING, vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=0,
            activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=2,
        ),
    ),
    "phi": _c("PhiConfig", **_text()),
    "phi3": _c("Phi3Config", **_text()),
    "phi3 (window)": _c("Phi3Config", **_text(sliding_window=WINDOW)),
    "phi3 (longrope)": _c(
        "Phi3Config", **_text(original_max_position_embeddings=SWITCH, rope_parameters=_longrope(4))
    ),
    "phimoe (window in the mask alone)": _c("PhimoeConfig", **_text(num_local_experts=4, sliding_window=WINDOW)),
    "phimoe (longrope)": _c(
        "PhimoeConfig",
        **_text(
            num_local_experts=4, original_max_position_embeddings=SWITCH,
            rope_parameters={**_longrope(4), "short_mscale": 1.0, "long_mscale": 1.3},
        ),
    ),
    "stablelm": _c("StableLmConfig", **_text()),
    "cohere": _c("CohereConfig", **_text()),
    "cohere2 (window)": _c("Cohere2Config", **_text(sliding_window=WINDOW, layer_types=_SLIDING)),
    "olmo": _c("OlmoConfig", **_text()),
    "olmo2": _c("Olmo2Config", **_text()),
    "olmo3 (window)": _c("Olmo3Config", **_text(sliding_window=WINDOW, layer_types=_SLIDING)),
    "olmoe": _c("OlmoeConfig", **_text(num_experts=4, num_experts_per_tok=2)),
    "granite": _c("GraniteConfig", **_text()),
    "granitemoe": _c("GraniteMoeConfig", **_text(num_local_experts=4, num_experts_per_tok=2)),
    "granitemoehybrid": _c(
        "GraniteMoeHybridConfig",
        **_text(
            num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16, layer_types=["mamba", "attention"],
            mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16,
        ),
    ),
    "deepseek_v2": _c("DeepseekV2Config", **_text(**_DEEPSEEK)),
    "deepseek_v3": _c("DeepseekV3Config", **_text(**_DEEPSEEK)),
    "glm": _c("GlmConfig", **_text(head_dim=8)),
    "glm4": _c("Glm4Config", **_text(head_dim=8)),
    "glm4_moe": _c(
        "Glm4MoeConfig",
        **_text(
            head_dim=8, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=16,
            first_k_dense_replace=1, n_group=1, topk_group=1,
        ),
    ),
    "gpt_oss (window, sinks)": _c(
        "GptOssConfig",
        **_text(head_dim=8, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2, layer_types=_SLIDING,
                rope_parameters=_scaled("default")),
    ),
    "lfm2": _c("Lfm2Config", **_text(layer_types=["conv", "full_attention"], block_multiple_of=8)),
    "falcon_h1": _c(
        "FalconH1Config",
        **_text(head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
                mamba_chunk_size=16),
    ),
    "mamba": _c(
        "MambaConfig", vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.2
    ),
    "mamba2": _c(
        "Mamba2Config", vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8,
        head_dim=8, n_groups=1, chunk_size=16, initializer_range=0.2,
    ),
    "falcon_mamba": _c("FalconMambaConfig", vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2),
    "jamba": _c(
        "JambaConfig",
        **_text(num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8,
                mamba_dt_rank=4, use_mamba_kernels=False),
    ),
    "nemotron": _c("NemotronConfig", **_text()),
    "nemotron_h": _c(
        "NemotronHConfig",
        **_text(head_dim=8, layers_block_type=["mamba", "attention"], mamba_num_heads=4, mamba_head_dim=16, n_groups=1,
                ssm_state_size=8, chunk_size=16),
    ),
    "recurrent_gemma": _c(
        "RecurrentGemmaConfig",
        **_text(lru_width=32, attention_window_size=WINDOW, block_types=["recurrent", "attention"]),
    ),
    "smollm3": _c("SmolLM3Config", **_text()),
    "exaone4 (window)": _c("Exaone4Config", **_text(sliding_window=WINDOW, layer_types=_SLIDING)),
    "ernie4_5": _c("Ernie4_5Config", **_text(head_dim=8)),
    "ernie4_5_moe": _c(
        "Ernie4_5_MoeConfig", **_text(moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_layer_start_index=1)
    ),
    "hunyuan_v1_dense": _c("HunYuanDenseV1Config", **_text(head_dim=8)),
    "minimax": _c(
        "MiniMaxConfig",
        **_text(head_dim=8, num_local_experts=4, block_size=16, layer_types=["linear_attention", "full_attention"]),
    ),
    "persimmon": _c("PersimmonConfig", **_text()),
    "helium": _c("HeliumConfig", **_text(head_dim=8)),
    "arcee": _c("ArceeConfig", **_text()),
    "seed_oss": _c("SeedOssConfig", **_text(head_dim=8)),
    "dbrx": _c(
        "DbrxConfig", vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, max_seq_len=CONTEXT,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    ),
    "llava (vision wrapper)": _wrapped(
        "LlavaConfig", _c("LlamaConfig", **_text()), {"model_type": "clip_vision_model", **_VISION}
    ),
    "mllama (vision wrapper)": _wrapped(
        "MllamaConfig", _c("MllamaTextConfig", **_text(cross_attention_layers=[1])),
        {**_VISION, "num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 64,
         "intermediate_layers_indices": [0]},
    ),
    "qwen2_vl (vision wrapper)": _wrapped(
        "Qwen2VLConfig",
        _c("Qwen2VLTextConfig", **_text(rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                         "mrope_section": [1, 1, 2]})),
        {"embed_dim": 32, "hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": 8},
    ),
}  # fmt: skip
"""Family, and what is special in the tiny model where that matters -> its configuration."""
