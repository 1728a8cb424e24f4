"""Packages that only some commands need."""

from __future__ import annotations

from importlib.util import find_spec

from adamas_cli.errors import UsageError


def require_extra(extra: str, *modules: str) -> None:
    """Raises UsageError where one of the modules is not installed that an extra of adamas brings."""
    if any(find_spec(module) is None for module in modules):
        raise UsageError(f"this needs more packages: pip install 'adamas[{extra}]'")
