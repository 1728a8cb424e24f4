"""The space that some tokenizers put before a text: SentencePiece's, and byte-level ones that ask for it.

A prompt is tokenized in pieces. Only a piece that begins the prompt, or follows a control token if the
tokenizer puts the space there too, may have it; at any other seam, the space would be an invention.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal

Config = dict[str, Any]  # a normalizer or pre-tokenizer of tokenizer.json
Places = Literal["start", "sections"]  # of the whole text, or of each section between control tokens

_MEMBERS = ("normalizers", "pretokenizers")  # of sequences


def prefix_places(normalizer: Config | None, pre_tokenizer: Config | None) -> Places | None:
    """Where a tokenizer puts a space that is not in the text; None if it never does."""
    found = [places for part in _parts(normalizer, pre_tokenizer) if (places := _places(part))]
    return "sections" if "sections" in found else found[0] if found else None


def without_prefix(component: Config | None) -> Config | None:
    """A normalizer or pre-tokenizer that leaves the ends of a text alone; None if nothing remains of it."""
    if component is None or component["type"] in ("Prepend", "Strip"):
        return None
    changed = deepcopy(component)
    match component["type"]:
        case "Metaspace":
            changed["prepend_scheme"] = "never"
        case "ByteLevel":
            changed["add_prefix_space"] = False
        case "Sequence":
            (name,) = [name for name in _MEMBERS if name in component]
            members = [kept for member in component[name] if (kept := without_prefix(member))]
            return members[0] if len(members) == 1 else {**component, name: members}
    return changed


def _places(component: Config) -> Places | None:
    match component:
        case {"type": "Prepend"} | {"type": "Metaspace", "prepend_scheme": "always"}:
            return "sections"
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return "sections"
        case {"type": "Metaspace", "prepend_scheme": "first"}:
            return "start"
    return None


def _parts(*components: Config | None) -> Iterator[Config]:
    for component in components:
        if component is not None:
            yield component
            for name in _MEMBERS:
                yield from _parts(*component.get(name, []))
