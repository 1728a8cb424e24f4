"""Checks that a model's files have every tensor it computes with; missing ones would be random numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError

if TYPE_CHECKING:
    from adamas_cli.progress import Progress

_NAMED = 3  # tensors that a message names


def require_all(name: str, loading: Mapping[str, Any], kinds: Collection[str], progress: Progress) -> None:
    """Check transformers' report of loading (`output_loading_info`), which already excludes tied weights and
    tensors a family may omit. kinds: the classes of the files, as named by their config.

    Unused tensors are noted. Raises ModelUnavailableError, with the first names, if tensors are missing or
    have another shape than the config requires.
    """
    if wrong := sorted(loading["mismatched_keys"]):
        first, there, expected = wrong[0]
        raise ModelUnavailableError(
            f"{name} does not fit its config: {first} is {list(there)} in its files, and should be "
            f"{list(expected)}{_more(wrong[1:])}.\nFetch the model again."
        )
    if missing := sorted(loading["missing_keys"]):
        seems = f"; its files are of a {' or '.join(kinds)}" if kinds else ""
        raise ModelUnavailableError(
            f"{name} lacks {listed(missing)}{seems}.\nFetch it again, or take a model that generates text."
        )
    if unused := sorted(loading["unexpected_keys"]):
        progress.note(f"{name} has tensors that are not used: {listed(unused)}")


def listed(names: Collection[str]) -> str:
    """The first names, and the count of the others."""
    first = list(names)[:_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _more(others: Collection[object]) -> str:
    return f" ({len(others)} more such tensors)" if others else ""
