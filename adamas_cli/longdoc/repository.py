"""Whether the user named a repository, and the folder that a file belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from adamas_cli.documents import remote
from adamas_cli.documents.document import shown_path

if TYPE_CHECKING:
    from adamas_cli.documents import Document

_CODE = (
    *(".c", ".cc", ".clj", ".cpp", ".cs", ".cu", ".dart", ".erl", ".ex", ".f90", ".fs", ".go", ".h", ".hpp"),
    *(".hs", ".java", ".jl", ".js", ".jsx", ".kt", ".lua", ".m", ".ml", ".nim", ".php", ".pl", ".ps1", ".py"),
    *(".pyx", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx", ".v", ".vue", ".zig"),
)


def repository_folders(sources: Sequence[str], documents: Sequence[Document]) -> Callable[[str], str] | None:
    """Maps a path to its top folder below the named folders, if there is code in one; else None."""
    roots = [root for root in map(_shown_root, sources) if root != "-" and _is_root(root, documents)]
    if not roots or not any(document.path.lower().endswith(_CODE) for document in documents):
        return None

    def folder(path: str) -> str:
        for root in roots:
            below = path if root == "." else path.removeprefix(f"{root}/")
            if root == "." or below != path:
                top, slash, _ = below.partition("/")
                return f"{root}/{top}" if slash else root
        return path

    return folder


def _shown_root(source: str) -> str:
    """The common start of the paths of a source with several documents."""
    repository = remote.repository(source)
    return shown_path(source) if repository is None else repository.shown


def _is_root(root: str, documents: Sequence[Document]) -> bool:
    """Whether it is a folder, an archive or a repository."""
    return os.path.isdir(root) or any(document.path.startswith(f"{root}/") for document in documents)
