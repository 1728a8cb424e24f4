"""Maps a GGUF architecture to transformers: its config, and where each parameter is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.keys import Keys
from adamas_cli.models.gguf.rope import FREQUENCIES, LONG, SHORT, rope_parameters

if TYPE_CHECKING:
    from adamas_cli.models.gguf.file import GgufFile
    from adamas_cli.models.gguf.stored import Stored


@dataclass(frozen=True)
class Place:
    """Where to look up a parameter's numbers. layer: None outside of layers. leaf: `weight` or `bias`."""

    file: GgufFile
    config: Mapping[str, Any]  # the result of `Architecture.config`
    layer: int | None
    leaf: str

    def __call__(self, name: str, leaf: str | None = None) -> Stored:
        """The tensor with this name in this layer. Raises ModelUnavailableError if there is none."""
        return self._read(self.full_name(name, leaf))

    def bare(self, name: str) -> Stored:
        """The same for a tensor whose name has no leaf."""
        return self._read(self.full_name(name).rpartition(".")[0])

    def _read(self, full: str) -> Stored:
        if full not in self.file.entries:
            raise ModelUnavailableError(f"it lacks the tensor {full}")
        return self.file.tensor(full)

    def has(self, name: str, leaf: str | None = None) -> bool:
        """Whether the file has this tensor."""
        return self.full_name(name, leaf) in self.file.entries

    def full_name(self, name: str, leaf: str | None = None) -> str:
        """A tensor's name in the file."""
        layer = "" if self.layer is None else f"blk.{self.layer}."
        return f"{layer}{name}.{leaf or self.leaf}"


Recipe = Callable[[Place], "Stored"]
Names = Mapping[str, "str | Recipe"]
Fields = Callable[[Keys, dict[str, Any]], dict[str, Any]]

ENDS: Names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER: Names = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""By the names that most models of transformers share."""


def _nothing(_keys: Keys, _common: dict[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """model_type: transformers' name. fields: config fields that add to or replace the common ones. layer,
    ends: from the name of a module or parameter, in a layer or outside, to the file's. layers: the prefix of
    a layer's number. unused: patterns of tensors that transformers' model does not have; without: common
    fields that its config rejects. rotates: whether all layers rotate positions the same way.
    """

    model_type: str
    fields: Fields = _nothing
    layer: Names = field(default_factory=lambda: LAYER)
    ends: Names = field(default_factory=lambda: ENDS)
    layers: str = "model.layers."
    unused: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    rotates: bool = True

    def config(self, keys: Keys, file: GgufFile) -> dict[str, Any]:
        """The model's config as transformers writes it. Raises ModelUnavailableError if a key is missing or
        unsupported.
        """
        common = common_fields(keys, file)
        if self.rotates:
            common["rope_parameters"] = rope_parameters(keys, common["head_dim"], _factors(file))
        config = {"model_type": self.model_type, **common, **self.fields(keys, common)}
        known, _ = keys.left()
        if known:
            raise ModelUnavailableError(f"its key {known[0]} changes the model in an unknown way")
        return {name: value for name, value in config.items() if name not in self.without}

    def stored(self, parameter: str, file: GgufFile, config: Mapping[str, Any]) -> Stored:
        """The numbers of a parameter of transformers' model. Raises ModelUnavailableError."""
        found, place = self._find(parameter, file, config)
        return place(found) if isinstance(found, str) else found(place)

    def plain_name(self, parameter: str, file: GgufFile) -> str | None:
        """The name of the tensor that is a parameter unchanged; None if it is converted."""
        found, place = self._find(parameter, file, {})
        return place.full_name(found) if isinstance(found, str) else None

    def expert_tensors(self, module: str, file: GgufFile) -> list[str] | None:
        """The file's names of a layer's expert weights: gate, up and down; None if they are stored
        differently.
        """
        if not module.startswith(self.layers):
            return None
        layer = module.removeprefix(self.layers).partition(".")[0]
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up", "down")]
        return names if all(name in file.entries for name in names) else None

    def _find(self, parameter: str, file: GgufFile, config: Mapping[str, Any]) -> tuple[str | Recipe, Place]:
        layer, local, names = None, parameter, self.ends
        if parameter.startswith(self.layers):
            number, _, local = parameter.removeprefix(self.layers).partition(".")
            layer, names = int(number), self.layer
        module, _, leaf = local.rpartition(".")
        if local in names:
            return names[local], Place(file, config, layer, "weight")
        if module in names:
            return names[module], Place(file, config, layer, leaf)
        raise ModelUnavailableError(f"it has no tensor for {parameter}")

    def surplus(self, file: GgufFile, layers: int) -> list[str]:
        """Names of unused tensors, except those of layers for predicting ahead."""
        ignored = [re.compile(pattern) for pattern in (*self.unused, r"rope_(freqs|factors_\w+)\.weight")]
        extra = re.compile(r"blk\.(\d+)\.")
        return [
            name
            for name in file.entries
            if name not in file.used
            and not any(pattern.fullmatch(name) for pattern in ignored)
            and not ((layer := extra.match(name)) and int(layer[1]) >= layers)
        ]


Known = Mapping[str, "Architecture | Callable[[GgufFile], Architecture]"]
"""Architectures by llama.cpp's names; what has one name for several models there is chosen by the file."""


def common_fields(keys: Keys, file: GgufFile) -> dict[str, Any]:
    """The config fields of most models, from the keys of most files."""
    if keys.get("attention.causal", True) is False:
        raise ModelUnavailableError("it is an encoder, which does not generate text")
    if "token_embd.weight" not in file.entries:
        raise ModelUnavailableError("it lacks the tensor token_embd.weight")
    heads = keys.number("attention.head_count")
    rows, hidden = file.entries["token_embd.weight"][1].shape[0], keys.number("embedding_length")
    layers = keys.number("block_count") - keys.get("nextn_predict_layers", 0)
    if layers > (there := _layers(file)):
        raise ModelUnavailableError(f"it has tensors of {there} layers, and its keys name {layers}")
    head_dim = keys.number("attention.key_length", 0) or hidden // (heads or 1)
    latent = keys.get("attention.kv_lora_rank") is not None
    if keys.get("attention.value_length", head_dim) != head_dim and not latent:
        raise ModelUnavailableError("its values have another length than its keys")
    fields: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": keys.number("feed_forward_length", 0) or _width(keys),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.need("context_length"),
        "tie_word_embeddings": not keys.has("output.weight"),
        "bos_token_id": keys.token("bos"),
        "eos_token_id": keys.token("eos"),
        "pad_token_id": keys.token("padding"),
    }
    for field_name, key in (
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ):
        if (value := keys.get(key)) is not None:
            fields[field_name] = value
    return fields


def _layers(file: GgufFile) -> int:
    found = (re.match(r"blk\.(\d{1,6})\.", name) for name in file.entries)
    return max((int(layer[1]) + 1 for layer in found if layer), default=0)


def _width(keys: Keys) -> int:
    """The width of MLPs, from the first one: some converters write 0."""
    return next((rows for name, rows in keys.rows.items() if name.endswith(".ffn_up.weight")), 0)


def _factors(file: GgufFile) -> dict[str, list[float]]:
    names = (FREQUENCIES, SHORT, LONG)
    return {name: file.tensor(name).numbers().tolist() for name in names if name in file.entries}
