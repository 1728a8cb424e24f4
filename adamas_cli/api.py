"""The Python interface: a model, documents that it has read, and answers about them.

    import adamas_cli

    model = adamas_cli.load("smollm2-135m")
    with model.open("book.txt") as book:
        print(book.ask("Who is Mr. Darcy?").text)

Everything here is what `adamas ask` uses. `docs/scripting.md` shows more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import fields
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import UsageError
from adamas_cli.progress import Progress, Silent
from adamas_cli.quiet import prepare_environment
from adamas_cli.settings import (
    DecodingSettings,
    DocumentSettings,
    ModelSettings,
    OriginSettings,
    PromptSettings,
)
from adamas_cli.store.settings import StoreSettings

# Everything else is imported where it is used: those modules read their environment on import.
if TYPE_CHECKING:
    from adamas_cli.session.answer import Answer, Told
    from adamas_cli.session.documents import OpenDocuments
    from adamas_cli.session.runtime import Runtime

QUESTION_ROOM = 512  # tokens reserved for a question; a longer one lets the cache grow


class Documents:
    """Documents for a model, which reads them at the first question. A context manager: leaving it waits
    until they are on disk for the next time.
    """

    def __init__(self, opened: OpenDocuments) -> None:
        self._opened = opened

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._opened.__exit__(kind, *error)

    @property
    def tokens(self) -> dict[str, int]:
        """The number of tokens of each document, by path."""
        return {document.path: document.tokens for document in self._opened.layout.documents}

    def stream(self, question: str, sampling: Sampling | None = None) -> Iterator[Told]:
        """The events while a question is answered: `Prefill` while the model reads, `Token` and `Text` while
        it answers, `Done` last. Raises UsageError for an empty question.
        """
        if not question.strip():
            raise UsageError("the question is empty")
        return self._opened.ask(question, sampling or Sampling())

    def ask(self, question: str, sampling: Sampling | None = None) -> Answer:
        """The whole answer to a question, with its figures in `done`."""
        from adamas_cli.session.answer import listen

        return listen(question, self.stream(question, sampling), lambda event: None)


class Model:
    """A model that answers questions about any number of `Documents`, in any order."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def name(self) -> str:
        """The model's name."""
        return self._runtime.files.name

    @property
    def context(self) -> int:
        """The number of tokens that it can read."""
        return self._runtime.context

    def open(self, *paths: str | PathLike[str], text: str | None = None) -> Documents:
        """Documents from files and folders, or one from a `text`, counted and known to fit.

        Raises NothingReadableError, OverContextError, and UsageError for a path that does not exist.
        """
        from adamas_cli.documents import DEFAULT_MAX_FILE_SIZE, Selection, collect
        from adamas_cli.prompt.template import DEFAULT_TEMPLATE
        from adamas_cli.session.documents import OpenDocuments, count

        runtime, stdin = self._runtime, io.BytesIO((text or "").encode())
        sources = [fspath(path) for path in paths] + (["-"] if text is not None else [])
        if not sources:
            raise UsageError("give paths or a text")
        selection = Selection(max_file_size=DEFAULT_MAX_FILE_SIZE)
        found = collect(
            sources,
            selection,
            stdin=stdin,
            progress=runtime.progress,
            keep_converted=runtime.store.writes,
            offline=runtime.model.offline,
        ).documents
        around = runtime.frame(runtime.prompt.template or DEFAULT_TEMPLATE)
        layout = count(runtime, around, found, QUESTION_ROOM)
        return Documents(OpenDocuments(runtime, around, layout, room=QUESTION_ROOM, limit=runtime.context))


def load(
    model: str | None = None,
    *,
    store: StoreSettings | None = None,
    origins: OriginSettings | None = None,
    progress: Progress | None = None,
    schema: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> Model:
    """A model by its short name, file, folder or name on the Hugging Face hub; None for the default.

    chosen: any field of `ModelSettings`, `DecodingSettings`, `DocumentSettings` and `PromptSettings`, such as
    device="cpu", attn="full" or max_tokens=200. progress: receives reports about slow work; None for no
    reports. schema: a JSON schema that all answers satisfy. Raises ModelUnavailableError, UsageError, and
    TypeError for an unknown field.
    """
    groups = (ModelSettings, DecodingSettings, DocumentSettings, PromptSettings)
    known = {field.name: group for group in groups for field in fields(group)}
    values: dict[type, dict[str, Any]] = {group: {} for group in groups}
    for name, value in chosen.items():
        if name not in known:
            raise TypeError(f"load() has no setting {name!r}; there are: {', '.join(sorted(known))}")
        values[known[name]][name] = value
    named = ModelSettings(model, **values[ModelSettings])
    prepare_environment(silent=True, offline=named.offline)
    from adamas_cli.session.runtime import Runtime

    runtime = Runtime.resolve(
        named,
        DecodingSettings(**values[DecodingSettings]),
        PromptSettings(**values[PromptSettings]),
        store or StoreSettings(),
        progress or Silent(),
        origins,
        schema,
        apart=DocumentSettings(**values[DocumentSettings]).apart,
    )
    runtime.load()
    return Model(runtime)
