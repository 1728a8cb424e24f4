"""The documents that can be asked about: those named at the start, and uploads, which persist across runs.

A document's id comes from its content. Requests can name nothing else on the machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from adamas_cli.documents import Document, Selection, collect
from adamas_cli.documents.document import shown_path
from adamas_cli.documents.latex import SUFFIXES as LATEX
from adamas_cli.errors import AdamasError
from adamas_cli.files import appearing
from adamas_cli.folders import cache_directory
from adamas_cli.progress import Silent
from adamas_cli.serve.errors import ApiError

ID = re.compile(r"file-[0-9a-f]{24}")
LONGEST_NAME = 200  # characters of an upload's
_FACTS = "facts.json"
_SUFFIXES = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")


@dataclass(frozen=True)
class Facts:
    """Stored metadata of a file. created: seconds since 1970."""

    id: str
    name: str
    bytes: int
    created: int
    purpose: str


@dataclass(frozen=True)
class Entry:
    """A file that can be asked about; an archive has several documents."""

    facts: Facts
    documents: tuple[Document, ...]
    origin: Literal["served", "uploaded"]

    def as_json(self) -> dict[str, object]:
        """OpenAI's file object."""
        facts = self.facts
        return {
            "id": facts.id,
            "object": "file",
            "bytes": facts.bytes,
            "created_at": facts.created,
            "filename": facts.name,
            "purpose": facts.purpose,
            "status": "processed",
            "origin": self.origin,
            "documents": [document.path for document in self.documents],
        }


class Library:
    """served: the documents named at the start. largest: bytes of an upload. Uploads of earlier runs are
    loaded again.
    """

    def __init__(self, served: Iterable[Document], largest: int, folder: Path | None = None) -> None:
        self.largest = largest
        self._folder = folder or cache_directory() / "uploads"
        self._changing = threading.Lock()
        now = int(time.time())
        entries = [_served(document, now) for document in served]
        self._entries = {entry.facts.id: entry for entry in entries}
        self.served = tuple(self._entries)
        for place in sorted(self._folder.glob("file-*")):
            if ID.fullmatch(place.name) and place.name not in self._entries:
                self._find_again(place)

    def entries(self) -> list[Entry]:
        """All files, those named at the start first."""
        return list(self._entries.values())

    def __getitem__(self, identity: str) -> Entry:
        """Raises ApiError 404 for an unknown id."""
        entry = self._entries.get(identity)
        if entry is None:
            raise ApiError(404, f"there is no file {identity!r}", "file_not_found", param="file_id")
        return entry

    def documents(self, identities: Sequence[str]) -> list[Document]:
        """The documents of the files with these ids, each once, in order. Raises ApiError for an
        unknown id.
        """
        chosen = dict.fromkeys(identities)
        return [document for identity in chosen for document in self[identity].documents]

    def add(self, name: str, data: bytes, purpose: str) -> Entry:
        """Store an upload. Raises ApiError if it is too large or has no text."""
        if len(data) > self.largest:
            message = f"the file has {len(data):,} bytes; at most {self.largest:,} are taken"
            raise ApiError(413, message, "file_too_large", param="file")
        name = shown_name(name)
        identity = f"file-{hashlib.sha256(name.encode() + bytes(1) + data).hexdigest()[:24]}"
        with self._changing:
            if identity in self._entries:
                return self._entries[identity]
            place = self._folder / identity
            facts = Facts(identity, name, len(data), int(time.time()), purpose)
            try:
                with appearing(_file(place, name)) as stream:
                    stream.write(data)
                entry = Entry(facts, _read(place, name), "uploaded")
                with appearing(place / _FACTS) as stream:
                    stream.write(json.dumps(asdict(facts)).encode())
            except BaseException as error:
                shutil.rmtree(place, ignore_errors=True)
                if isinstance(error, AdamasError):
                    message = error.message.replace(shown_path(str(_file(place, name))), name)
                    raise ApiError(400, message, "unreadable_file", param="file") from error
                raise
            self._entries[identity] = entry
            return entry

    def remove(self, identity: str) -> None:
        """Forget an upload. Raises ApiError for an unknown id, and for a document named at the start."""
        with self._changing:
            if self[identity].origin == "served":
                message = "a document that was named at the start cannot be removed"
                raise ApiError(400, message, "not_an_upload", param="file_id")
            del self._entries[identity]
            shutil.rmtree(self._folder / identity, ignore_errors=True)

    def _find_again(self, place: Path) -> None:
        """Load an upload of an earlier run; one that can no longer be read is left alone."""
        try:
            facts = Facts(**json.loads((place / _FACTS).read_text("utf-8")))
            documents = _read(place, facts.name)
        except (OSError, ValueError, TypeError, AdamasError):
            return
        self._entries[place.name] = Entry(facts, documents, "uploaded")


def shown_name(name: str) -> str:
    """The last part of an upload's name, as documents are shown."""
    last = re.split(r"[/\\]", name)[-1].strip()
    kept = "".join(character if character.isprintable() else "_" for character in last)
    return kept[-LONGEST_NAME:] or "upload"


def _file(place: Path, name: str) -> Path:
    """The path of an upload's bytes: only the suffixes of its name are kept, since they tell its format."""
    found = _SUFFIXES.search(name)
    return place / f"upload{found[0].lower() if found else ''}"


def _read(place: Path, name: str) -> tuple[Document, ...]:
    """The documents in an upload, by names that do not reveal its path. Files that LaTeX includes from
    elsewhere are not read.
    """
    file = str(_file(place, name))
    selection = Selection(text=file.endswith(LATEX), secrets=True, tree=False)
    found = collect([file], selection, stdin=io.BytesIO(), progress=Silent(), offline=True)
    shown = shown_path(file)
    return tuple(replace(d, path=name + d.path.removeprefix(shown)) for d in found.documents)


def _served(document: Document, now: int) -> Entry:
    digest = hashlib.sha256(document.path.encode("utf-8", "surrogateescape") + bytes(1))
    for piece in document.pieces():
        digest.update(piece.encode("utf-8", "surrogatepass"))
    facts = Facts(f"file-{digest.hexdigest()[:24]}", document.path, document.size, now, "user_data")
    return Entry(facts, (document,), "served")
