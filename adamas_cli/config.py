"""The configuration file: defaults for flags, which the command line and the environment override.

Its path is `ADAMAS_CONFIG` or in the user's configuration directory, never beside the documents being read:
files there are content.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from adamas_cli.errors import UsageError


def config_path() -> Path:
    """The path of the configuration file, whether or not it exists."""
    chosen = os.environ.get("ADAMAS_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_config_path

    return user_config_path("adamas") / "config.toml"


def read_config(known: Collection[str] | None = None) -> dict[str, str | list[str]]:
    """The settings of the configuration file by name (`max_tokens`); empty if there is no file.

    known: the names that it may hold, None for any. Values are texts, as on a command line, or lists of
    texts, so that both are checked alike. Raises UsageError for a file that is not TOML or holds another
    name.
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
    unknown = [] if known is None else sorted(named.keys() - set(known))
    if unknown:
        near = get_close_matches(unknown[0], sorted(known or ()), 1, cutoff=0.5)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"the configuration file {path} sets {', '.join(unknown)}: unknown setting{advice}")
    return {name: _as_text(name, value, path) for name, value in named.items()}


def _as_text(name: str, value: object, path: Path) -> str | list[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise UsageError(
        f"the configuration file {path} sets {name} to {value!r}: no value of that kind is allowed"
    )
