"""Packages that only some commands need."""

from __future__ import annotations

from importlib.util import find_spec

from adamas_cli.errors import UsageError


def require_extra(extra: str, *modules: str) -> None:
    """Raises UsageError if a module that an extra of adamas installs is missing."""
    if any(find_spec(module) is None for module in modules):
        raise UsageError(f"this needs more packages: pip install 'adamas[{extra}]'")
