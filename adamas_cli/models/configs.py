"""The config of a model folder as transformers reads it, and what keeps it from being one that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.folder import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_config(directory: Path, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedConfig:
    """The config in `directory`. options: of `AutoConfig.from_pretrained`.

    Raises ModelUnavailableError where transformers makes nothing of it, or would run code for it that it may
    not.
    """
    from transformers import AutoConfig

    require_known_code(directory, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:  # whatever a config's class raises for settings that make no sense
        raise ModelUnavailableError(f"cannot use {directory / CONFIG}: {reason(error)}") from error


def require_known_code(directory: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelUnavailableError where only code that comes with the model's files can compute it, and that
    is not trusted. Imports transformers only for a model that has code.
    """
    if trust_remote_code:
        return
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        own = config.get("auto_map")
    except (OSError, ValueError, AttributeError):  # told by who needs what is in it
        return
    if not own:
        return
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        kind = (config.get("architectures") or [config.get("model_type")])[0]
        raise ModelUnavailableError(
            f"{directory} is a {kind}, for which transformers has no class: it brings its own code.\n"
            "Add `trust_remote_code` to run that code, if you trust its source."
        )


def reason(error: Exception) -> str:
    """What a library says first of what it could not do, in one line."""
    if isinstance(error, KeyError):
        return f"{error} is not known"
    lines = [line.strip() for line in str(error).strip().splitlines()]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [" ".join(lines[:2])]
    return lines[0] if lines else type(error).__name__
