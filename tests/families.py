"""Every family of decoders in transformers as a tiny random model, and how Adamas serves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 128
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
WINDOWS = [SLIDING, FULL, SLIDING, FULL]
LATENT = {"num_key_value_heads": 4}  # as many as heads
INDEXED = LATENT | {"index_topk": 4096, "index_head_dim": 32, "index_n_heads": 2}
HYBRID = {"layer_types": [LINEAR, FULL, LINEAR, FULL]}
# Fields that make models tiny; a family takes those its config has.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "sliding_window": 32,
    # mixtures of experts
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 128,
    "mamba_chunk_size": 16,
    "n_groups": 1,
    "ssm_state_size": 16,
    "chunk_size": 16,
    # other names
    "n_embd": 64,
    "n_layer": 4,
    "n_layers": 4,
    "n_head": 4,
    "n_heads": 4,
    "n_positions": 4096,
    "n_inner": 96,
    "rotary_dim": 8,
    "ffn_hidden_size": 96,
    "ffn_dim": 96,
    "d_model": 64,
}


@dataclass(frozen=True)
class Family:
    """A row. reason: part of the sentence that says why Adamas does not serve it, None if it does. refused:
    whether it cannot even run with full attention. fields: config fields besides `SMALL`. deep: whether all
    checks run, because it differs in kind from the others and test_hybrid.py does not run them. text: the row
    of its text part, if only that is checked.
    """

    text: str | None = None
    reason: str | None = None
    refused: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    deep: bool = False


def served(deep: bool = False, **fields: Any) -> Family:
    """Answers sparsely."""
    return Family(fields=fields, deep=deep)


def full(reason: str, deep: bool = False, **fields: Any) -> Family:
    """Answers with full attention, for this reason."""
    return Family(reason=reason, fields=fields, deep=deep)


def whole(text: str) -> Family:
    """A model that also sees or hears; its text part is another row."""
    return Family(text=text)


def refused(reason: str, **fields: Any) -> Family:
    """Is refused with this reason."""
    return Family(reason=reason, refused=True, fields=fields)


ENCODER, HALF = "an encoder", "one half"
CACHE, TEXT = "does not keep its cache", "does not generate text from text"
INDEXED_LAYERS = "indexed_attention|deepseek_sparse_attention"  # depends on the version of transformers
OWN, TWICE, MASK = "transformers' interface", "several times", "mask is not plainly causal"

FAMILIES: dict[str, Family] = {
    "afmoe": served(),
    "apertus": served(),
    "arcee": served(),
    "aria_text": served(),
    "axk1": served(**LATENT),
    "axk2": full(INDEXED_LAYERS, **INDEXED, gated_norm_rank=4),
    "bailing_hybrid": served(**HYBRID, **LATENT, mlp_layer_types=None),
    "bamba": served(attn_layer_indices=[1, 3]),
    "bart": refused(HALF),
    "beam": served(),
    "bert": refused(ENCODER),
    "bert-generation": refused(ENCODER),
    "big_bird": refused(ENCODER),
    "bigbird_pegasus": refused(HALF),
    "biogpt": served(),
    "bitnet": served(),
    "blenderbot": refused(HALF),
    "blenderbot-small": refused(HALF),
    "bloom": full(OWN, deep=True, seq_length=4096),
    "blt": refused(TEXT),
    "camembert": refused(ENCODER),
    "codegen": full(OWN),
    "cohere": served(),
    "cohere2": served(layer_types=WINDOWS),
    "cohere2_moe": served(),
    "cohere_compass_text": served(
        layer_types=WINDOWS,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": 1e4} for kind in (FULL, SLIDING)},
    ),
    "cpmant": refused(CACHE),
    "ctrl": full(OWN, dff=96),
    "cwm": served(layer_types=WINDOWS),
    "data2vec-text": refused(ENCODER),
    "dbrx": served(
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
        max_seq_len=4096,
    ),
    "deepseek_v2": served(**LATENT),
    "deepseek_v3": served(**LATENT),
    "deepseek_v32": full(INDEXED_LAYERS, deep=True, **INDEXED),
    "deepseek_v4": full("compressed_sparse_attention"),
    "diffllama": full(TWICE, deep=True),
    "doge": full(MASK, deep=True),
    "dots1": served(),
    "dots3_note": whole("dots3_note_text"),
    "dots3_note_text": full(INDEXED_LAYERS, **INDEXED),
    "electra": refused(ENCODER),
    "emu3": served(),
    "ernie": refused(ENCODER),
    "ernie4_5": served(),
    "ernie4_5_moe": served(),
    "exaone4": served(layer_types=WINDOWS),
    "exaone_moe": served(),
    "falcon": full(OWN, deep=True, num_kv_heads=2, new_decoder_architecture=True),
    "falcon_h1": served(),
    "falcon_mamba": refused("no 'max_position_embeddings'"),
    "flex_olmo": served(),
    "flint": served(),
    "fuyu": whole("persimmon"),
    "gemma": served(),
    "gemma2": served(layer_types=WINDOWS),
    "gemma3": whole("gemma3_text"),
    "gemma3_text": served(deep=True, layer_types=WINDOWS),
    "gemma3n": whole("gemma3n_text"),
    "gemma3n_text": served(
        deep=True,
        layer_types=[SLIDING, FULL] * 3,
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 6,
    ),
    "gemma4": whole("gemma4_text"),
    "gemma4_assistant": refused(TEXT),
    "gemma4_text": served(
        deep=True, layer_types=[SLIDING, FULL] * 3, num_hidden_layers=6, num_kv_shared_layers=2,
        global_head_dim=32,
    ),
    "gemma4_unified": whole("gemma4_unified_text"),
    "gemma4_unified_assistant": refused(TEXT),
    "gemma4_unified_text": served(layer_types=WINDOWS, global_head_dim=32),
    "git": refused(TEXT),
    "glm": served(),
    "glm4": served(),
    "glm4_moe": served(),
    "glm4_moe_lite": served(**LATENT),
    "glm_moe_dsa": full(INDEXED_LAYERS, **INDEXED),
    "got_ocr2": whole("qwen2"),
    "gpt-sw3": served(),
    "gpt2": served(),
    "gpt_bigcode": served(),
    "gpt_neo": full(OWN, deep=True, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]]),
    "gpt_neox": served(),
    "gpt_neox_japanese": full(OWN),
    "gpt_oss": served(deep=True, layer_types=WINDOWS),
    "gptj": full(OWN),
    "granite": served(),
    "granite_swa": served(layer_types=WINDOWS),
    "granitemoe": served(),
    "granitemoe_swa": served(layer_types=WINDOWS),
    "granitemoehybrid": served(**HYBRID, shared_intermediate_size=64),
    "granitemoeshared": served(),
    "helium": served(),
    "hrm_text": full(TWICE),
    "hunyuan_v1_dense": served(),
    "hunyuan_v1_moe": served(),
    "hy_v3": served(),
    "hy_v4": full(INDEXED_LAYERS, **INDEXED),
    "hyperclovax": served(),
    "inkling2_text": full("hybrid_sliding"),
    "inkling_text": full("hybrid_sliding"),
    "internlm3": served(),
    "iquestcoder": served(),
    "jais2": served(),
    "jamba": served(attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
    "jetmoe": served(),
    "kimi_linear": served(**HYBRID, **LATENT, mlp_layer_types=None),
    "kolibri1": served(layer_types=WINDOWS),
    "laguna": served(),
    "lfm2": served(layer_types=["conv", FULL, "conv", FULL]),
    "lfm2_moe": served(layer_types=["conv", FULL, "conv", FULL], num_dense_layers=1),
    "lfm3": served(),
    "llama": served(deep=True),
    "llama4": full("chunked_attention", attention_chunk_size=64, intermediate_size_mlp=64),
    "llama4_text": full("chunked_attention", deep=True, attention_chunk_size=64, intermediate_size_mlp=64),
    "longcat_flash": served(
        **LATENT, num_layers=2, num_hidden_layers=4, expert_ffn_hidden_size=32, zero_expert_num=2, moe_topk=2,
    ),
    "mamba": refused("no 'max_position_embeddings'"),
    "mamba2": refused("no 'max_position_embeddings'", num_heads=8),
    "marian": refused(HALF),
    "mbart": refused(HALF),
    "megatron-bert": refused(ENCODER),
    "mellum": served(),
    "mimo_v2_flash": served(layer_types=WINDOWS),
    "minicpm3": served(**LATENT),
    "minimax": refused(CACHE),
    "minimax_m2": served(),
    "minimax_m3_vl_text": served(),
    "ministral": served(layer_types=WINDOWS),
    "ministral3": served(sliding_window=None),
    "mistral": served(sliding_window=None),
    "mixtral": served(sliding_window=None),
    "mllama": refused(TEXT),
    "modernbert-decoder": served(local_attention=32, layer_types=WINDOWS),
    "moshi": refused(TEXT),
    "moss_transcribe_diarize": refused(TEXT),
    "mpt": full(OWN, max_seq_len=4096),
    "musicgen": refused(TEXT),
    "musicgen_melody": refused(TEXT),
    "mvp": refused(HALF),
    "nanochat": served(),
    "nemotron": served(),
    "nemotron_h": served(),
    "olmo": served(),
    "olmo2": served(),
    "olmo3": served(layer_types=WINDOWS),
    "olmo_hybrid": served(**HYBRID),
    "olmoe": served(),
    "openai-gpt": refused(CACHE),
    "opt": served(),
    "pegasus": refused(HALF),
    "persimmon": served(),
    "phi": served(),
    "phi3": served(sliding_window=None),
    "phi4_multimodal": whole("phi3"),
    "phimoe": served(sliding_window=None),
    "plbart": refused(HALF),
    "prophetnet": refused(HALF),
    "qwen2": served(),
    "qwen2_moe": served(),
    "qwen3": served(),
    "qwen3_5": served(**HYBRID),
    "qwen3_5_moe": served(**HYBRID),
    "qwen3_5_moe_text": served(**HYBRID),
    "qwen3_5_text": served(**HYBRID),
    "qwen3_moe": served(),
    "qwen3_next": served(**HYBRID),
    "qwen4_exp": whole("qwen4_exp_text"),
    "qwen4_exp_text": full(
        INDEXED_LAYERS, **HYBRID, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16,
        indexer_budget=64, indexer_compress_ratio=8, ple_layer_ids=[], ngram_vocab_size_base=1000,
    ),
    "recurrent_gemma": refused("cannot read a text in chunks"),
    "reformer": refused(CACHE),
    "rembert": refused(ENCODER),
    "roberta": refused(ENCODER),
    "roberta-prelayernorm": refused(ENCODER),
    "roc_bert": refused(ENCODER),
    "roformer": refused(ENCODER),
    "rwkv": refused(CACHE),
    "seed_oss": served(),
    "smollm3": served(),
    "solar_open": served(),
    "stablelm": served(),
    "starcoder2": served(sliding_window=None),
    "trocr": refused(HALF),
    "vaultgemma": served(layer_types=WINDOWS),
    "whisper": refused(HALF),
    "xglm": full(OWN, num_layers=4, attention_heads=4),
    "xlm": refused(ENCODER),
    "xlm-roberta": refused(ENCODER),
    "xlm-roberta-xl": refused(ENCODER),
    "xlnet": refused(CACHE),
    "xlstm": refused(CACHE),
    "xmod": refused(ENCODER),
    "youtu": served(**LATENT),
    "zamba": served(
        num_hidden_layers=6, attn_layer_offset=2, attn_layer_period=3, head_dim=32, num_key_value_heads=4,
        use_mamba_kernels=False,
    ),
    "zamba2": served(layers_block_type=["mamba", "hybrid"] * 2, n_mamba_heads=4, head_dim=32, adapter_rank=8,
        num_key_value_heads=4, mamba_d_state=16, use_mamba_kernels=False,
    ),
    "zaya": served(num_experts_per_tok=1, router_hidden_size=16),
}  # fmt: skip


@dataclass(frozen=True)
class Seeing:
    """A model that also sees. row: the family of its text part; sight, text: fields of its parts."""

    row: str
    sight: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)


EYES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN_EYES = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 32}
MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    "sliding_window": None,
}
HALF_ROPE = MROPE["rope_parameters"] | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
SEEING: dict[str, Seeing] = {
    "gemma3": Seeing("gemma3_text", EYES),
    "glm4v": Seeing("glm4", QWEN_EYES, MROPE),
    "glm4v_moe": Seeing("glm4_moe", QWEN_EYES, {"rope_parameters": HALF_ROPE}),
    "llava": Seeing("llama", EYES, {"model_type": "llama"}),
    "mistral3": Seeing("mistral", EYES, {"model_type": "mistral"}),
    "qwen2_vl": Seeing("qwen2", QWEN_EYES | {"embed_dim": 32, "hidden_size": 64}, MROPE),
    "qwen2_5_vl": Seeing("qwen2", QWEN_EYES, MROPE),
    "qwen3_vl": Seeing("qwen3", QWEN_EYES | {"deepstack_visual_indexes": [0]}, MROPE),
    "qwen3_vl_moe": Seeing("qwen3_moe", QWEN_EYES | {"deepstack_visual_indexes": [0]}, MROPE),
}


# Other models that see or hear. Each was tried with a tiny config under the check of SEEING: its text part
# answers as transformers does, and differs from rows above in nothing that attention knows.
_LIKE_THEM = """
    aria aya_vision chameleon cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2
    deepseek_vl deepseek_vl_hybrid ernie4_5_vl_moe exaone4_5 fun_asr_nano glm46v glm_ocr glmasr glmga
    granite_docling granite_speech granite_speech_plus hunyuan_vl hyperclovax_vision_v2 idefics2 idefics3
    internvl janus kimi_k25 lfm2_vl lfm3_vl lighton_ocr llava_next llava_next_video llava_onevision
    minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral4 mistral_large4 molmo2 muse_glimmer muse_spark
    nemo_speechlm nemotron_h_omni paddleocr_vl pp_chart2table qianfan_ocr qwen2_5_omni_thinker qwen3_asr
    qwen3_omni_moe_thinker smolvlm step3p7 vibevoice_asr video_llama_3 video_llava vipllava voxtral
"""
LIKE_THEM = frozenset(_LIKE_THEM.split())
# No tiny model could be built here: large parts, packages that are not installed, or settings that depend
# on each other.
_UNTRIED = "fast_vlm glm5_next granite4_vision inkling2 inkling_mm_model ovis2 perception_lm"
UNTRIED = frozenset(_UNTRIED.split())


def seeing_config(name: str, **common: Any) -> PreTrainedConfig:
    """The config of a row of SEEING. common: fields of its text part instead of `SMALL`, if it has them."""
    row = SEEING[name]
    taken = fields_of(CONFIG_MAPPING[row.row])
    fields = {name: value for name, value in (common or SMALL).items() if name in taken}
    config: PreTrainedConfig = CONFIG_MAPPING[name](
        text_config=fields | FAMILIES[row.row].fields | row.text,
        vision_config=row.sight,
        image_token_id=0,
        video_token_id=1,
        tie_word_embeddings=False,
    )
    return config


def tiny_config(name: str) -> PreTrainedConfig:
    """A family's config with the fields of its row."""
    kind: Any = CONFIG_MAPPING[name]
    text = getattr(kind, "sub_configs", {}).get("text_config")
    made = text if hasattr(text, "model_type") else kind
    taken = fields_of(made)
    fields = {name: value for name, value in SMALL.items() if name in taken} | FAMILIES[name].fields
    config: PreTrainedConfig = kind(**fields) if made is kind else kind(text_config=fields)
    return config


def tiny_family(name: str) -> PreTrainedModel:
    """A random model of a family, in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # larger than the default, so that attention is far from uniform
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def fields_of(kind: Any) -> set[str]:
    """The field names of a config class."""
    declared = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    return declared | set(kind.attribute_map)
