"""Whether documents that were read apart from each other can be joined in one cache: known before weights are
loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models.recurrent import FULL
from adamas_cli.settings import FEW_BITS

if TYPE_CHECKING:
    from adamas_cli.models.shape import ModelShape
    from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings

NOTE = "documents are read apart from each other: answers that need several of them together are approximate"


def require_joinable(
    shape: ModelShape, model: ModelSettings, attention: DecodingSettings, prompt: PromptSettings
) -> None:
    """Raises ModelUnavailableError for a model whose layers do not keep every token's keys and values by
    themselves, and UsageError for settings that joined documents do not support.
    """
    refused = f"`apart` does not serve models of type {shape.family}"
    if shape.obstacle is not None:
        raise ModelUnavailableError(f"{refused}: {shape.obstacle}.")
    kinds = {"latent" if layer.latent else layer.kind for layer in shape.by_layer if layer.keeps}
    kinds |= {layer.kind for layer in shape.by_layer if layer.kind != FULL}
    if others := sorted(kinds - {FULL}):
        raise ModelUnavailableError(f"{refused}: layers of kind {' and '.join(others)} cannot be joined.")
    if any(layer.shares is not None for layer in shape.by_layer):
        raise ModelUnavailableError(f"{refused}: layers that share keys and values cannot be joined.")
    if model.gpus > 1:
        raise UsageError("`apart` joins documents on one device: leave out `gpus`")
    if prompt.on_overflow != "error":
        raise UsageError(
            f"`apart` reads every document as a whole: leave out `on_overflow` {prompt.on_overflow}"
        )
    if attention.cache_dtype in FEW_BITS:
        raise UsageError(
            f"`cache_dtype` {attention.cache_dtype} centres the keys of each document differently: "
            "leave it out, or `apart`"
        )
    if attention.kv == "host":
        raise UsageError("documents read `apart` are joined in the model's own memory: leave out `kv` host")
