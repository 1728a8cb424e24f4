"""The GGUF architectures that transformers has a model for, by llama.cpp's names."""

from __future__ import annotations

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.architectures import (
    cohere,
    deepseek,
    ernie,
    exaone,
    gemma,
    glm,
    gpt_oss,
    granite,
    liquid,
    llama,
    nemotron,
    older,
    olmo,
    phi,
    qwen,
    qwen_linear,
)
from adamas_cli.models.gguf.architectures.architecture import Architecture, Known
from adamas_cli.models.gguf.file import GgufFile

ARCHITECTURES: Known = {
    **cohere.ARCHITECTURES,
    **deepseek.ARCHITECTURES,
    **ernie.ARCHITECTURES,
    **exaone.ARCHITECTURES,
    **gemma.ARCHITECTURES,
    **glm.ARCHITECTURES,
    **gpt_oss.ARCHITECTURES,
    **granite.ARCHITECTURES,
    **liquid.ARCHITECTURES,
    **llama.ARCHITECTURES,
    **nemotron.ARCHITECTURES,
    **older.ARCHITECTURES,
    **olmo.ARCHITECTURES,
    **phi.ARCHITECTURES,
    **qwen_linear.ARCHITECTURES,
    **qwen.ARCHITECTURES,
}


def architecture_of(file: GgufFile) -> Architecture:
    """The architecture of a file's model. Raises ModelUnavailableError for an unknown one."""
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        raise ModelUnavailableError(
            f"cannot use {file.path}: its architecture {file.architecture} is not among those that are read "
            "from GGUF files here."
        )
    return found if isinstance(found, Architecture) else found(file)
