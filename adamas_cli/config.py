"""The configuration file: defaults for flags, below the command line and the environment.

It is found by `ADAMAS_CONFIG` or in the user's configuration directory, never beside the documents that are
asked about: what lies there is content.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection
from pathlib import Path

from adamas_cli.errors import UsageError


def config_path() -> Path:
    """Where the configuration file is, whether or not it exists."""
    chosen = os.environ.get("ADAMAS_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_config_path

    return user_config_path("adamas") / "config.toml"


def read_config(known: Collection[str]) -> dict[str, object]:
    """The settings of the configuration file by flag name (`max_tokens`); empty if there is no file.

    `known` are the names it may hold. Raises UsageError for a file that is not TOML or holds another name.
    """
    path = config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration file {path}: {error}") from error
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the configuration file {path} is not TOML: {error}") from error
    named = {name.replace("-", "_"): value for name, value in settings.items()}
    unknown = sorted(named.keys() - set(known))
    if unknown:
        raise UsageError(f"the configuration file {path} sets {', '.join(unknown)}, which no flag is called")
    return named
