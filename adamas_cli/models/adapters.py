"""PEFT's LoRA adapters, merged into a model's weights: W + scale * B A, for every layer they name.

Read without the library peft. Adapters that cannot be merged exactly are rejected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAME = re.compile(
    r"base_model\.model\.(?P<layer>.+)\.(?:lora_(?:embedding_)?(?P<part>A|B|magnitude_vector))"
    r"(?:\.default)?(?:\.weight)?"
)
_WHOLE = re.compile(r"base_model\.model\.(?P<name>.+\.(?:weight|bias))")  # parameters that training replaced
_WRAPPED = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")
_PARTS = {"A": "a", "B": "b", "magnitude_vector": "magnitude"}
# Settings of adapters that compute something else, or change the weights they were made for.
_UNSERVED = ("layer_replication", "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora")
_CHANGES_BASE = ("pissa", "olora", "corda")  # initializations that change the base model


@dataclass(frozen=True)
class Change:
    """The change to one layer's weight: keep it or replace it by `whole`, then add scale * b @ a.

    a: [rank, inputs]; b: [outputs, rank]. transposed: whether the weight is [inputs, outputs]. magnitude:
    [outputs], the resulting norm of each row, for DoRA.
    """

    whole: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    magnitude: Tensor | None = None
    scale: float = 1.0
    transposed: bool = False

    def applied(self, weight: Tensor) -> Tensor:
        """The new weight in float32, in the old one's shape. Raises ValueError if it does not fit."""
        merged = self._fitting(weight if self.whole is None else self.whole, weight).float().cpu()
        if self.a is None and self.b is None:
            return merged
        if self.a is None or self.b is None:
            raise ValueError("it has only one half of a change")
        if self.b.shape[-1] != self.a.shape[0]:
            raise ValueError(f"its halves have rank {self.b.shape[-1]} and {self.a.shape[0]}")
        added = self.scale * (self.b.float() @ self.a.float())
        merged = merged + self._fitting(added.T if self.transposed else added, weight)
        if self.magnitude is not None and self.transposed:
            raise ValueError("it has DoRA magnitudes for a transposed weight")
        if self.magnitude is not None:
            merged *= (self.magnitude.float() / merged.norm(dim=1)).unsqueeze(1)
        return merged

    def _fitting(self, found: Tensor, weight: Tensor) -> Tensor:
        if found.shape != weight.shape:
            raise ValueError(f"it is for weights of {list(found.shape)}, and they are {list(weight.shape)}")
        return found


class Adapter:
    """The adapter in a folder."""

    def __init__(self, directory: Path) -> None:
        """Raises ModelUnavailableError if it is damaged, or of a kind that is not merged here."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.directory = directory
        self.config = read_adapter_config(directory)
        if not (directory / ADAPTER_WEIGHTS).is_file():
            raise ModelUnavailableError(f"the adapter {directory} has no {ADAPTER_WEIGHTS}.")
        try:
            self._tensors = load_file(directory / ADAPTER_WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ModelUnavailableError(f"{directory / ADAPTER_WEIGHTS} is damaged: {error}.") from error

    def changes(self, model: nn.Module) -> dict[str, Change]:
        """Changes by parameter name. Raises ModelUnavailableError for layers the model lacks, and for tensors
        that are no known change.
        """
        from torch import nn

        there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        found: dict[str, dict[str, Any]] = {}
        for stored, tensor in self._tensors.items():
            if lora := _NAME.fullmatch(stored):
                named, part = f"{lora['layer']}.weight", _PARTS[lora["part"]]
                scale = {"scale": self._scale(lora["layer"])}
                if part == "a" and len(tensor) != (rank := self._rank(lora["layer"])):
                    raise self.unfit(f"{lora['layer']} has rank {len(tensor)}, and its settings say {rank}")
            elif whole := _WHOLE.fullmatch(stored):
                named, part, scale = _WRAPPED.sub("", whole["name"]), "whole", {}
            else:
                raise ModelUnavailableError(f"the adapter {self.directory} has an unknown tensor, {stored}.")
            name = next((name for name in _spellings(named, model) if name in there), None)
            if name is None:
                modules = {name for name, _ in model.named_modules()}
                kept = any(name.rpartition(".")[0] in modules for name in _spellings(named, model))
                raise self.unfit(f"{named} {'is not kept as numbers' if kept else 'is not in it'}")
            owner = model.get_submodule(name.rpartition(".")[0])
            turned = isinstance(owner, nn.Embedding) or type(owner).__name__ == "Conv1D"
            found.setdefault(name, {}).update({part: tensor, **scale, "transposed": turned})
        return {name: Change(**parts) for name, parts in found.items()}

    def unfit(self, why: str) -> ModelUnavailableError:
        """The error for an adapter of another model."""
        base = self.config.get("base_model_name_or_path")
        return ModelUnavailableError(
            f"the adapter {self.directory} does not fit this model: {why}.\nIt was made for {base}."
        )

    def _rank(self, layer: str) -> int:
        return int(_by_pattern(self.config.get("rank_pattern"), layer, self.config.get("r", 8)))

    def _scale(self, layer: str) -> float:
        rank = self._rank(layer)
        alpha = _by_pattern(self.config.get("alpha_pattern"), layer, self.config.get("lora_alpha", 8))
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """An adapter's settings. Raises ModelUnavailableError if there are none, or it cannot be merged."""
    file = directory / ADAPTER_CONFIG
    if not file.is_file():
        raise ModelUnavailableError(
            f"{directory} has no {ADAPTER_CONFIG}.\nPoint `adapter` at a folder that PEFT has written."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, begun = config.get("peft_type"), str(config.get("init_lora_weights"))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelUnavailableError(f"{file} is damaged: {error}.") from error
    other = next((name for name in _UNSERVED if config.get(name)), None)
    if kind != "LORA":
        other = f"of the kind {kind}"
    elif begun.startswith(_CHANGES_BASE):
        other = f"initialized by {begun}, which changes the model itself"
    if other is not None:
        raise ModelUnavailableError(f"the adapter {directory} is {other}, and adamas merges plain LoRA only.")
    found: dict[str, Any] = config
    return found


def merge(model: nn.Module, adapter: Adapter) -> frozenset[str]:
    """Merge an adapter into a model's weights; returns the names of the modules that changed.

    Raises ModelUnavailableError if it does not fit the model, or a layer is quantized.
    """
    from torch import nn

    changed = set()
    for name, change in adapter.changes(model).items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        weight = module._parameters[leaf]
        if weight is None or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise ModelUnavailableError(
                f"the adapter {adapter.directory} cannot be merged: {owner} is quantized.\n"
                "Use the unquantized model, and leave out `quantization`."
            )
        numbers = applied(adapter, name, change, weight.detach())
        # A separate parameter: a head that shares its weight with the embeddings must leave these unchanged.
        kept = numbers.to(weight.device, weight.dtype).contiguous()
        module._parameters[leaf] = nn.Parameter(kept, requires_grad=False)
        changed.add(owner)
    return frozenset(changed)


def applied(adapter: Adapter, name: str, change: Change, weight: Tensor) -> Tensor:
    """The new values of a parameter, in float32. Raises ModelUnavailableError if they do not fit it."""
    try:
        return change.applied(weight)
    except ValueError as error:
        raise adapter.unfit(f"at {name} {error}") from error


def _spellings(name: str, model: nn.Module) -> Iterator[str]:
    """Possible names of a parameter in a model: its class may be a part of the class that the adapter was
    made for, or contain it.
    """
    yield name
    yield f"{getattr(model, 'base_model_prefix', 'model')}.{name}"
    yield name.replace("language_model.", "", 1)
    yield name.replace("model.", "model.language_model.", 1)


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """The setting of a layer: that of the first pattern its name ends in, matched as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return otherwise
