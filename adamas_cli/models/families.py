"""Facts about model families by transformers' type, available before weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.folder import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_OWN = "its attention does not go through transformers' interface"
_TWICE = "each of its layers attends several times to the same tokens"
# Families whose attention Adamas does not serve, with the reason; each runs with its own, full attention.
# Anything a config shows, such as soft caps, is not listed. The engine checks every model as it runs and
# finds the same for unlisted families; this table is for plans.
OWN_ATTENTION: dict[str, str] = {
    **dict.fromkeys(
        (
            "bloom",
            "codegen",
            "ctrl",
            "falcon",
            "gpt_neo",
            "gpt_neox_japanese",
            "gptj",
            "mpt",
            "xglm",
        ),
        _OWN,
    ),
    "diffllama": _TWICE,
    "hrm_text": _TWICE,
    "doge": "its attention mask is not plainly causal",
}
# Families whose softmax has learned sinks, which no config field shows.
LEARNED_SINKS = frozenset(
    {
        "deepseek_v4", "flint", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "mimo_v2_flash",
        "openai_privacy_filter",
    }
)  # fmt: skip
# Families whose recurrent layers, in transformers, start from an empty state in each pass of several tokens;
# in passes of one token they continue.
RESTARTING = frozenset({"jamba", "zamba"})
# Names, within tensor names, of parts that see, hear or predict ahead; answering with text does not need
# them.
UNREAD = frozenset(
    (
        "acoustic_tokenizer_encoder", "audio_model", "audio_tower", "high_res_vision_model", "image_tower",
        "mtp", "qformer", "semantic_tokenizer_encoder", "video_tower", "vision_encoder", "vision_model",
        "vision_tower", "visual", "vqmodel",
    )
)  # fmt: skip

_ENCODER = "it is an encoder, which does not generate text"
_ENCODER_DECODER = "it is one half of an encoder and a decoder"
_NO_CACHE = "it does not keep its cache in transformers' form"
_AT_ONCE = "it cannot read a text in chunks"
_NO_TEXT = "it does not generate text from text"
_LISTED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        _ENCODER,
        (
            "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
            "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm",
            "xlm-roberta", "xlm-roberta-xl", "xmod",
        ),
    ),
    (
        _ENCODER_DECODER,
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus",
            "plbart", "prophetnet", "t5gemma2", "trocr", "udop", "vision-encoder-decoder", "whisper",
        ),
    ),
    (_AT_ONCE, ("diffusion_gemma", "paligemma", "recurrent_gemma", "unlimited_ocr")),
    (_NO_CACHE, ("cpmant", "minimax", "openai-gpt", "reformer", "rwkv", "xlnet", "xlstm")),
    (
        _NO_TEXT,
        (
            "blip", "blip-2", "blt", "evolla", "florence2", "gemma4_assistant", "gemma4_unified_assistant",
            "git", "idefics", "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5",
            "kyutai_speech_to_text", "mllama", "moshi", "moss_transcribe_diarize", "musicgen",
            "musicgen_melody", "pi0", "pix2struct", "pp_formulanet", "qwen2_5_omni", "qwen2_audio",
            "qwen3_omni_moe", "shieldgemma2", "voxtral_realtime",
        ),
    ),
)  # fmt: skip
# Families that cannot answer questions, with the reason.
UNANSWERING = {kind: reason for reason, kinds in _LISTED for kind in kinds}


def model_type(directory: Path) -> str:
    """The model type in a folder's config; empty if it cannot be read."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        return str(config.get("model_type"))
    except (OSError, ValueError, AttributeError):
        return ""


def require_answering(name: str, directory: Path) -> None:
    """Raises ModelUnavailableError, before weights are loaded, for a type of model that cannot answer."""
    if reason := UNANSWERING.get(model_type(directory)):
        raise ModelUnavailableError(f"{name} cannot answer questions: {reason}.")


def auto_class(kind: str) -> str:
    """The transformers class that loads models of a type, including their vision and audio parts."""
    from transformers.models.auto import modeling_auto as auto

    def has(mapping: str) -> Iterable[str]:
        found: Iterable[str] = getattr(auto, mapping, {})
        return found

    if kind not in has("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
        for mapping, name in BESIDES_TEXT:
            if kind in has(mapping):
                return name
    return "AutoModelForCausalLM"


def is_read(name: str) -> bool:
    """Whether a checkpoint's tensor belongs to a part needed to answer with text."""
    return UNREAD.isdisjoint(name.split("."))


def from_config(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """The model that transformers builds for a config, with random weights, reduced to text."""
    import transformers

    model: PreTrainedModel = getattr(transformers, auto_class(config.model_type)).from_config(
        config, **options
    )
    leave_only_text(model)
    return model


def leave_only_text(model: PreTrainedModel) -> None:
    """Drop the parts of a model that see and hear; text does not use them."""
    from adamas_cli.models.llama_like import LlamaLike

    if isinstance(model, LlamaLike):
        return
    from transformers import PreTrainedModel

    whole = model.base_model
    decoder = model.get_decoder()
    for name, part in list(whole.named_children()):
        if isinstance(part, PreTrainedModel) and part is not decoder and decoder is not whole:
            setattr(whole, name, None)


BESIDES_TEXT = (
    ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "AutoModelForImageTextToText"),
    ("MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", "AutoModelForMultimodalLM"),
)
