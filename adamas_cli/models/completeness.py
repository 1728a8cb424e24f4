"""Whether a model's files had every tensor that it computes with: what they lack would be random numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError

if TYPE_CHECKING:
    from adamas_cli.progress import Progress

_NAMED = 3  # tensors that a message names


def require_all(name: str, loading: Mapping[str, Any], kinds: Collection[str], progress: Progress) -> None:
    """Look at what transformers reports of loading (`output_loading_info`), tied weights and what a family
    need not have left out. kinds: classes that the files are of, as their config names them.

    Tensors that the model does not use are noted. Raises ModelUnavailableError, with the names of the first
    ones, where some are missing, or of another shape than the config makes them.
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
    """The first names, and how many more there are."""
    first = list(names)[:_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _more(others: Collection[object]) -> str:
    return f" ({len(others)} more such tensors)" if others else ""
