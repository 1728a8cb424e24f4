"""Tiny models of every architecture read from GGUF files, for writing and reading back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_OWN_NAMES = ("gpt2", "bloom", "mpt")  # their configs lack the common fields


@dataclass(frozen=True)
class Source:
    """architecture: llama.cpp's name; model_type: transformers' name; fields: of its config."""

    architecture: str
    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)


def rope(kind: str = "default", theta: float = 5000.0, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **others}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
LATENT = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
LINEAR = {
    "head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
MROPE = rope(partial_rotary_factor=0.25, mrope_section=[2, 1, 1], mrope_interleaved=True)
GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
}
THREE_OF_FOUR = {"sliding_window": 16, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
TWO_OF_THREE = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 6,
}

SOURCES = {
    "llama": Source("llama", "llama", rope()),
    "llama_tied": Source("llama", "llama", {"tie_word_embeddings": True}),
    "llama31": Source("llama", "llama", LLAMA3),
    "llama_linear": Source("llama", "llama", rope("linear", factor=4.0)),
    "llama_yarn": Source("llama", "llama", YARN),
    "llama_bias": Source("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral_nemo": Source("llama", "mistral", {"head_dim": 32, "sliding_window": None}),
    "ministral3": Source(
        "mistral3",
        "ministral3",
        dict(
            head_dim=32,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=64,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
            ),
        ),
    ),
    "mixtral": Source(
        "llama", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    ),
    "qwen2": Source("qwen2", "qwen2", rope()),
    "qwen2_yarn": Source("qwen2", "qwen2", YARN),
    "qwen2_moe": Source("qwen2moe", "qwen2_moe", dict(shared_expert_intermediate_size=48, **MIXTURE)),
    "qwen3": Source("qwen3", "qwen3", {"head_dim": 32}),
    "qwen3_yarn": Source("qwen3", "qwen3", dict(head_dim=32, **YARN)),
    "qwen3_moe": Source("qwen3moe", "qwen3_moe", dict(head_dim=32, norm_topk_prob=True, **MIXTURE)),
    "qwen3_next": Source(
        "qwen3next",
        "qwen3_next",
        dict(
            **LINEAR,
            shared_expert_intermediate_size=48,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            **rope(partial_rotary_factor=0.25),
            **MIXTURE,
        ),
    ),
    "qwen35": Source("qwen35", "qwen3_5_text", dict(**LINEAR, **MROPE)),
    "gemma": Source("gemma", "gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": Source("gemma2", "gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma2_27b": Source(
        "gemma2",
        "gemma2",
        {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 46},
    ),
    "gemma3": Source(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "num_hidden_layers": 6,
        },
    ),
    "gemma3_scaled": Source(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma3n": Source(
        "gemma3n",
        "gemma3n_text",
        dict(
            head_dim=32,
            **TWO_OF_THREE,
            num_kv_shared_layers=3,
            laurel_rank=8,
            hidden_size_per_layer_input=16,
            vocab_size_per_layer_input=96,
            intermediate_size=[96] * 6,
            activation_sparsity_pattern=[0.95] * 2 + [0.0] * 4,
            altup_num_inputs=4,
        ),
    ),
    "gemma4": Source(
        "gemma4",
        "gemma4_text",
        dict(
            head_dim=32,
            global_head_dim=64,
            **TWO_OF_THREE,
            num_kv_shared_layers=0,
            hidden_size_per_layer_input=16,
            vocab_size_per_layer_input=96,
        ),
    ),
    "phi2": Source(
        "phi2",
        "phi",
        dict(num_key_value_heads=4, intermediate_size=256, **rope(theta=10000.0, partial_rotary_factor=0.5)),
    ),
    "phi3": Source("phi3", "phi3", dict(sliding_window=None, **rope())),
    "phi3_window": Source("phi3", "phi3", dict(sliding_window=32, **rope())),
    "phi3_long": Source(
        "phi3",
        "phi3",
        dict(
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            sliding_window=None,
            **rope(
                "longrope",
                short_factor=[1.0 + 0.1 * i for i in range(8)],
                long_factor=[2.0 + i for i in range(8)],
                factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "phi4mini": Source(
        "phi3",
        "phi3",
        dict(
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            sliding_window=None,
            tie_word_embeddings=True,
            **rope(
                "longrope",
                partial_rotary_factor=0.75,
                short_factor=[1.0] * 6,
                long_factor=[2.0 + i for i in range(6)],
                factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "phimoe": Source(
        "phimoe",
        "phimoe",
        dict(
            num_local_experts=4,
            num_experts_per_tok=2,
            attention_bias=True,
            lm_head_bias=True,
            sliding_window=None,
            original_max_position_embeddings=64,
            **rope(
                "longrope",
                short_factor=[1.0] * 8,
                long_factor=[2.0 + i for i in range(8)],
                short_mscale=1.1547005383792515,
                long_mscale=1.1547005383792515,
                factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "starcoder2": Source(
        "starcoder2", "starcoder2", dict(sliding_window=None, use_bias=True, **rope(theta=999999.0))
    ),
    "gpt_oss": Source(
        "gpt-oss",
        "gpt_oss",
        dict(
            head_dim=32,
            sliding_window=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            **rope(
                "yarn",
                factor=4.0,
                beta_fast=32.0,
                beta_slow=1.0,
                original_max_position_embeddings=64,
                truncate=False,
            ),
        ),
    ),
    "glm4": Source("glm4", "glm4", dict(head_dim=16, attention_bias=True, **rope(partial_rotary_factor=0.5))),
    "glm4_moe": Source(
        "glm4moe",
        "glm4_moe",
        dict(
            head_dim=16,
            attention_bias=True,
            use_qk_norm=True,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            n_shared_experts=1,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.5,
            norm_topk_prob=True,
            **rope(partial_rotary_factor=0.5),
        ),
    ),
    "deepseek2": Source(
        "deepseek2",
        "deepseek_v3",
        dict(
            q_lora_rank=24,
            **LATENT,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            n_shared_experts=1,
            first_k_dense_replace=1,
            n_group=2,
            topk_group=1,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            **rope(
                "yarn",
                factor=4.0,
                beta_fast=32,
                beta_slow=1,
                mscale=1.0,
                mscale_all_dim=1.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "deepseek2_lite": Source(
        "deepseek2",
        "deepseek_v2",
        dict(
            q_lora_rank=None,
            **LATENT,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            n_shared_experts=2,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            topk_method="greedy",
            routed_scaling_factor=1.0,
            norm_topk_prob=False,
        ),
    ),
    "granite": Source("granite", "granite", dict(**GRANITE, **rope())),
    "granitemoe": Source(
        "granitemoe", "granitemoe", dict(num_local_experts=4, num_experts_per_tok=2, **GRANITE, **rope())
    ),
    "granitehybrid": Source(
        "granitehybrid",
        "granitemoehybrid",
        dict(
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=48,
            **GRANITE,
            layer_types=["mamba", "mamba", "attention", "mamba"],
            mamba_n_heads=8,
            mamba_d_head=16,
            mamba_d_state=16,
            mamba_n_groups=1,
            mamba_expand=2,
            mamba_d_conv=4,
            position_embedding_type="nope",
            tie_word_embeddings=True,
        ),
    ),
    "command_r": Source("command-r", "cohere", dict(logit_scale=0.0625, **rope())),
    "cohere2": Source("cohere2", "cohere2", dict(logit_scale=0.25, head_dim=16, **THREE_OF_FOUR, **rope())),
    "olmo": Source("olmo", "olmo", {"clip_qkv": 2.0}),
    "olmo2": Source("olmo2", "olmo2", {}),
    "olmo3": Source(
        "olmo2",
        "olmo3",
        dict(
            **THREE_OF_FOUR,
            rope_parameters={
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        ),
    ),
    "olmoe": Source("olmoe", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "exaone4": Source(
        "exaone4",
        "exaone4",
        dict(
            head_dim=16,
            sliding_window=16,
            sliding_window_pattern=4,
            layer_types=THREE_OF_FOUR["layer_types"],
            **LLAMA3,
        ),
    ),
    "exaone4_small": Source(
        "exaone4",
        "exaone4",
        dict(
            head_dim=16,
            sliding_window=None,
            sliding_window_pattern=None,
            layer_types=["full_attention"] * 4,
            **rope(),
        ),
    ),
    "smollm3": Source("smollm3", "smollm3", {"no_rope_layers": [1, 1, 1, 0], "use_sliding_window": False}),
    "llama4": Source(
        "llama4",
        "llama4_text",
        dict(
            head_dim=16,
            intermediate_size=32,
            intermediate_size_mlp=96,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=8192,
            **rope(),
        ),
    ),
    "ernie45": Source("ernie4_5", "ernie4_5", {"head_dim": 16, "tie_word_embeddings": True}),
    "ernie45_moe": Source(
        "ernie4_5-moe",
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 1,
            "moe_layer_end_index": 3,
        },
    ),
    "hunyuan_dense": Source("hunyuan-dense", "hunyuan_v1_dense", {"head_dim": 16}),
    "hunyuan_moe": Source("hunyuan-moe", "hunyuan_v1_moe", {"head_dim": 16, "num_experts": 4, "moe_topk": 2}),
    "seed_oss": Source(
        "seed_oss", "seed_oss", {"head_dim": 32, "attention_bias": True, "attention_out_bias": False}
    ),
    "nemotron": Source("nemotron", "nemotron", rope(partial_rotary_factor=0.5)),
    "nemotron_h": Source(
        "nemotron_h",
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "mlp", "attention", "mlp"],
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "conv_kernel": 4,
            "expand": 2,
        },
    ),
    "nemotron_h_moe": Source(
        "nemotron_h_moe",
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "conv_kernel": 4,
            "expand": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 48,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
    ),
    "falcon_h1": Source(
        "falcon-h1",
        "falcon_h1",
        {
            "mamba_d_ssm": 128,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
            "head_dim": 16,
        },
    ),
    "stablelm": Source(
        "stablelm", "stablelm", dict(use_qkv_bias=True, **rope(theta=10000.0, partial_rotary_factor=0.25))
    ),
    "gptneox": Source("gptneox", "gpt_neox", rope(theta=10000.0, partial_rotary_factor=0.25)),
    "gpt2": Source(
        "gpt2", "gpt2", {"n_positions": 256, "n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 96}
    ),
    "bloom": Source("bloom", "bloom", {"n_layer": 4, "n_head": 4, "hidden_size": 64, "seq_length": 256}),
    "falcon": Source(
        "falcon",
        "falcon",
        {
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
            "bias": False,
            "alibi": False,
            "num_kv_heads": 1,
        },
    ),
    "falcon_40b": Source(
        "falcon",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False, "alibi": False},
    ),
    "mpt": Source(
        "mpt",
        "mpt",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 4,
            "max_seq_len": 256,
            "expansion_ratio": 4,
            "attn_config": {"alibi": True, "clip_qkv": None},
        },
    ),
    "minicpm3": Source(
        "minicpm3",
        "minicpm3",
        dict(q_lora_rank=24, **LATENT, scale_emb=12, scale_depth=1.4, dim_model_base=256),
    ),
    "arcee": Source("arcee", "arcee", YARN),
    "lfm2": Source(
        "lfm2",
        "lfm2",
        {
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "block_ff_dim": 96,
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
        },
    ),
    "lfm2_moe": Source(
        "lfm2moe",
        "lfm2_moe",
        dict(
            layer_types=["conv", "conv", "full_attention", "conv"],
            num_dense_layers=1,
            conv_L_cache=3,
            use_expert_bias=True,
            **MIXTURE,
        ),
    ),
    "minimax_m2": Source(
        "minimax-m2",
        "minimax_m2",
        dict(head_dim=32, num_local_experts=4, num_experts_per_tok=2, **rope(partial_rotary_factor=0.5)),
    ),
    "dots1": Source(
        "dots1",
        "dots1",
        {
            "head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
    ),
    "apertus": Source("apertus", "apertus", dict(hidden_act="xielu", **LLAMA3)),
    "afmoe": Source(
        "afmoe",
        "afmoe",
        dict(
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            num_shared_experts=1,
            num_dense_layers=1,
            mup_enabled=True,
            route_scale=1.5,
            **THREE_OF_FOUR,
        ),
    ),
    "jais2": Source("jais2", "jais2", {}),
    "qwen3_5_moe": Source(
        "qwen35moe",
        "qwen3_5_moe_text",
        dict(**LINEAR, shared_expert_intermediate_size=48, **MROPE, **MIXTURE),
    ),
}


def build(name: str) -> PreTrainedModel:
    """The model called `name`, with all its parameters drawn so that a missing or wrong one shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = SOURCES[name]
    common = {} if source.model_type in _OWN_NAMES else COMMON
    config = AutoConfig.for_model(source.model_type, **{**common, **source.fields})
    config.vocab_size = VOCABULARY
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    with torch.no_grad():
        for full, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if full.endswith("A_log"):
                parameter.copy_(noise * 0.3)
            elif parameter.dim() == 1:
                parameter.add_(noise * 0.2)
            else:
                parameter.copy_(noise * 0.15)
        for full, buffer in model.named_buffers():
            if full.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model.eval()
