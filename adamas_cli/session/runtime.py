"""A model with its tokenizer and the user's settings: opened once, for any number of documents."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adamas_cli import models
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.shared import load_chosen
from adamas_cli.errors import UsageError
from adamas_cli.models.configs import read_config, require_known_code
from adamas_cli.models.device import choose_device, require_gpus, wants_cuda
from adamas_cli.models.shape import read_shape
from adamas_cli.planning.decision import decide
from adamas_cli.planning.facts import config_facts, machine_facts
from adamas_cli.planning.joining import require_joinable
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.layout import Layout
from adamas_cli.prompt.template import Frame, frame, load_template
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.session.listener import Listener
from adamas_cli.session.schema import Grammars, Schema
from adamas_cli.settings import OriginSettings
from adamas_cli.sources.quotes import FIELD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adamas_cli.planning.needs import Bytes
    from adamas_cli.progress import Progress
    from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
    from adamas_cli.store.settings import StoreSettings


@dataclass
class Runtime:
    """A model that `resolve` found; its weights are in memory after `load`."""

    files: models.ModelFiles
    tokenizer: Tokenizer
    chat: ChatTemplateFile
    model: ModelSettings
    attention: DecodingSettings
    prompt: PromptSettings
    store: StoreSettings
    progress: Progress
    origins: OriginSettings = field(default_factory=OriginSettings)
    load_seconds: float = 0.0  # from the model's name to weights in memory, without downloads
    schema: Schema | None = None  # schema of all answers
    apart: bool = False  # see `DocumentSettings`
    _loaded: models.LoadedModel | None = None
    _thinking: Thinking | None = None
    _grammars: Grammars | None = None
    _noted: set[str] = field(default_factory=set)

    @classmethod
    def resolve(
        cls,
        model: ModelSettings,
        attention: DecodingSettings,
        prompt: PromptSettings,
        store: StoreSettings,
        progress: Progress,
        origins: OriginSettings | None = None,
        schema: Mapping[str, Any] | None = None,
        *,
        apart: bool = False,
    ) -> Runtime:
        """Find the model's files, downloading them if necessary, and read its tokenizer. schema: JSON schema
        for all answers. apart: see `DocumentSettings`. Raises ModelUnavailableError, and UsageError if
        attention must be collected that is not sparse, or if a schema cannot be enforced.
        """
        origins = origins or OriginSettings()
        if origins.counts and attention.attn == "full":
            raise UsageError(
                "`sources` shows what sparse attention chose to read: leave out `attn` full, or `sources`"
            )
        require_gpus(model.device, model.gpus)
        files = models.resolve(model.model, **model.finding, progress=progress)
        require_known_code(files.directory, trust_remote_code=model.trust_remote_code)
        if apart:
            shape = read_shape(files.directory, trusts=model.trust_remote_code)
            require_joinable(shape, model, attention, prompt)
        begun = time.perf_counter()
        chat = ChatTemplateFile(files.texts)
        tokenizer = Tokenizer.of(files)
        seconds = time.perf_counter() - begun
        found = cls(files, tokenizer, chat, model, attention, prompt, store, progress, origins, seconds)
        found.apart = apart
        found.schema = None if schema is None else Schema(schema, found.grammars)
        if origins.cite and found.schema is not None and not found.schema.has_property(FIELD):
            raise UsageError(f"`cite` checks what a schema's answers have in `{FIELD}`, and it has none")
        return found

    @property
    def grammars(self) -> Grammars:
        """The maker of schemas for this model's answers. Raises UsageError."""
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer, lambda: self.load().stop_ids)
        return self._grammars

    def frame(self, template: str) -> Frame:
        """A template, by its name or file, in the model's chat template. Raises UsageError."""
        options = self.prompt
        return frame(
            load_template(template),
            self.chat,
            system=options.system,
            thinking=self.thinking,
            note=self.note_once,
        )

    @property
    def thinking(self) -> Thinking:
        """The user's wish about thinking, in the form that this model understands."""
        if self._thinking is None:
            options = self.prompt
            control = self.tokenizer.control_tokens
            self._thinking = Thinking.of(
                self.chat, control, wanted=options.think, tokens=options.think_tokens
            )
        return self._thinking

    def listener(self, prompt: str, max_tokens: int) -> Listener:
        """A listener for a reply of this many tokens to a prompt with this end."""
        state = self.thinking.marks.state_behind(prompt)
        return Listener(self.tokenizer, self.thinking, state, max_tokens, self.note_once)

    def note_once(self, text: str) -> None:
        """Show a note to the user, once."""
        if text not in self._noted:
            self._noted.add(text)
            self.progress.note(text)

    def layout(self, around: Frame, *, before: str | None = None) -> Layout:
        """An empty prompt to lay out documents in; before: see `Layout`."""
        return Layout(self.tokenizer, around, before=before, apart=self.apart)

    @property
    def wants_cuda(self) -> bool:
        """Whether the model will run on an NVIDIA GPU."""
        return wants_cuda(self.model.device)

    def load(self) -> models.LoadedModel:
        """The model's weights, loaded by the first call. Raises ModelUnavailableError, OutOfMemoryError,
        UsageError.
        """
        if self._loaded is None:
            begun = time.perf_counter()
            self._loaded = load_chosen(self.files, self.model, self.progress)
            self.load_seconds += time.perf_counter() - begun
        return self._loaded

    @property
    def context(self) -> int:
        """The tokens of `ctx_size` or of the model; this loads its weights. Raises UsageError for more than
        the model's.
        """
        available = self.load().context_length
        chosen = self.prompt.ctx_size
        if chosen > available:
            raise UsageError(
                f"`ctx_size` {chosen:,} is more than the model's context of {available:,} tokens"
            )
        return chosen or available

    @property
    def decoding(self) -> AttentionSettings:
        """How answer tokens attend: sparsely at any length if attention is to be collected."""
        return AttentionSettings.of(self._asked)

    def memory(self, context: int) -> Bytes:
        """The memory on a GPU with this many tokens. Raises OutOfMemoryError if it has less."""
        config = read_config(self.files.directory, trust_remote_code=self.model.trust_remote_code)
        machine = machine_facts(self.model.device)
        model = config_facts(config, self.files.directory, self.files.gguf)
        tokens = context if self.apart else min(context, model.shape.context)
        needs = decide(model, machine, self.model, self._asked, tokens).bytes
        advice = "Use a smaller model, `quantization`, fewer documents or `device` cpu."
        device = str(choose_device(self.model.device))
        needs.require(machine.memory, device, self.files.name, advice, machine.host)
        return needs

    @property
    def _asked(self) -> DecodingSettings:
        """The settings, with sparse attention if attention is to be collected."""
        return replace(self.attention, attn="adamas") if self.origins.counts else self.attention
