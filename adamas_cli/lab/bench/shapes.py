"""Models by shape only, with random weights: for the speed of models that are not on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adamas_cli.engine.model import Model
from adamas_cli.errors import UsageError
from adamas_cli.machine.threads import use_threads
from adamas_cli.models import LoadedModel, ModelFiles
from adamas_cli.models.split import Split
from adamas_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from adamas_cli.ranks.group import Ranks

SEED = 0


def _shape(
    kind: str, hidden: int, mlp: int, layers: int, heads: str, vocabulary: int, theta: float, **more: object
) -> dict[str, Any]:
    query_heads, kv_heads = map(int, heads.split("/"))
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        **more,
    }


SHAPES = {
    "tiny": _shape("llama", 64, 96, 4, "4/2", 258, 1e4),
    "llama-2-7b": _shape("llama", 4096, 11008, 32, "32/32", 32000, 1e4),
    "llama-3.1-8b": _shape("llama", 4096, 14336, 32, "32/8", 128256, 5e5),
    "llama-3.2-1b": _shape("llama", 2048, 8192, 16, "32/8", 128256, 5e5, tie_word_embeddings=True),
    "qwen2.5-0.5b": _shape("qwen2", 896, 4864, 24, "14/2", 151936, 1e6, tie_word_embeddings=True),
    "qwen2.5-7b": _shape("qwen2", 3584, 18944, 28, "28/4", 152064, 1e6),
    "qwen3-4b": _shape("qwen3", 2560, 9728, 36, "32/8", 151936, 1e6, head_dim=128, tie_word_embeddings=True),
    "qwen3-8b": _shape("qwen3", 4096, 12288, 36, "32/8", 151936, 1e6, head_dim=128),
}


def shape_fields(name: str) -> dict[str, Any]:
    """The transformers config fields of a shape. Raises UsageError for an unknown name."""
    if name not in SHAPES:
        raise UsageError(f"`shape` {name}: choose from {', '.join(SHAPES)}")
    return SHAPES[name]


def shape_config(name: str, context: int) -> PreTrainedConfig:
    """The config of a model of this shape with a context of this many tokens."""
    fields = {**shape_fields(name), "max_position_embeddings": context}
    return AutoConfig.for_model(
        **fields, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )


def random_model(
    name: str, context: int, dtype: torch.dtype, device: torch.device, split: Split | None = None
) -> PreTrainedModel:
    """A model of this shape with a context of this many tokens, on `device`; its weights are always the same
    on the same kind of device. split: to make a rank's share of one.
    """
    config = shape_config(name, context)
    if split is not None:
        config = split.config(config)
    torch.manual_seed(SEED)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if split is not None:
        split.join(model)
    return model.eval().requires_grad_(False)


def load_shape(
    name: str,
    context: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    in_bytes: bool | None,
    split: Split | None = None,
    progress: Progress,
) -> LoadedModel:
    """A random model in the form that `models.load` returns. in_bytes: as in `LoadedModel`, None without
    packed weights. split: see `random_model`.
    """
    with progress.task(f"making a random {name}", None, "bytes"):
        model = random_model(name, context, dtype, device, split)
        if in_bytes is not None:
            from adamas_cli.models.packed import pack_model

            pack_model(model, progress, in_bytes=in_bytes)
    return LoadedModel(
        model, ModelFiles(name, Path(), ""), device, dtype, context, (), in_bytes=bool(in_bytes)
    )


def shape_share(
    ranks: Ranks,
    devices: Sequence[torch.device],
    threads: int,
    progress: Progress | None = None,
    **options: Any,
) -> LoadedModel:
    """One rank's share of a random model, set up for timelines; see `load_shape`. threads: on a CPU."""
    shown = Silent() if progress is None else progress
    use_threads(threads)
    loaded = load_shape(**options, device=devices[ranks.rank], split=Split(ranks), progress=shown)
    Model.of(loaded)
    return loaded
