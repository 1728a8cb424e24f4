"""Llama, Mistral, Qwen2 and Qwen3 as transformers computes them, without its model classes.

transformers imports torch's compiler, DTensor, accelerate and Triton for any model class: 1.5 s and 0.18 GB
before a command does anything, on CPUs for nothing. So these models, which most GGUF files hold, are written
down here, with transformers' names of modules and its arithmetic, operation by operation. Whatever else reads
a model's modules cannot tell them apart, and `tests/test_llama_like.py` holds their numbers to be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class Form:
    """What sets a type apart. biased: whether queries, keys and values have a bias; None if its config says
    so, for the output too. normed: whether each head's queries and keys are.
    """

    biased: bool | None = None
    normed: bool = False


FORMS = {
    "llama": Form(),
    "mistral": Form(biased=False),
    "qwen2": Form(biased=True),
    "qwen3": Form(normed=True),
}
# Frequencies that do not depend on a text's length.
ROTATIONS = {"default", "linear", "llama3", "yarn"}


def serves(config: Any) -> bool:
    """Whether this file knows all that a config asks for."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = config.model_type == "mistral" and config.sliding_window is not None
    return (
        config.model_type in FORMS
        and config.hidden_act == "silu"
        and rope.get("rope_type") in ROTATIONS
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and kinds <= {"full_attention"}
        and not windowed
    )


class Output(NamedTuple):
    """What a pass gives. logits: [B, N, vocabulary]."""

    logits: Tensor


class LlamaLike(nn.Module):
    """A model of one of FORMS; its weights have no values yet. Reads like transformers' `...ForCausalLM`."""

    generation_config = None

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        config.dtype = dtype
        self.config, self.dtype = config, dtype
        self.model = Body(config, dtype)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.norm.weight.device

    def get_decoder(self) -> Body:
        """See `PreTrainedModel`."""
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        """See `PreTrainedModel`."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """See `PreTrainedModel`."""
        return self.lm_head

    def initialize_weights(self) -> None:
        """See `PreTrainedModel`. What comes from the config alone has its values from the start."""

    def set_attn_implementation(self, name: str) -> None:
        """See `PreTrainedModel`; there is one of our own."""
        self.attend_by(attend_causally)

    def attend_by(self, attend: Attend) -> None:
        """Let all layers attend by this function, called as one of transformers' AttentionInterface."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Output:
        """One pass of tokens, int64 [B, N]. logits_to_keep: of how many last tokens; 0 for all. Its cache is
        the caller's: none is made.
        """
        hidden = self.model(input_ids, position_ids, past_key_values)
        return Output(self.lm_head(hidden[:, -logits_to_keep:]))


class Body(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        # Without first values: to draw them for a tensor that has no memory, torch would import its compiler.
        table = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype)
        self.embed_tokens = nn.Embedding.from_pretrained(table)
        self.layers = nn.ModuleList(Layer(config, index, dtype) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.rotary_emb = Rotation(config)

    def forward(self, ids: Tensor, positions: Tensor | None, cache: Any) -> Tensor:
        """ids [B, N] -> [B, N, hidden]."""
        hidden = self.embed_tokens(ids)
        if positions is None:
            start = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device).unsqueeze(0)
        turned = self.rotary_emb(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, turned, cache)
        return self.norm(hidden)


class Layer(nn.Module):
    """Attention and MLP, each added to what comes in."""

    def __init__(self, config: Any, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = Attention(config, index, dtype)
        self.mlp = Mlp(config, dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(self, hidden: Tensor, turned: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        """hidden [B, N, hidden]; turned: cos and sin of the tokens' positions."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), turned, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Attention(nn.Module):
    """Attention of one layer; `attend` says how."""

    def __init__(self, config: Any, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        form, hidden = FORMS[config.model_type], config.hidden_size
        self.layer_idx = index
        self.head_dim = head_dim(config)
        self.scaling = self.head_dim**-0.5
        queries, keys = (
            heads * self.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        told = form.biased is None and config.attention_bias
        bias = told or bool(form.biased)
        self.q_proj = nn.Linear(hidden, queries, bias=bias, dtype=dtype)
        self.k_proj = nn.Linear(hidden, keys, bias=bias, dtype=dtype)
        self.v_proj = nn.Linear(hidden, keys, bias=bias, dtype=dtype)
        self.o_proj = nn.Linear(queries, hidden, bias=told, dtype=dtype)
        if form.normed:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype)
        self.normed = form.normed
        self.attend: Attend = attend_causally

    def forward(self, hidden: Tensor, turned: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        """hidden [B, N, hidden] -> the same shape."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        queries, keys = self.q_proj(hidden).view(shape), self.k_proj(hidden).view(shape)
        if self.normed:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        values = self.v_proj(hidden).view(shape).transpose(1, 2)
        queries, keys = apply_rotary_pos_emb(queries.transpose(1, 2), keys.transpose(1, 2), *turned)
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer_idx)
        out, _ = self.attend(self, queries, keys, values, None, scaling=self.scaling)
        return self.o_proj(out.reshape(*hidden.shape[:-1], -1).contiguous())


class Mlp(nn.Module):
    """The gated MLP."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(hidden, inner, bias=bias, dtype=dtype)
        self.up_proj = nn.Linear(hidden, inner, bias=bias, dtype=dtype)
        self.down_proj = nn.Linear(inner, hidden, bias=bias, dtype=dtype)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """The norm, computed in float32."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class Rotation(nn.Module):
    """cos and sin of positions."""

    inv_freq: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.rope_type = config.rope_parameters["rope_type"]
        with torch.device("cpu"):  # at once, also for a model that has no memory yet: they need little
            frequencies, self.attention_scaling = self._frequencies(config)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def _frequencies(self, config: Any) -> tuple[Tensor, float]:
        """float32 [head_dim/2], and a factor for cos and sin."""
        if self.rope_type != "default":
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            found: tuple[Tensor, float] = ROPE_INIT_FUNCTIONS[self.rope_type](config)
            return found
        dim = head_dim(config)
        exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [B, N] -> cos and sin [B, N, head_dim], in the number format of x."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * self.attention_scaling, both.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def apply_rotary_pos_emb(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Queries and keys [B, heads, N, D], their halves rotated. Under transformers' name, by which
    `engine.alike.rotate_by` replaces it.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return tuple(x * cos + _half_turned(x) * sin for x in (queries, keys))


def _half_turned(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def attend_causally(
    module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: None, *, scaling: float
) -> tuple[Tensor, None]:
    """Attention [B, H, N, D] -> [B, N, H, D] of the last N of all tokens, each to those up to itself."""
    new, tokens = queries.shape[2], keys.shape[2]
    causal = torch.ones(new, tokens, dtype=torch.bool, device=queries.device).tril(tokens - new)
    out = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=causal, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def head_dim(config: Any) -> int:
    """Numbers in a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
