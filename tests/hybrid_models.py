"""Tiny random models with recurrent state or latent attention, one per family."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
KINDS = ["linear_attention", "full_attention", "linear_attention"]
DELTA = {
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": KINDS,
}
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "kv_lora_rank": 24,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_next": dict(DELTA, **EXPERTS, shared_expert_intermediate_size=16, decoder_sparse_step=1),
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": dict(DELTA, **EXPERTS, shared_expert_intermediate_size=16),
    "granitemoehybrid": dict(
        MAMBA2,
        layer_types=KINDS,
        num_local_experts=0,
        shared_intermediate_size=32,
        position_embedding_type="rope",
    ),
    "bamba": dict(MAMBA2, attn_layer_indices=[1]),
    "jamba": {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "falcon_h1": dict(MAMBA2, mamba_d_ssm=64, head_dim=16),
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"],
        "block_ff_dim": 48,
        "block_auto_adjust_ff_dim": False,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "num_mem_blocks": 1,
        "chunk_size": 16,
        "use_mem_rope": True,
        "num_key_value_heads": 4,
    },
    "olmo_hybrid": {name: value for name, value in DELTA.items() if name != "head_dim"},
}
LATENT_ATTENTION: dict[str, dict[str, Any]] = {
    "kimi_linear": dict(
        LATENT,
        layer_types=KINDS,
        mlp_layer_types=["dense", "dense", "sparse"],
        linear_num_heads=2,
        linear_head_dim=16,
        num_experts=4,
        num_experts_per_token=2,
        moe_intermediate_size=16,
        num_shared_experts=1,
        n_group=1,
        topk_group=1,
    ),
    "deepseek_v2": dict(LATENT, **ROUTED),
    "deepseek_v3": dict(LATENT, **ROUTED),
    "glm4_moe_lite": {**LATENT, **ROUTED, "q_lora_rank": 24},
    "minicpm3": {**LATENT, "q_lora_rank": 24},
}
HYBRIDS = RECURRENT | LATENT_ATTENTION


@cache
def hybrid_model(name: str) -> PreTrainedModel:
    """Shared by all tests; none changes it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**COMMON, **HYBRIDS[name]})
    model = AutoModelForCausalLM.from_config(config)
    for label, parameter in model.named_parameters():
        if parameter.dim() > 1 and "conv" not in label:  # so that attention is far from uniform
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()
