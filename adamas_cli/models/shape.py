"""A model's dimensions and what it takes of memory, from its files and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.checkpoint.forms import scheme_of
from adamas_cli.models.checkpoint.layers import tensors_of
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
    Get,
    StateSize,
    kinds_by_pattern,
    state_size,
)
from adamas_cli.models.rotary import Rotation, context_of, rotation_of

ATTENTION = (FULL, SLIDING, HYBRID)  # whose layers have keys and values of tokens
SERVED = {*ATTENTION, *RECURRENT, *STATELESS}  # the kinds of layers that the cache has
_OLDER_KINDS = {"attention": FULL, "mamba": LINEAR}
STATES = 5  # copies of recurrent states in memory: the present one, and those that a timeline returns to
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PACKED_BITS = 8.5  # of a weight, its share of a scale included: the most that packing leaves
_CHOICES = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")  # as configs call `choices`
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "token_embd.weight",
)


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder. inner: of its MLPs. windows: tokens that each layer keeps, None where it keeps
    all. obstacle: why Adamas attention would be wrong for it, None where it is right. dense: why it would
    attend fully all the same, or None. choices: experts of a layer that a token chooses, 0 where it is no
    mixture; expert_inner: of theirs. rotation: of positions. latent: numbers that are kept of a token instead
    of heads, 0 where heads are. recurrent: layers with a state, of this size each.
    """

    context: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    windows: tuple[int | None, ...]
    latent: int = 0
    recurrent: int = 0
    state: StateSize = NO_STATE
    obstacle: str | None = None
    dense: str | None = None
    choices: int = 0
    expert_inner: int = 0
    rotation: Rotation = field(default_factory=Rotation)

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.windows)

    def token_bytes(self, item: int) -> int:
        """Of the keys and values of one token in one layer; item: bytes of a number."""
        return (self.latent or 2 * self.kv_heads * self.head_dim) * item

    def cache_bytes(self, tokens: int, item: int) -> int:
        """Of the keys and values of so many tokens in all layers."""
        kept = sum(tokens if window is None else min(tokens, window) for window in self.windows)
        return kept * self.token_bytes(item)

    def state_bytes(self, item: int) -> int:
        """Of recurrent states, however many tokens there are: the present ones and those to return to."""
        return STATES * self.recurrent * self.state.bytes(item)

    def dense_on(self, device: str) -> str | None:
        """Why its answers attend fully on a kind of device where nothing else hinders, or None."""
        return self.dense or latent_obstacle(bool(self.latent), device)

    def code_bytes(self, tokens: int, dense_layers: int) -> int:
        """Of the codes of so many keys, 2 bits for each coordinate and a scale for each key, in the layers
        that have any.
        """
        coded = sum(window is None for window in self.windows[dense_layers:])
        words = max(16, 1 << ((self.latent or self.head_dim) - 1).bit_length()) // 16
        return coded * tokens * (1 if self.latent else self.kv_heads) * (4 * words + 2)


def read_shape(directory: Path) -> ModelShape:
    """The shape of a model folder. Raises ModelUnavailableError where its config does not tell it."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        return shape_of(config.get("text_config", config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise ModelUnavailableError(f"{directory / CONFIG} does not describe a model: {reason}") from error


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape in the config of a text model, as transformers writes it. Raises KeyError."""
    return shape_from(config.get)


def shape_from(get: Get) -> ModelShape:
    """The same by its fields. get: one of them by its name, None where there is none. Raises KeyError."""

    def need(name: str) -> Any:
        found = get(name)
        if found is None:
            raise KeyError(name)
        return found

    choices = max((_largest(get(name)) for name in _CHOICES), default=0)
    inner = _largest(get("intermediate_size"))
    heads = need("num_attention_heads")
    kinds = layer_kinds(get, get("num_hidden_layers") or 0)
    if not kinds:  # a list of them tells how many there are
        raise KeyError("num_hidden_layers")
    windows = {SLIDING: get("sliding_window")} | dict.fromkeys((*RECURRENT, *STATELESS), 0)
    rank = get("kv_lora_rank")
    return ModelShape(
        context=context_of(get) or need("model_max_length"),
        hidden=need("hidden_size"),
        inner=inner,
        heads=heads,
        kv_heads=get("num_key_value_heads") or heads,
        head_dim=get("head_dim") or get("attention_head_dim") or need("hidden_size") // heads,
        vocabulary=need("vocab_size"),
        windows=tuple(windows.get(kind) for kind in kinds),
        latent=rank + need("qk_rope_head_dim") if rank else 0,
        recurrent=sum(kind in (*RECURRENT, HYBRID) for kind in kinds),
        state=state_size(get),
        obstacle=attention_obstacle(get),
        dense=sparse_obstacle(kinds),
        choices=choices,
        expert_inner=(_largest(get("moe_intermediate_size")) or inner) if choices else 0,
        rotation=rotation_of(get),
    )


def _largest(value: int | Sequence[int] | None) -> int:
    """Of a field that may tell each layer's; 0 where it is absent."""
    return max(value, default=0) if isinstance(value, Sequence) else value or 0


def layer_kinds(get: Get, layers: int) -> list[str]:
    """The kind of each layer by the names of transformers. A window that is at least the context is none."""
    kinds, window = get("layer_types") or get("layers_block_type"), get("sliding_window")
    if window and window >= (context_of(get) or math.inf):
        kinds, window = kinds and [FULL if kind == SLIDING else kind for kind in kinds], None
    if kinds is not None:
        return [_OLDER_KINDS.get(kind, kind) for kind in kinds]
    if (kinds := kinds_by_pattern(get, layers)) is not None:
        return kinds
    if not window or get("use_sliding_window") is False:
        return [FULL] * layers
    if pattern := get("sliding_window_pattern"):  # as older files of Gemma 3 have it
        return [SLIDING if (index + 1) % pattern else FULL for index in range(layers)]
    return [SLIDING] * layers


def sparse_obstacle(kinds: Iterable[str]) -> str | None:
    """Why no layer of these kinds attends sparsely, or None where some do."""
    return "every layer attends to a window" if set(kinds) == {SLIDING} else None


def attention_obstacle(get: Get) -> str | None:
    """Why Adamas attention would be wrong for a text model's config, or None where it is right."""
    kinds = set(layer_kinds(get, get("num_hidden_layers") or 0))
    if others := sorted(kinds - SERVED):
        return f"it has {' and '.join(others)} layers"
    if kinds and not kinds & set(ATTENTION):
        return "it has no attention layers"
    return None


def latent_obstacle(latent: bool, device: str) -> str | None:
    """Why answers attend fully to latents, which is right everywhere, or None where they need not."""
    return "there are no sparse steps over latents on a GPU" if latent and device == "cuda" else None


@dataclass(frozen=True)
class WeightCount:
    """Numbers in a model's weights: of the layers' matrices, of the one behind the last layer, of the
    embeddings, and of all the rest. tied: whether the last matrix is the embeddings.
    """

    matrices: int
    head: int
    embeddings: int
    rest: int
    tied: bool

    @property
    def computing(self) -> int:
        """Numbers that a token is multiplied with."""
        return self.matrices + self.head + self.rest

    def bytes(self, item: int) -> int:
        """Where they are as they are in the files, once."""
        return item * (self.computing + (0 if self.tied else self.embeddings))

    def quantized_bytes(self, item: int, bits: float) -> int:
        """Where matrices of layers have so many bits a number, on a GPU."""
        return self.bytes(item) - self.matrices * item + int(self.matrices * bits / 8)

    def packed_bytes(self, item: int) -> int:
        """At most, where they are packed for a CPU; embeddings stay in the file."""
        return int((self.matrices + self.head) * _PACKED_BITS / 8) + self.rest * item


def count_weights(directory: Path) -> WeightCount:
    """Counts by the headers of a folder's safetensors files. A model without a matrix of its own behind the
    last layer uses its embeddings there. Raises ModelUnavailableError for damaged ones.
    """
    stored = stored_quantization(directory)
    return count_tensors(tensors_of(None if stored is None else scheme_of(stored), directory))


def count_tensors(tensors: Iterable[tuple[str, Sequence[int]]]) -> WeightCount:
    """Counts by names and shapes."""
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
