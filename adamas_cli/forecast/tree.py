"""Tokens by folder: documents as a tree, the largest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class Branch:
    """A file, or a folder with its contents."""

    name: str
    tokens: int = 0
    files: int = 0
    below: dict[str, Branch] = field(default_factory=dict)

    def sorted(self) -> list[Branch]:
        """Its branches, the largest first."""
        return sorted(self.below.values(), key=lambda branch: (-branch.tokens, branch.name))

    def as_json(self) -> dict[str, object]:
        """The branch with everything below it."""
        shown: dict[str, object] = {"name": self.name, "tokens": self.tokens, "files": self.files}
        return shown | ({"below": [branch.as_json() for branch in self.sorted()]} if self.below else {})


@dataclass(frozen=True)
class Line:
    """One line of a drawn tree: a branch, or the hidden ones together."""

    indent: str
    name: str
    tokens: int


def grow(tokens: Mapping[str, int]) -> Branch:
    """The tree of documents by their paths; folders that contain only one folder are joined with it."""
    root = Branch(".")
    for path, count in tokens.items():
        branch = root
        parts = [part for part in path.split("/") if part] or [path]
        if path.startswith("/"):
            parts[0] = f"/{parts[0]}"
        for part in [None, *parts]:
            if part is not None:
                branch = branch.below.setdefault(part, Branch(part))
            branch.tokens += count
            branch.files += 1
    return _joined(root)


def draw(root: Branch, largest: int, least: int) -> Iterator[Line]:
    """The tree line by line: for each folder, at most `largest` branches of at least `least` tokens, and the
    number of the rest.
    """
    return _draw(root, "", largest, least)


def _joined(branch: Branch) -> Branch:
    while len(branch.below) == 1:
        (only,) = branch.below.values()
        if not only.below:
            break
        name = only.name if branch.name == "." else f"{branch.name}/{only.name}"
        branch = Branch(name, branch.tokens, branch.files, only.below)
    branch.below = {name: _joined(child) for name, child in branch.below.items()}
    return branch


def _draw(branch: Branch, indent: str, largest: int, least: int) -> Iterator[Line]:
    branches = branch.sorted()
    shown = [child for child in branches[:largest] if child.tokens >= least]
    if len(shown) + 1 >= len(branches):
        shown = branches
    rest = branches[len(shown) :]
    for index, child in enumerate(shown):
        last = index == len(shown) - 1 and not rest
        name = f"{child.name}/" if child.below else child.name
        yield Line(indent + ("└─ " if last else "├─ "), name, child.tokens)
        yield from _draw(child, indent + ("   " if last else "│  "), largest, least)
    if shown and rest:
        tokens, files = (sum(getattr(child, name) for child in rest) for name in ("tokens", "files"))
        yield Line(indent + "└─ ", f"{files:,} more files", tokens)
