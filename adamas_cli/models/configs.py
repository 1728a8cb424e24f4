"""The config of a model folder as transformers reads it, and what makes it unusable."""

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

    Raises ModelUnavailableError if transformers cannot read it, or would have to run code that is not
    trusted.
    """
    from transformers import AutoConfig

    require_known_code(directory, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:  # a config's class may raise anything for invalid settings
        raise ModelUnavailableError(f"cannot use {directory / CONFIG}: {reason(error)}") from error


def require_known_code(directory: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelUnavailableError if only code in the model's files can compute it, and that code is not
    trusted. Imports transformers only for a model that has code.
    """
    if trust_remote_code:
        return
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        own = config.get("auto_map")
    except (OSError, ValueError, AttributeError):  # reported when the content is needed
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
    """The first line of a library's error message."""
    if isinstance(error, KeyError):
        return f"{error} is not known"
    lines = [line.strip() for line in str(error).strip().splitlines()]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [" ".join(lines[:2])]
    return lines[0] if lines else type(error).__name__
