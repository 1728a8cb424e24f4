"""The default model for command lines that name none, and how the user changes it."""

from __future__ import annotations

import json
import os
import re
import tomllib

from adamas_cli.config import config_path, read_config
from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.models.aliases import default_alias
from adamas_cli.models.device import wants_cuda

ENVIRONMENT = "ADAMAS_MODEL"
_SETTING = re.compile(r"^[ \t]*model[ \t]*=.*$", re.MULTILINE)
_FIRST_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def default_name(device: str = "auto") -> str:
    """The model named by `ADAMAS_MODEL`, the configuration file, or else the table of aliases."""
    chosen = os.environ.get(ENVIRONMENT) or read_config().get("model")
    return str(chosen) if chosen else default_alias(cuda=wants_cuda(device))


def write_default(name: str) -> None:
    """Set `model` in the configuration file, keeping the rest, comments included.

    Raises UsageError if the file is not TOML, AdamasError if it cannot be written.
    """
    path = config_path().resolve()  # a link stays a link
    if path.exists() and not path.is_file():
        raise UsageError(f"the configuration file {path} is not a file")
    line = f"model = {json.dumps(name, ensure_ascii=False)}"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"the configuration file {path} is not TOML: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(_with_setting(text, line), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise AdamasError(f"cannot write the configuration file {path}: {error.strerror or error}") from error


def _with_setting(text: str, line: str) -> str:
    table = _FIRST_TABLE.search(text)
    end = table.start() if table else len(text)
    top, rest = text[:end], text[end:]
    if _SETTING.search(top):
        return _SETTING.sub(lambda _: line, top, count=1) + rest
    return f"{line}\n{text}"
