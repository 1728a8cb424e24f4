"""A model's dimensions and memory needs, from its files and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.checkpoint.forms import scheme_of
from adamas_cli.models.checkpoint.layers import tensors_of
from adamas_cli.models.families import LEARNED_SINKS, OWN_ATTENTION
from adamas_cli.models.folder import CONFIG
from adamas_cli.models.prequantized import stored_quantization
from adamas_cli.models.recurrent import (
    FULL,
    HYBRID,
    LINEAR,
    NO_STATE,
    RECURRENT,
    SLIDING,
    STATELESS,
    StateSize,
    kinds_by_pattern,
    state_size,
)
from adamas_cli.models.rotary import Rotation, context_of, rotation_of
from adamas_cli.models.sense import is_usual, require_count, require_sense
from adamas_cli.settings import DENSE_LAYERS

ATTENTION = (FULL, SLIDING, HYBRID)  # layers with keys and values of tokens
SERVED = {*ATTENTION, *RECURRENT, *STATELESS}  # the kinds of layers that the cache supports
_OLDER_KINDS = {"attention": FULL, "mamba": LINEAR}
# Kinds of layers that keep keys and values of tokens, with the config fields that limit how many, by
# transformers' names; other kinds keep a state of fixed size, or nothing.
KEEPING: dict[str, tuple[str, ...]] = {
    FULL: (),
    SLIDING: ("sliding_window", "local_attention", "window_size"),
    HYBRID: (),
    "chunked_attention": ("attention_chunk_size",),
    "indexed_attention": (),
    "deepseek_sparse_attention": (),  # as transformers 5.17 calls it
    "compressed_sparse_attention": (),
    "heavily_compressed_attention": (),
    "hybrid_sliding": ("sliding_window_size", "sliding_window"),
}
# Fields with the maximum context, for configs without `max_position_embeddings`.
OTHER_CONTEXT = ("model_max_length", "max_seq_len", "seq_length")
CODED = (FULL, HYBRID)  # kinds of layers that may attend sparsely
STATES = 5  # copies of recurrent states in memory: the current one, and those that a timeline returns to
# Means that sparse reading keeps for the keys and values of MEAN_TOKENS tokens (`adamas_kernels.reading`).
KEY_MEANS, VALUE_MEANS, MEAN_TOKENS = 2, 1, 64
# Bits per number of keys and of values by `DecodingSettings.cache_dtype`, scales included, and how many
# numbers share a scale; see `adamas_kernels.packed`.
KEPT_BITS = {"16": (16, 16), "int8": (8.5, 8.5), "int4": (8.5, 4.5)}
PACKED_GROUP = 32
COPIED_STEPS, MOST_COPIED_STEPS = 2, 4  # at least and at most, see `adamas_kernels.hot`
ROW_ALIGNMENT = 16  # bytes: where a token's keys, and its values, begin in host memory, see `HostRows`
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PACKED_BITS = 8.5  # of a weight, including its share of a scale: the most that packing leaves
_CHOICES = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")  # config names of `choices`
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "token_embd.weight",
)
# Fields that a file of one of these types must have to give its whole shape. Missing fields take defaults
# from a transformers class, so other types are read through those, which takes seconds.
_TOLD: dict[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": ("num_key_value_heads", "sliding_window"),
    "qwen2": ("num_key_value_heads",),
    "qwen3": ("num_key_value_heads", "head_dim"),
}
_NEEDED = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
)


class Get(Protocol):
    """A field of a text model's config by name, for one layer if given; None if absent."""

    def __call__(self, name: str, layer: int | None = None) -> Any: ...


@dataclass(frozen=True)
class LayerShape:
    """What a layer keeps of a token. kind: transformers' name. key_dim, value_dim: numbers in a head's key
    and value. window: tokens it keeps, None for all. shares: the layer whose keys and values it attends to,
    None if it has its own. latent: whether one latent is kept instead of heads.
    """

    kind: str
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    shares: int | None = None
    latent: bool = False

    @property
    def keeps(self) -> bool:
        """Whether it has its own keys and values."""
        return self.kind in KEEPING and self.shares is None

    def reads_sparsely(self) -> bool:
        """Whether it may skip blocks of earlier tokens while reading."""
        return self.kind in CODED and self.keeps and not self.latent

    def token_bytes(self, item: int, kept: str = "auto") -> int:
        """Bytes of a token's keys and values; item: bytes of a computed number; kept: see
        `DecodingSettings.cache_dtype`.
        """
        return int(self.kv_heads * sum(self._part_bytes(item, kept))) if self.keeps else 0

    def row_bytes(self, item: int, kept: str = "auto") -> int:
        """`token_bytes` in host memory beside a GPU."""
        parts = self._part_bytes(item, kept)
        return self.kv_heads * sum(-(-int(part) // ROW_ALIGNMENT) * ROW_ALIGNMENT for part in parts)

    def _part_bytes(self, item: int, kept: str) -> tuple[float, float]:
        """Bytes of a head's key and of its value."""
        bits = KEPT_BITS[kept] if kept != "auto" and self.packs else (8 * item, 8 * item)
        return self.key_dim * bits[0] / 8, self.value_dim * bits[1] / 8

    @property
    def packs(self) -> bool:
        """Whether its keys and values can be kept in fewer bits: heads must be whole groups with scales."""
        whole = self.key_dim % PACKED_GROUP == 0 == self.value_dim % PACKED_GROUP
        return self.kind in CODED and not self.latent and whole

    def cache_bytes(self, tokens: int, item: int, kept: str = "auto") -> int:
        """Bytes of the keys and values of this many tokens."""
        return min(tokens, self.window or tokens) * self.token_bytes(item, kept)

    def means_bytes(self, item: int) -> int:
        """Bytes of the means of MEAN_TOKENS tokens, if it reads sparsely."""
        return self.kv_heads * (KEY_MEANS * self.key_dim + VALUE_MEANS * self.value_dim) * item

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a token's keys: 2 bits per coordinate and a scale per key."""
        words = max(16, 1 << (self.key_dim - 1).bit_length()) // 16
        return self.kv_heads * (4 * words + 2)


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder. inner: of its MLPs. by_layer: what each layer keeps. obstacle: why Adamas
    attention would be wrong for it, or None. dense: why it would still attend fully, or None. dense_reading:
    why its documents are read densely, or None if they may be read sparsely. choices: experts that a token
    chooses in a layer, 0 without experts; expert_inner: the experts' `inner`. rotation: of positions.
    recurrent: layers with a state, each of size `state`. family: transformers' name for its type.
    """

    context: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    by_layer: tuple[LayerShape, ...]
    recurrent: int = 0
    state: StateSize = NO_STATE
    obstacle: str | None = None
    dense: str | None = None
    dense_reading: str | None = None
    choices: int = 0
    expert_inner: int = 0
    rotation: Rotation = field(default_factory=Rotation)
    family: str = field(default="", compare=False)  # a name, not a dimension

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.by_layer)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Tokens that each layer keeps, None for all."""
        return tuple(layer.window for layer in self.by_layer)

    @property
    def pair_operations(self) -> int:
        """Arithmetic of one query with one key, in all layers and heads."""
        return sum(
            2 * self.heads * (layer.key_dim + layer.value_dim)
            for layer in self.by_layer
            if layer.kind in KEEPING
        )

    def token_bytes(self, item: int, kept: str = "auto") -> int:
        """Bytes of the keys and values of one token, in the layer where they are largest; item: bytes of a
        number; kept: see `LayerShape.token_bytes`.
        """
        return max((layer.token_bytes(item, kept) for layer in self.by_layer), default=0)

    def cache_bytes(self, tokens: int, item: int, kept: str = "auto") -> int:
        """Bytes of the keys and values of this many tokens in all layers; kept: see
        `LayerShape.token_bytes`.
        """
        return sum(layer.cache_bytes(tokens, item, kept) for layer in self.by_layer)

    def hosted(self, dense_layers: int) -> tuple[LayerShape, ...]:
        """The layers whose keys and values may be in host memory beside a GPU: all but the first that attend
        to all tokens.
        """
        return tuple(layer for layer in self.by_layer[dense_layers:] if layer.reads_sparsely())

    def hosted_bytes(self, tokens: int, item: int, dense_layers: int, kept: str = "auto") -> int:
        """Bytes of those keys and values there."""
        return sum(layer.row_bytes(item, kept) for layer in self.hosted(dense_layers)) * tokens

    def copied_bytes(
        self,
        tokens: int,
        item: int,
        dense_layers: int,
        budget: int,
        kept: str = "auto",
        steps: int = COPIED_STEPS,
    ) -> int:
        """Bytes of the copies that a GPU keeps of chosen keys and values in host memory, of so many steps."""
        total = 0
        for layer in self.hosted(dense_layers):
            chosen = self.heads // layer.kv_heads * budget
            slots = min(steps * chosen, tokens + chosen)
            total += slots * layer.row_bytes(item, kept) + 4 * layer.kv_heads * (tokens + 2 * slots)
        return total

    def kept_state_bytes(self, item: int) -> int:
        """Bytes of the recurrent states of all layers at one token."""
        return self.recurrent * self.state.bytes(item)

    def state_bytes(self, item: int) -> int:
        """Bytes of recurrent states at any length: the current ones and those to return to."""
        return STATES * self.kept_state_bytes(item)

    def dense_on(self, device: str) -> str | None:
        """Why its answers attend fully on a kind of device, if nothing else requires it; or None."""
        return self.dense or latent_obstacle(self.latent, device)

    @property
    def latent(self) -> bool:
        """Whether any layer keeps latents."""
        return any(layer.latent for layer in self.by_layer)

    @property
    def unmeasured(self) -> str | None:
        """Why its answers attend fully where either would work, or None."""
        return "how near sparse steps over latents come to it was not measured" if self.latent else None

    def code_bytes(self, tokens: int, dense_layers: int) -> int:
        """Bytes of the codes of this many keys, in the layers that have codes."""
        coded = (layer for layer in self.by_layer[dense_layers:] if layer.kind in CODED and layer.keeps)
        return sum(layer.code_bytes for layer in coded) * tokens

    def means_bytes(self, tokens: int, item: int) -> int:
        """Bytes of the means of this many tokens' keys and values, in the layers that read sparsely."""
        reading = (layer for layer in self.by_layer[DENSE_LAYERS:] if layer.reads_sparsely())
        return sum(layer.means_bytes(item) for layer in reading) * (tokens // MEAN_TOKENS)


def read_shape(directory: Path, *, trusts: bool = False) -> ModelShape:
    """The shape of a model folder. trusts: code in the folder. Raises ModelUnavailableError if its config
    does not give it.
    """
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        require_sense(lambda name: config.get(name))  # before transformers reports it in its own words
        if tells_all(config):
            return shape_of(config)
        return shape_of_config(_through_transformers(directory, trusts=trusts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).strip().partition("\n")[0]
        raise ModelUnavailableError(f"{directory / CONFIG} does not describe a model: {reason}") from error


def tells_all(config: dict[str, Any]) -> bool:
    """Whether a file has everything that its model's shape depends on, and nothing that transformers might
    reject.
    """
    told = _TOLD.get(str(config.get("model_type")))
    there = told is not None and all(name in config for name in (*_NEEDED, *told))
    return there and is_usual(config)


def _through_transformers(directory: Path, *, trusts: bool) -> Any:
    from adamas_cli.models.configs import read_config

    return read_config(directory, trust_remote_code=trusts).get_text_config(decoder=True)


def of_config(config: Any) -> Get:
    """The fields of a text model's config as transformers reads it."""

    def get(name: str, layer: int | None = None) -> Any:
        # Fields that vary by layer have no single value.
        if not getattr(config, "is_heterogeneous", False) or name not in (config.per_layer_attributes or ()):
            return getattr(config, name, None)
        return getattr(config.per_layer_config[layer or 0], name, None)

    return get


def shape_of_config(config: Any) -> ModelShape:
    """The shape from a text model's config, as transformers reads it. Raises KeyError."""
    return shape_from(of_config(config))


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape from a text model's config, as transformers writes it. Raises KeyError."""
    return shape_from(lambda name, layer=None: config.get(name))


def shape_from(get: Get) -> ModelShape:
    """The shape from config fields. Raises KeyError, and TypeError and ValueError for invalid fields."""
    require_sense(get)

    def need(name: str) -> Any:
        found = get(name)
        if found is None:
            raise KeyError(name)
        return require_count(name, found)

    choices = max((_largest(get(name)) for name in _CHOICES), default=0)
    inner = _largest(get("intermediate_size"))
    context = context_of(get) or next((found for name in OTHER_CONTEXT if (found := get(name))), None)
    layers = require_count("num_hidden_layers", get("num_hidden_layers") or 0)
    kinds = layer_kinds(get, layers)
    if not kinds:  # a list of kinds gives the count
        raise KeyError("num_hidden_layers")
    keeping = any(kind in KEEPING for kind in kinds)
    heads = need("num_attention_heads") if keeping else 0
    by_layer = tuple(_layer(get, index, kinds) for index in range(len(kinds)))
    return ModelShape(
        context=require_count("max_position_embeddings", context or need("max_position_embeddings")),
        hidden=need("hidden_size"),
        inner=inner,
        heads=heads,
        vocabulary=need("vocab_size"),
        by_layer=by_layer,
        recurrent=sum(kind in (*RECURRENT, HYBRID) for kind in kinds),
        state=state_size(get),
        obstacle=attention_obstacle(get),
        dense=sparse_obstacle(kinds),
        dense_reading=reading_obstacle(get, by_layer),
        choices=choices,
        expert_inner=(_largest(get("moe_intermediate_size")) or inner) if choices else 0,
        rotation=rotation_of(get),
        family=str(get("model_type") or ""),
    )


def _largest(value: int | Sequence[int] | None) -> int:
    """The maximum of a field that may be per layer; 0 if absent."""
    return max(value, default=0) if isinstance(value, Sequence) else value or 0


def _layer(get: Get, index: int, kinds: Sequence[str]) -> LayerShape:
    """One layer of a model whose layers are of these kinds."""
    kind = kinds[index]
    if kind not in KEEPING:
        return LayerShape(kind, 0, 0, 0)
    heads = get("num_attention_heads", index)
    shared = _shares(get, index, kinds)
    rank, rotated = get("kv_lora_rank"), get("qk_rope_head_dim")
    if rank and kind == FULL:  # its key, which starts with the value
        return LayerShape(kind, 1, rank + rotated, 0, None, shared, latent=True)
    key_dim = get("head_dim", index) or get("attention_head_dim") or get("hidden_size") // heads
    value_dim = get("v_head_dim", index) or key_dim
    if rotated and (plain := get("qk_nope_head_dim")):  # all heads are made from latents
        key_dim, kv_heads = plain + rotated, heads
    else:
        kv_heads = _first(get, ("num_key_value_heads", "num_kv_heads"), index) or heads
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads")
    return LayerShape(kind, kv_heads, key_dim, value_dim, _first(get, KEEPING[kind], index), shared)


def _first(get: Get, names: Sequence[str], layer: int) -> int | None:
    return next((found for name in names if (found := get(name, layer))), None)


def _shares(get: Get, index: int, kinds: Sequence[str]) -> int | None:
    """The layer whose keys and values a layer attends to: the last of its kind with its own."""
    own = len(kinds) - (get("num_kv_shared_layers") or 0)
    if index < own:
        return None
    return max(before for before in range(own) if kinds[before] == kinds[index])


def layer_kinds(get: Get, layers: int) -> list[str]:
    """The kind of each layer by transformers' names. A window as large as the context counts as none."""
    kinds, window = get("layer_types") or get("layers_block_type"), get("sliding_window")
    if window and window >= (context_of(get) or math.inf):
        kinds, window = kinds and [FULL if kind == SLIDING else kind for kind in kinds], None
    if kinds is not None:
        return [_OLDER_KINDS.get(kind, kind) for kind in kinds]
    if (kinds := kinds_by_pattern(get, layers)) is not None:
        return kinds
    if not window or get("use_sliding_window") is False:
        return [FULL] * layers
    if pattern := get("sliding_window_pattern"):  # in older files of Gemma 3
        return [SLIDING if (index + 1) % pattern else FULL for index in range(layers)]
    return [SLIDING] * layers


def sparse_obstacle(kinds: Iterable[str]) -> str | None:
    """Why no layer of these kinds attends sparsely; None if some do."""
    return "every layer attends to a window" if set(kinds) == {SLIDING} else None


def reading_obstacle(get: Get, by_layer: Sequence[LayerShape]) -> str | None:
    """Why a model reads densely, or None if some layers may read sparsely: those with a plain causal softmax
    over their own keys, for which docs/accuracy.md has evidence.
    """
    if get("attn_logit_softcapping"):
        return "its attention caps scores"
    if get("model_type") in LEARNED_SINKS:
        return "its attention has learned sinks"
    return None if any(map(LayerShape.reads_sparsely, by_layer[DENSE_LAYERS:])) else "no layer gains by it"


def attention_obstacle(get: Get) -> str | None:
    """Why Adamas attention would be wrong for a text model's config, or None."""
    if known := OWN_ATTENTION.get(str(get("model_type"))):
        return known
    kinds = set(layer_kinds(get, get("num_hidden_layers") or 0))
    if others := sorted(kinds - SERVED):
        return f"it has {' and '.join(others)} layers"
    if kinds and not kinds & set(ATTENTION):
        return "it has no attention layers"
    return None


def latent_obstacle(latent: bool, device: str) -> str | None:
    """Why answers attend fully to latents, which is always correct; None if they need not."""
    return "there are no sparse steps over latents on a GPU" if latent and device == "cuda" else None


@dataclass(frozen=True)
class WeightCount:
    """Numbers in a model's weights: matrices of layers, the matrix after the last layer, embeddings, and the
    rest. tied: whether the last matrix is the embeddings.
    """

    matrices: int
    head: int
    embeddings: int
    rest: int
    tied: bool

    @property
    def computing(self) -> int:
        """Numbers that each token is multiplied with."""
        return self.matrices + self.head + self.rest

    def bytes(self, item: int) -> int:
        """Bytes in this number format, counting tied weights once."""
        return item * (self.computing + (0 if self.tied else self.embeddings))

    def quantized_bytes(self, item: int, bits: float) -> int:
        """Bytes on a GPU with this many bits for each number in layers' matrices."""
        return self.bytes(item) - self.matrices * item + int(self.matrices * bits / 8)

    def packed_bytes(self, item: int) -> int:
        """Maximum bytes when packed for a CPU; embeddings stay in the file."""
        return int((self.matrices + self.head) * _PACKED_BITS / 8) + self.rest * item


NO_WEIGHTS = WeightCount(0, 0, 0, 0, tied=False)


def count_weights(directory: Path) -> WeightCount:
    """Counts from the headers of a folder's safetensors files. A model without its own matrix after the last
    layer uses its embeddings there. Raises ModelUnavailableError for damaged files.
    """
    stored = stored_quantization(directory)
    return count_tensors(tensors_of(None if stored is None else scheme_of(stored), directory))


def count_tensors(tensors: Iterable[tuple[str, Sequence[int]]]) -> WeightCount:
    """Counts from names and shapes."""
    matrices = head = embeddings = rest = 0
    for name, shape in tensors:
        numbers = math.prod(shape)
        if name.endswith(_EMBEDDINGS):
            embeddings += numbers
        elif name.endswith("lm_head.weight") or name == "output.weight":
            head += numbers
        elif len(shape) >= 2:
            matrices += numbers
        else:
            rest += numbers
    return WeightCount(matrices, head or embeddings, embeddings, rest, tied=not head)
