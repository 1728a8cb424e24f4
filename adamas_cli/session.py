"""Documents, a model and an engine put together: opened once, then asked any number of questions."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from adamas_kernels.ops import SparseSettings
from transformers import AutoConfig, PreTrainedTokenizerFast

from adamas_cli import models
from adamas_cli.answer import Text, narrate
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.engine import PREFILL_CHUNK, Engine
from adamas_cli.engine.events import Done, Event
from adamas_cli.engine.plan import MemoryPlan, plan_memory, require_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import UsageError
from adamas_cli.memory import give_back
from adamas_cli.models.device import choose_device, choose_dtype
from adamas_cli.prompt.counting import Counting
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import Frame, frame, load_template
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.reasoning import OPEN
from adamas_cli.store.document import StoredDocument

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.options import AttentionOptions, ModelOptions, PromptOptions, StoreOptions
    from adamas_cli.progress import Progress

log = logging.getLogger(__name__)

DEFAULT_TEMPLATE = "ask"
KEPT_TOKENS = 1 << 24  # ids kept from either end of the documents: more than any model's context, 64 MiB


@dataclass
class Session:
    """Documents in front of a model. The first question pays for reading them."""

    files: models.ModelFiles
    loaded: models.LoadedModel
    layout: Layout
    engine: Engine
    load_seconds: float  # from the model's name to weights in memory, a download not included
    max_tokens: int
    _tokenizer: Tokenizer
    _frame: Frame
    _unread: np.ndarray | None  # the documents' ids until they are in the cache
    _stored: StoredDocument | None
    _progress: Progress

    @classmethod
    def open(
        cls,
        documents: Sequence[Document],
        questions: Sequence[str],
        model: ModelOptions,
        attention: AttentionOptions,
        prompt: PromptOptions,
        store: StoreOptions,
        progress: Progress,
    ) -> Session:
        """Load the model and, meanwhile, count the documents; nothing runs before it is known to fit.

        Room is kept for the longest of the questions. Raises ModelUnavailableError, OverContextError, and
        UsageError for a wrong template or `--ctx-size`.
        """
        template = load_template(prompt.template or DEFAULT_TEMPLATE)
        files = models.resolve(
            model.model, dtype=model.dtype, device=model.device, offline=model.offline, progress=progress
        )
        begun = time.perf_counter()
        chat = PreTrainedTokenizerFast.from_pretrained(files.directory)
        around = frame(template, chat, system=prompt.system, think=prompt.think)
        tokenizer = Tokenizer.from_directory(files.directory)
        with Counting(Layout(tokenizer, around, KEPT_TOKENS), documents, progress) as counting:
            if choose_device(model.device).type == "cuda":
                needed = counting.wait().total + prompt.max_tokens
                progress.note(f"memory: {_memory(files, model, attention, needed).line}")
            loaded = models.load(files, **model.loading, progress=progress)
            load_seconds = time.perf_counter() - begun
            layout = counting.wait()
        context = _context(prompt.ctx_size, loaded.context_length)
        asked = max(len(question_ids(tokenizer, around, text)) for text in questions)
        ids = layout.fit(asked, prompt.max_tokens, context, truncate=prompt.on_overflow == "truncate")
        if layout.dropped:
            progress.note(
                f"left out {layout.dropped:,} of {layout.total:,} tokens, from the documents' middle"
            )
        engine = Engine(
            loaded,
            _settings(attention),
            context=len(ids) + asked + prompt.max_tokens,
            prefill_chunk=attention.prefill_chunk,
            announce=progress.note,
        )
        give_back()  # reading needs it for other sizes
        if log.isEnabledFor(logging.INFO):
            for reason in filter(None, (engine.backend_reason, engine.step_reason)):
                progress.note(reason)
        stored = None
        if not store.no_doc_cache and engine.keeps_documents:
            names = [document.path for document in layout.documents]
            stored = StoredDocument(loaded, ids, engine.chunk, store.settings, names, progress.note)
        return cls(
            files,
            loaded,
            layout,
            engine,
            load_seconds,
            prompt.max_tokens,
            tokenizer,
            around,
            ids,
            stored,
            progress,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait until the documents are on disk; not where something went wrong."""
        if kind is None and self._stored is not None:
            self._stored.finish()

    def ask(self, question: str, sampling: Sampling) -> Iterator[Event | Text]:
        """What happens while a question is answered; ends with Done."""
        ids = question_ids(self._tokenizer, self._frame, question)
        thinking = self._frame.tail.rstrip().endswith(OPEN)
        return narrate(self._events(ids, sampling), self._tokenizer.decoder(), thinking=thinking)

    def as_json(self) -> dict[str, object]:
        """What the JSON objects of all questions share."""
        sparse = self.engine.sparse
        return {
            "model": self.files.name,
            "attention": {
                "kind": self.engine.attention_kind,
                "backend": sparse.backend.name if sparse else None,
                "scorer": sparse.settings.scorer if sparse else None,
                "budget": sparse.settings.budget if sparse else None,
            },
            "documents": [
                {"path": document.path, "tokens": document.tokens} for document in self.layout.documents
            ],
            "truncated": self.layout.dropped > 0,
            "tokens_dropped": self.layout.dropped,
        }

    def _events(self, question: np.ndarray, sampling: Sampling) -> Iterator[Event]:
        begun, reused, reading = time.perf_counter(), self.engine.length, 0.0
        if self._unread is not None:
            for event in self.engine.read(self._unread, self._stored):
                if event.reused > reused:
                    reused = event.reused
                    total = len(self._unread) + len(question)
                    self._progress.note(f"reused {reused:,} of {total:,} tokens")
                yield event
            self._unread = None
            reading = time.perf_counter() - begun
        for answered in self.engine.answer(question, sampling, self.max_tokens, self.loaded.stop_ids):
            if isinstance(answered, Done):
                answered = replace(
                    answered,
                    reused_tokens=reused,
                    prefill_seconds=answered.prefill_seconds + reading,
                    first_token_seconds=answered.first_token_seconds + reading,
                )
            yield answered


def _memory(
    files: models.ModelFiles, model: ModelOptions, attention: AttentionOptions, context: int
) -> MemoryPlan:
    """What a GPU will hold. Raises OutOfMemoryError where that is more than it has."""
    config = AutoConfig.from_pretrained(
        files.directory, local_files_only=True, trust_remote_code=model.trust_remote_code
    )
    device = choose_device(model.device)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or context
    plan = plan_memory(
        config,
        context=min(context, longest),
        chunk=attention.prefill_chunk or PREFILL_CHUNK["cuda"],
        dtype=choose_dtype(model.dtype, device),
        quantization=model.quantization,
        sparse=attention.attn != "full",
        dense_layers=attention.dense_layers,
        directory=files.directory,
    )
    require_memory(
        plan, device, files.name, "Use a smaller model, --quantization, fewer documents or --device cpu."
    )
    return plan


def _context(chosen: int, available: int) -> int:
    if chosen > available:
        raise UsageError(f"--ctx-size {chosen:,} is more than the model's context of {available:,} tokens")
    return chosen or available


def _settings(attention: AttentionOptions) -> AttentionSettings:
    return AttentionSettings(
        kind=attention.attn,
        sparse=SparseSettings(budget=attention.budget or SparseSettings.budget, scorer=attention.scorer),
        dense_layers=attention.dense_layers,
        backend=attention.backend,
        budget_by_context=attention.budget is None,
    )
