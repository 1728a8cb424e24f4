"""Writes a model to a GGUF file by the rules of llama.cpp's converter, restated here.

Tensor names come from the gguf package. RULES holds what the converter does beyond renaming, and FACTS the
keys it writes beyond the common ones, both by the architecture's name in GGUF.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf_sources import SOURCES
from safetensors.torch import load_file
from torch import Tensor

Config = dict[str, Any]
Facts = Callable[[Config], dict[str, Any]]
Kind = Callable[[str], gguf.GGMLQuantizationType | None]
Rule = Callable[[str, Tensor, Config], tuple[str, Tensor] | list[tuple[str, Tensor]]]
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")


def write_source(name: str, model: Any, folder: Path, kind: Kind = lambda _: None) -> Path:
    """Writes `model`, the source called `name`, to a file in `folder`. kind: the type of a tensor by its name
    in the file, None for float32.
    """
    architecture = SOURCES[name].architecture
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("num_hidden_layers", config.get("n_layer", config.get("n_layers")))
    if "layers_block_type" in config:
        config["num_hidden_layers"] = len(config["layers_block_type"])
    tensors = load_file(folder / "model.safetensors")
    config["xielu"] = {full: tensor.tolist() for full, tensor in tensors.items() if ".act_fn." in full}
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (common_keys(config) | FACTS.get(architecture, _nothing)(config)).items():
        add(writer, key.format(arch=architecture), value)
    for full, tensor in _tensors(architecture, tensors, config):
        numbers, chosen = tensor.to(torch.float32).contiguous().numpy(), kind(full)
        if chosen is None:
            writer.add_tensor(full, numbers)
        else:
            writer.add_tensor(full, gguf.quants.quantize(numbers, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a key of the type that suits its value, replacing an existing one; None only removes it."""
    writer.kv_data[0].pop(key, None)
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def common_keys(config: Config) -> dict[str, Any]:
    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": first("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
        "embedding_length": first("hidden_size", "n_embd", "d_model"),
        "feed_forward_length": first("intermediate_size", "ffn_hidden_size", "n_inner"),
        "attention.head_count": first("num_attention_heads", "n_head", "n_heads"),
        "attention.head_count_kv": first("num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": first("rms_norm_eps", "norm_eps"),
        "attention.layer_norm_epsilon": first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "attention.key_length": first("head_dim"),
        "attention.value_length": first("head_dim"),
        "rope.freq_base": full.get("rope_theta"),
        "rope.freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta"),
        "expert_count": first("num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": first("num_experts_per_tok", "top_k_experts"),
        "expert_group_count": config.get("n_group"),
        "expert_group_used_count": config.get("topk_group"),
    }
    if full.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": full["rope_type"], "rope.scaling.factor": full["factor"]}
    if full.get("rope_type") == "yarn":
        keys |= {
            "rope.scaling.original_context_length": full["original_max_position_embeddings"],
            "rope.scaling.yarn_attn_factor": full.get("attention_factor"),
            "rope.scaling.yarn_beta_fast": full.get("beta_fast"),
            "rope.scaling.yarn_beta_slow": full.get("beta_slow"),
        }
    if "mrope_section" in rope:
        keys["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    return {f"{{arch}}.{key}": value for key, value in keys.items() if value is not None}


def _nothing(_: Config) -> dict[str, Any]:
    return {}


def _own(**facts: Any) -> dict[str, Any]:
    """Keys under the architecture's name; two underscores stand for a dot."""
    return {f"{{arch}}.{key.replace('__', '.')}": value for key, value in facts.items() if value is not None}


# tensors


def _tensors(architecture: str, tensors: dict[str, Tensor], config: Config) -> Iterator[tuple[str, Tensor]]:
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    rule = RULES.get(architecture, _as_it_is)
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    for full, tensor in _stacked_altup(_merged_experts(tensors)).items():
        done = rule(full, tensor, config)
        for one, numbers in done if isinstance(done, list) else [done]:
            if one.startswith(("blk.", "output.", "altup_")):
                yield one, numbers
                continue
            found = names.get_name(one, try_suffixes=(".weight", ".bias"))
            assert found, f"no name for {one}"
            yield found, numbers
    yield from _frequencies(architecture, config)


def _merged_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacks separate experts into one tensor, under the name without their number."""
    merged, experts = {}, {}
    for full, tensor in tensors.items():
        if (expert := EXPERT.fullmatch(full)) is None:
            merged[full] = tensor
        else:
            experts.setdefault((expert[1], expert[3]), {})[int(expert[2])] = tensor
    for (module, part), found in experts.items():
        module = re.sub(r"^model\.(.*)block_sparse_moe", r"\1feed_forward", module)
        stacked = torch.stack([found[index] for index in range(len(found))])
        merged[f"{module}.{part}.weight"] = stacked
    return merged


def _stacked_altup(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacks Gemma 3n's separate projections into one tensor each."""
    for module, ours in (
        ("altup_projections", "altup_proj"),
        ("altup_unembed_projections", "altup_unembd_proj"),
    ):
        found = [full for full in sorted(tensors) if f".{module}." in full]
        if found:
            tensors[f"{ours}.weight"] = torch.stack([tensors.pop(full) for full in found])
    return tensors


def _frequencies(architecture: str, config: Config) -> Iterator[tuple[str, Tensor]]:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    kind = rope.get("rope_type")
    dim = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if kind == "llama3":
        factors = []
        for pair in range(0, dim, 2):
            wavelength = 2 * math.pi * rope["rope_theta"] ** (pair / dim)
            original = rope["original_max_position_embeddings"]
            if wavelength < original / rope["high_freq_factor"]:
                factors.append(1.0)
            elif wavelength > original / rope["low_freq_factor"]:
                factors.append(rope["factor"])
            else:
                low, high = rope["low_freq_factor"], rope["high_freq_factor"]
                smooth = (original / wavelength - low) / (high - low)
                factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        yield "rope_freqs.weight", torch.tensor(factors)
    elif kind == "longrope":
        for which in ("long", "short"):
            yield f"rope_factors_{which}.weight", torch.tensor(rope[f"{which}_factor"])
    elif architecture == "gemma4":
        dim = config["per_layer_config"]["2"]["head_dim"]
        turning = int(dim * rope["partial_rotary_factor"] / 2)
        yield "rope_freqs.weight", torch.tensor([1.0] * turning + [1e30] * (dim // 2 - turning))


def _as_it_is(full: str, tensor: Tensor, _: Config) -> tuple[str, Tensor]:
    return full, tensor


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order in which neighbours are rotated together."""
    halves = weight.view(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _llama(full: str, tensor: Tensor, config: Config) -> tuple[str, Tensor]:
    if ".q_proj." in full:
        tensor = _neighbours(tensor, config["num_attention_heads"])
    if ".k_proj." in full:
        tensor = _neighbours(tensor, config["num_key_value_heads"])
    return full, tensor


def _norms_plus_one(full: str, tensor: Tensor, _: Config) -> tuple[str, Tensor]:
    return full, tensor + 1 if full.endswith("norm.weight") else tensor


def _bias_named(full: str, tensor: Tensor, _: Config) -> tuple[str, Tensor]:
    """Corrections for choosing experts; checkpoints name them without a final `bias`."""
    for ending in ("e_score_correction_bias", "expert_bias"):
        if full.endswith(ending):
            layer = re.search(r"layers\.(\d+)\.", full)
            return f"blk.{layer[1]}.exp_probs_b.bias", tensor
    return full, tensor


def _latent(full: str, tensor: Tensor, config: Config) -> Any:
    if not full.endswith("kv_b_proj.weight"):
        return _bias_named(full, tensor, config)
    heads, key = config["num_attention_heads"], config["qk_nope_head_dim"]
    keys, values = tensor.view(heads, -1, tensor.shape[1]).split([key, config["v_head_dim"]], 1)
    return [
        (full.replace("kv_b", "k_b"), keys.transpose(1, 2)),
        (full.replace("kv_b", "v_b"), values),
    ]


def _gpt_oss(full: str, tensor: Tensor, _: Config) -> Any:
    layer = re.search(r"layers\.(\d+)\.", full)
    if full.endswith("sinks"):
        return f"blk.{layer[1]}.attn_sinks.weight", tensor
    if ".experts." not in full:
        return full, tensor
    leaf = "bias" if full.endswith("bias") else "weight"
    if leaf == "weight":
        tensor = tensor.transpose(1, 2)
    if "down_proj" in full:
        return f"blk.{layer[1]}.ffn_down_exps.{leaf}", tensor
    return [
        (f"blk.{layer[1]}.ffn_gate_exps.{leaf}", tensor[:, ::2]),
        (f"blk.{layer[1]}.ffn_up_exps.{leaf}", tensor[:, 1::2]),
    ]


def _llama4(full: str, tensor: Tensor, _: Config) -> Any:
    layer = re.search(r"layers\.(\d+)\.", full)
    if full.endswith("experts.gate_up_proj"):
        gate, up = tensor.transpose(1, 2).chunk(2, 1)
        return [(f"blk.{layer[1]}.ffn_gate_exps.weight", gate), (f"blk.{layer[1]}.ffn_up_exps.weight", up)]
    if full.endswith("experts.down_proj"):
        return f"blk.{layer[1]}.ffn_down_exps.weight", tensor.transpose(1, 2)
    return full, tensor


def _granite(full: str, tensor: Tensor, config: Config) -> Any:
    layer = re.search(r"layers\.(\d+)\.", full)
    if full.endswith(("moe.input_linear.weight", "shared_mlp.input_linear.weight")):
        kind = "exps" if ".block_sparse_moe." in full else "shexp"
        gate, up = tensor.chunk(2, -2)
        names = (f"blk.{layer[1]}.ffn_{part}_{kind}.weight" for part in ("gate", "up"))
        return list(zip(names, (gate, up), strict=True))
    if ".mamba." in full:
        return _mamba2(full, tensor, config["mamba_n_groups"])
    return _llama(full, tensor, config)


def _mamba2(full: str, tensor: Tensor, groups: int) -> tuple[str, Tensor]:
    if not (found := re.search(r"layers\.(\d+)\.", full)):
        return full, tensor
    layer = found[1]
    if full.endswith("A_log"):
        return f"blk.{layer}.ssm_a", -torch.exp(tensor)[:, None]
    if full.endswith(".D"):
        return f"blk.{layer}.ssm_d", tensor[:, None]
    if full.endswith("dt_bias"):
        return f"blk.{layer}.ssm_dt.bias", tensor
    if full.endswith("conv1d.weight"):
        return f"blk.{layer}.ssm_conv1d.weight", tensor.squeeze(1)
    if full.endswith("mamba.norm.weight") or full.endswith("mixer.norm.weight"):
        return f"blk.{layer}.ssm_norm.weight", tensor.view(groups, -1)
    return full, tensor


def _nemotron_h(full: str, tensor: Tensor, config: Config) -> tuple[str, Tensor]:
    full = re.sub(r"^model\.", "backbone.", full)
    full = full.replace("backbone.norm_f", "model.norm_f") if "norm_f" in full else full
    if ".mixer.experts." in full:
        part = "ffn_down_exps" if "down_proj" in full else "ffn_up_exps"
        return f"blk.{full.split('.')[2]}.{part}.weight", tensor
    return _mamba2(*_bias_named(full, tensor, config), config["n_groups"])


def _falcon_h1(full: str, tensor: Tensor, config: Config) -> tuple[str, Tensor]:
    width, state = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    factors = {
        "gate_proj": config["mlp_multipliers"][0],
        "down_proj": config["mlp_multipliers"][1],
        "k_proj": config["key_multiplier"] * config["attention_in_multiplier"],
        "q_proj": config["attention_in_multiplier"],
        "v_proj": config["attention_in_multiplier"],
        "o_proj": config["attention_out_multiplier"],
        "out_proj": config["ssm_out_multiplier"],
        "in_proj": config["ssm_in_multiplier"],
        "lm_head": config["lm_head_multiplier"],
        "embed_tokens": config["embedding_multiplier"],
    }
    module = full.split(".")[-2]
    tensor = tensor * factors.get(module, 1.0)
    if module == "in_proj":
        parts = tensor.split([width, width, state, state, config["mamba_n_heads"]])
        tensor = torch.cat([part * by for part, by in zip(parts, config["ssm_multipliers"], strict=True)])
    return _mamba2(full, tensor, config["mamba_n_groups"])


def _by_kind(full: str, tensor: Tensor, config: Config) -> tuple[str, Tensor]:
    """Regroups queries, keys and values of each head, or group of heads, into all of each kind."""
    full = (
        re.sub(r"^transformer\.(?=(h|ln_f|word_embeddings_layernorm)\.)", "", full)
        if "n_head" in config
        else full
    )
    if "query_key_value" not in full:
        return full, tensor
    heads = config.get("num_attention_heads") or config["n_head"]
    groups = config.get("num_kv_heads", heads)
    grouped = tensor.view(groups, heads // groups + 2, config["hidden_size"] // heads, -1)
    kinds = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    return full, torch.cat([kind.flatten(0, 2) for kind in kinds]).view(tensor.shape)


def _gpt2(full: str, tensor: Tensor, _: Config) -> tuple[str, Tensor]:
    return full, tensor.t() if full.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor


def _lfm2(full: str, tensor: Tensor, config: Config) -> tuple[str, Tensor]:
    for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        full = full.replace(f"feed_forward.experts.{theirs}", f"mlp.experts.{ours}_proj")
    if full.endswith("conv.conv.weight"):
        tensor = tensor.squeeze(1)
    return _bias_named(full, tensor, config)


def _apertus(full: str, tensor: Tensor, _: Config) -> Any:
    return [] if ".act_fn." in full else (full, tensor)


def _gemma3n(full: str, tensor: Tensor, _: Config) -> Any:
    return full.replace("altup.correct_output_scale", "altup.correct_output_scale.weight"), tensor


def _layer_scalar(full: str, tensor: Tensor, _: Config) -> tuple[str, Tensor]:
    return full + ".weight" if full.endswith("layer_scalar") else full, tensor


def _linear(full: str, tensor: Tensor, config: Config) -> Any:
    """Linear attention of Qwen 3 Next: its parts are separate, and decays are not logarithms."""
    layer = re.search(r"layers\.(\d+)\.", full)
    if full.endswith("A_log"):
        return f"blk.{layer[1]}.ssm_a", -torch.exp(tensor)
    if full.endswith("dt_bias"):
        return f"blk.{layer[1]}.ssm_dt.bias", tensor
    if full.endswith("conv1d.weight"):
        return full, tensor.squeeze(1)
    if full.endswith("in_proj_qkvz.weight"):
        heads, key = config["linear_num_key_heads"], config["linear_key_head_dim"]
        value = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
        parts = tensor.view(heads, -1, tensor.shape[1]).split([key, key, value, value], 1)
        query, key_, value_, gate = (part.reshape(-1, tensor.shape[1]) for part in parts)
        fused = torch.cat((query, key_, value_))
        return [(f"blk.{layer[1]}.attn_qkv.weight", fused), (f"blk.{layer[1]}.attn_gate.weight", gate)]
    if full.endswith("norm.weight") and not full.endswith("linear_attn.norm.weight"):
        tensor = tensor + 1
    return full, tensor


def _tiled(full: str, tensor: Tensor, config: Config) -> Any:
    """Linear attention of Qwen 3.5: value heads are ordered first by their number within a key head."""
    heads, width = config["linear_num_key_heads"], config["linear_value_head_dim"]
    values = config["linear_num_value_heads"] * width

    def tile(part: Tensor, each: int) -> Tensor:
        return part.view(heads, -1, each, *part.shape[1:]).transpose(0, 1).reshape(part.shape)

    if ".linear_attn." in full:
        module = full.split(".linear_attn.")[1]
        if module.startswith(("in_proj_qkv", "conv1d")):
            first = len(tensor) - values
            tensor = torch.cat((tensor[:first], tile(tensor[first:], width)))
        elif module.startswith("in_proj_z"):
            tensor = tile(tensor, width)
        elif module.startswith(("in_proj_a", "in_proj_b", "A_log", "dt_bias")):
            tensor = tile(tensor, 1)
        elif module.startswith("out_proj"):
            tensor = tile(tensor.t(), width).t()
    return _linear(full, tensor, config)


_SSM_OF_QWEN = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}

RULES: dict[str, Rule] = {
    **dict.fromkeys(("llama", "mistral3", "smollm3", "arcee", "olmo"), _llama),
    **dict.fromkeys(("granite", "granitemoe", "granitehybrid"), _granite),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "nemotron"), _norms_plus_one),
    **dict.fromkeys(("deepseek2",), _latent),
    **dict.fromkeys(("glm4moe", "dots1", "ernie4_5-moe", "minimax-m2", "afmoe"), _bias_named),
    **dict.fromkeys(("lfm2", "lfm2moe"), _lfm2),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _nemotron_h),
    **dict.fromkeys(("gptneox", "bloom", "falcon"), _by_kind),
    **dict.fromkeys(("qwen35", "qwen35moe"), _tiled),
    "qwen3next": _linear,
    "apertus": _apertus,
    "falcon-h1": _falcon_h1,
    "gemma3n": _gemma3n,
    "gemma4": _layer_scalar,
    "gpt-oss": _gpt_oss,
    "gpt2": _gpt2,
    "llama4": _llama4,
}


# keys


def _rotated(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return _own(rope__dimension_count=int(width * rope.get("partial_rotary_factor", 1.0)))


def _without(*names: str) -> dict[str, Any]:
    """Removes keys that the architecture's own converter does not write."""
    return {f"{{arch}}.{name}": None for name in names}


def _window(config: Config) -> dict[str, Any]:
    return _own(attention__sliding_window=config.get("sliding_window"))


def _window_pattern(config: Config) -> dict[str, Any]:
    if not config.get("sliding_window"):
        return {}
    pattern = [kind == "sliding_attention" for kind in config["layer_types"]]
    return _window(config) | _own(attention__sliding_window_pattern=pattern)


def _widths(config: Config) -> dict[str, Any]:
    return _own(
        expert_feed_forward_length=config.get("moe_intermediate_size"),
        expert_shared_feed_forward_length=config.get("shared_expert_intermediate_size"),
    )


def _routed(config: Config) -> dict[str, Any]:
    return _own(
        expert_feed_forward_length=config["moe_intermediate_size"],
        expert_shared_count=config.get("n_shared_experts"),
        leading_dense_block_count=config.get("first_k_dense_replace"),
        expert_weights_scale=config["routed_scaling_factor"],
        expert_weights_norm=config["norm_topk_prob"],
    )


def _deepseek2(config: Config) -> dict[str, Any]:
    """Keys for multiplying queries with the latent, which has one key head."""
    rope, latent = config["rope_parameters"], config["kv_lora_rank"]
    scale = rope.get("mscale_all_dim")
    return _routed(config) | _own(
        attention__head_count_kv=1,
        attention__q_lora_rank=config.get("q_lora_rank"),
        attention__kv_lora_rank=latent,
        attention__key_length=latent + config["qk_rope_head_dim"],
        attention__value_length=latent,
        attention__key_length_mla=config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        attention__value_length_mla=config["v_head_dim"],
        rope__dimension_count=config["qk_rope_head_dim"],
        rope__scaling__yarn_log_multiplier=None if scale is None else 0.1 * scale,
    )


def _minicpm3(config: Config) -> dict[str, Any]:
    return _own(
        attention__q_lora_rank=config["q_lora_rank"],
        attention__kv_lora_rank=config["kv_lora_rank"],
        attention__key_length=config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        rope__dimension_count=config["qk_rope_head_dim"],
    ) | _without("attention.value_length", "rope.freq_base")


def _ministral(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return _rotated(config) | _own(
        rope__scaling__yarn_log_multiplier=rope["mscale_all_dim"],
        attention__temperature_scale=rope["llama_4_scaling_beta"],
    )


def _granite_keys(config: Config) -> dict[str, Any]:
    hybrid = "mamba_n_heads" in config
    facts = _own(
        attention__scale=config["attention_multiplier"],
        embedding_scale=config["embedding_multiplier"],
        residual_scale=config["residual_multiplier"],
        logit_scale=config["logits_scaling"],
        expert_shared_feed_forward_length=config.get("shared_intermediate_size") if hybrid else None,
    )
    if hybrid:
        facts |= _own(
            ssm__conv_kernel=config["mamba_d_conv"],
            ssm__state_size=config["mamba_d_state"],
            ssm__group_count=config["mamba_n_groups"],
            ssm__inner_size=config["mamba_n_heads"] * config["mamba_d_head"],
            ssm__time_step_rank=config["mamba_n_heads"],
            rope__scaling__finetuned=config["position_embedding_type"] == "rope",
            attention__head_count_kv=[0] * config["num_hidden_layers"],
        )
    return _rotated(config) | facts


def _nemotron_h_keys(config: Config) -> dict[str, Any]:
    facts = _own(
        attention__layer_norm_epsilon=config["layer_norm_epsilon"],
        attention__head_count_kv=[
            config["num_key_value_heads"] if "attention" in kind and "linear" not in kind else 0
            for kind in config["layers_block_type"]
        ],
        feed_forward_length=[
            config["intermediate_size"] if kind in ("mlp", "moe") else 0
            for kind in config["layers_block_type"]
        ],
        ssm__conv_kernel=config["conv_kernel"],
        ssm__state_size=config["ssm_state_size"],
        ssm__group_count=config["n_groups"],
        ssm__inner_size=config["mamba_num_heads"] * config["mamba_head_dim"],
        ssm__time_step_rank=config["mamba_num_heads"],
        rope__dimension_count=config["head_dim"],
        rope__scaling__finetuned=False,
    )
    if "moe" in config["layers_block_type"]:
        facts |= _routed(config) | _own(
            expert_shared_feed_forward_length=config["moe_shared_expert_intermediate_size"]
        )
    return facts


def _falcon_h1_keys(config: Config) -> dict[str, Any]:
    return _own(
        ssm__conv_kernel=config["mamba_d_conv"],
        ssm__state_size=config["mamba_d_state"],
        ssm__group_count=config["mamba_n_groups"],
        ssm__inner_size=config["mamba_d_ssm"],
        ssm__time_step_rank=config["mamba_n_heads"],
    )


def _qwen_linear(config: Config) -> dict[str, Any]:
    facts = {f"{{arch}}.{key}": config[name] for key, name in _SSM_OF_QWEN.items()}
    inner = config["linear_value_head_dim"] * config["linear_num_value_heads"]
    return _rotated(config) | _widths(config) | facts | _own(ssm__inner_size=inner, full_attention_interval=4)


def _gemma3n_keys(config: Config) -> dict[str, Any]:
    from statistics import NormalDist

    shares = config["activation_sparsity_pattern"]
    return _window_pattern(config) | _own(
        altup__active_idx=config["altup_active_idx"],
        altup__num_inputs=config["altup_num_inputs"],
        embedding_length_per_layer_input=config["hidden_size_per_layer_input"],
        attention__shared_kv_layers=config["num_kv_shared_layers"],
        activation_sparsity_scale=[NormalDist().inv_cdf(one) if one else -math.inf for one in shares],
        final_logit_softcapping=config["final_logit_softcapping"],
    )


def _gemma4_keys(config: Config) -> dict[str, Any]:
    full = config["per_layer_config"]["2"]["head_dim"]
    return _window_pattern(config) | _own(
        attention__shared_kv_layers=config["num_kv_shared_layers"],
        embedding_length_per_layer_input=config["hidden_size_per_layer_input"],
        attention__key_length=full,
        attention__value_length=full,
        attention__key_length_swa=config["head_dim"],
        attention__value_length_swa=config["head_dim"],
        rope__dimension_count=full,
        rope__dimension_count_swa=config["head_dim"],
    )


def _soft_caps(config: Config) -> dict[str, Any]:
    return _window(config) | _own(
        attn_logit_softcapping=config["attn_logit_softcapping"],
        final_logit_softcapping=config["final_logit_softcapping"],
    )


def _phi3(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    original = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
    scale = config["max_position_embeddings"] / original
    return _rotated(config) | _own(
        attention__sliding_window=config.get("sliding_window") or 0,
        rope__scaling__original_context_length=original,
        rope__scaling__attn_factor=math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else None,
    )


def _apertus_keys(config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    facts = {}
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        places = (f"model.layers.{layer}.mlp.act_fn.{name}" for layer in range(layers))
        values = [config["xielu"][place] for place in places]
        facts[f"xielu.{name}"] = [value[0] if isinstance(value, list) else value for value in values]
    return facts | _rotated(config)


def _parallel(config: Config) -> dict[str, Any]:
    if config["model_type"] == "gpt_neox":
        config = {**config, "num_key_value_heads": None}
    heads = _own(attention__head_count_kv=config["num_key_value_heads"]) or _without(
        "attention.head_count_kv"
    )
    return heads | _rotated(config) | _own(use_parallel_residual=config["use_parallel_residual"])


def _ernie_moe(config: Config) -> dict[str, Any]:
    return _own(
        expert_count=config["moe_num_experts"],
        expert_used_count=config["moe_k"],
        interleave_moe_layer_step=config["moe_layer_interval"],
        leading_dense_block_count=config["moe_layer_start_index"],
        expert_feed_forward_length=config["moe_intermediate_size"],
        expert_shared_count=config["moe_num_shared_experts"],
    )


FACTS: dict[str, Facts] = {
    **dict.fromkeys(("llama", "smollm3", "arcee", "minimax-m2", "phi2", "glm4"), _rotated),
    **dict.fromkeys(("qwen2moe", "qwen3moe"), _widths),
    **dict.fromkeys(("granite", "granitemoe", "granitehybrid"), _granite_keys),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _nemotron_h_keys),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), _qwen_linear),
    **dict.fromkeys(("olmo2", "exaone4"), _window_pattern),
    **dict.fromkeys(("phi3", "phimoe"), _phi3),
    **dict.fromkeys(("gptneox", "stablelm"), _parallel),
    "afmoe": lambda config: (
        _widths(config)
        | _window(config)
        | _own(
            expert_shared_count=config["num_shared_experts"],
            leading_dense_block_count=config["num_dense_layers"],
            expert_weights_scale=config["route_scale"],
        )
    ),
    "apertus": _apertus_keys,
    "cohere2": lambda config: _window(config) | _own(logit_scale=config["logit_scale"]),
    "command-r": lambda config: _own(logit_scale=config["logit_scale"], rope__scaling__type="none"),
    "deepseek2": _deepseek2,
    "dots1": _routed,
    "ernie4_5-moe": _ernie_moe,
    "falcon-h1": _falcon_h1_keys,
    "falcon": lambda config: _own(
        attention__head_count_kv=config["num_kv_heads"],
        context_length=2048,
        feed_forward_length=4 * config["hidden_size"],
        tensor_data_layout="jploski",
    ),
    "bloom": lambda config: _own(context_length=256, feed_forward_length=4 * config["hidden_size"]),
    "gpt2": lambda config: _own(feed_forward_length=4 * config["n_embd"]),
    "gemma2": _soft_caps,
    "gemma3": _window,
    "gemma3n": _gemma3n_keys,
    "gemma4": _gemma4_keys,
    "glm4moe": lambda config: _rotated(config) | _routed(config) | _own(expert_gating_func=2),
    "gpt-oss": _window,
    "nemotron": lambda config: (
        _rotated(config) | _own(attention__layer_norm_epsilon=config["norm_eps"], rope__scaling__type="none")
    ),
    "hunyuan-moe": lambda config: _own(
        expert_used_count=config["moe_topk"],
        expert_shared_count=1,
        expert_feed_forward_length=config["intermediate_size"],
    ),
    "lfm2": lambda config: _lfm2_keys(config),
    "lfm2moe": lambda config: (
        _lfm2_keys(config)
        | _widths(config)
        | _own(expert_gating_func=2, leading_dense_block_count=config["num_dense_layers"])
    ),
    "llama4": lambda config: _own(
        feed_forward_length=config["intermediate_size_mlp"],
        expert_feed_forward_length=config["intermediate_size"],
        interleave_moe_layer_step=config["interleave_moe_layer_step"],
    ),
    "minicpm3": _minicpm3,
    "mistral3": _ministral,
    "mpt": lambda config: _own(
        feed_forward_length=config["expansion_ratio"] * config["d_model"],
        attention__max_alibi_bias=float(config["attn_config"]["alibi_bias_max"]),
    ),
    "olmo": lambda config: _own(attention__layer_norm_epsilon=1e-5, attention__clamp_kqv=config["clip_qkv"]),
}


def _lfm2_keys(config: Config) -> dict[str, Any]:
    heads = [
        config["num_key_value_heads"] if kind == "full_attention" else 0 for kind in config["layer_types"]
    ]
    return _own(shortconv__l_cache=config["conv_L_cache"], attention__head_count_kv=heads)
