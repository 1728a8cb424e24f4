"""From documents and settings to a plan, without loading the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.forecast.plan import Counted, Plan, Times
from adamas_cli.forecast.reuse import kept_tokens
from adamas_cli.forecast.speed import Speed, computing_device, recall, remember, speed_key
from adamas_cli.models import ModelFiles, resolve
from adamas_cli.models.configs import read_config, require_known_code
from adamas_cli.models.device import require_gpus
from adamas_cli.models.prequantized import require_readable, stored_quantization
from adamas_cli.models.resolve import require_here
from adamas_cli.models.shape import ITEM_BYTES
from adamas_cli.planning.choice import SPARSE_PAIR_COST
from adamas_cli.planning.decision import Decision, Model, decide, decide_reading
from adamas_cli.planning.facts import config_facts, file_facts, machine_facts
from adamas_cli.planning.joining import require_joinable
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, frame, load_template
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.prompt.tokens import Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from adamas_cli.documents import Document
    from adamas_cli.progress import Progress
    from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
    from adamas_cli.store.settings import StoreSettings


@dataclass(frozen=True)
class Settings:
    """The user's choices."""

    model: ModelSettings
    attention: DecodingSettings
    prompt: PromptSettings
    store: StoreSettings
    apart: bool = False  # see `DocumentSettings`


def forecast(
    documents: Sequence[Document],
    questions: Sequence[str],
    settings: Settings,
    progress: Progress,
    *,
    calibrates: bool | None,
) -> Plan:
    """The plan of these questions about these documents. calibrates: time the model's shape now; None does so
    if no timings are known.

    Raises ModelUnavailableError, and UsageError for a wrong template, context, backend or kind of weights.
    """
    chosen = settings.model
    require_here(chosen.model, device=chosen.device, adapter=chosen.adapter)
    files = resolve(chosen.model, **chosen.finding, progress=progress)
    return Forecast(files, settings, progress).plan(documents, questions, calibrates)


def _is_whole(known: Speed | None) -> bool:
    """Whether there are timings of both reading and answering."""
    return known is not None and bool(known.readings) and bool(known.decodings)


class Forecast:
    """Facts about a model and how it will run, before it is loaded."""

    def __init__(self, files: ModelFiles, settings: Settings, progress: Progress) -> None:
        self.files, self.settings, self.progress = files, settings, progress
        require_known_code(files.directory, trust_remote_code=settings.model.trust_remote_code)
        require_gpus(settings.model.device, settings.model.gpus)
        if settings.model.gpus > 1:
            from adamas_cli.engine.shared import require_shareable

            require_shareable(files, settings.model)
        self.machine = machine_facts(settings.model.device)
        if (stored := stored_quantization(files.directory)) is not None:
            require_readable(files.name, stored, settings.model.quantization, self.machine.device)
        self.model = file_facts(files, trusts=settings.model.trust_remote_code)
        if settings.apart:
            require_joinable(self.model.shape, settings.model, settings.attention, settings.prompt)

    def decide(self, tokens: int) -> Decision:
        """How the model will run with this many tokens."""
        model = self._on_gpu() if self.machine.device == "cuda" else self.model
        return decide(model, self.machine, self.settings.model, self.settings.attention, tokens)

    def _on_gpu(self) -> Model:
        """The weights' bytes as `ask` counts them; imports torch."""
        trusts = self.settings.model.trust_remote_code
        config = read_config(self.files.directory, trust_remote_code=trusts)
        return config_facts(config, self.files.directory, self.files.gguf)

    def plan(self, documents: Sequence[Document], questions: Sequence[str], calibrates: bool | None) -> Plan:
        """The plan of these questions about these documents; see `forecast`."""
        layout, counted, asked = self._counted(documents, questions)
        decision = self.decide(counted.total if counted.apart else min(counted.total, counted.context))
        if counted.apart:
            turned = self.model.shape.rotation.line(min(counted.positions, counted.context))
            decision = replace(decision, positions=turned)
        prompts = [ids for _, ids in layout.parts()] if counted.apart else [layout.fit(0, 0, layout.total)]
        kept = [0] * len(prompts)
        if counted.fits and not self.settings.store.off:
            kept = self._kept(prompts, decision, counted.positions)
        speed = self._speed(decision, calibrates)
        return Plan(
            model=self.files.name,
            decision=decision,
            counted=counted,
            kept=kept[0] + sum(max(0, tokens - layout.beginning) for tokens in kept[1:]),
            available=self.machine.memory,
            over_budget=self._over_budget(layout, asked),
            times=None if speed is None else self._times(speed, counted, prompts, kept, decision),
        )

    def _counted(
        self, documents: Sequence[Document], questions: Sequence[str]
    ) -> tuple[Layout, Counted, int]:
        """The documents laid out, all counts, and the tokens of the longest question."""
        prompt = self.settings.prompt
        if prompt.ctx_size > self.model.shape.context:
            raise UsageError(
                f"`ctx_size` {prompt.ctx_size:,} is more than the model's context of "
                f"{self.model.shape.context:,} tokens"
            )
        tokenizer = Tokenizer.of(self.files)
        template = load_template(prompt.template or DEFAULT_TEMPLATE)
        chat = ChatTemplateFile(self.files.texts)
        around = frame(
            template,
            chat,
            system=prompt.system,
            thinking=Thinking.of(
                chat, tokenizer.control_tokens, wanted=prompt.think, tokens=prompt.think_tokens
            ),
            note=self.progress.note,
        )
        layout = Layout(tokenizer, around, apart=self.settings.apart)
        before = layout.total
        with self.progress.task("counting tokens", None, "tokens") as advance:
            for document in documents:
                layout.add(document, advance)
        asked = max(len(question_ids(tokenizer, around, text)) for text in questions or [""])
        context = prompt.ctx_size or self.model.shape.context
        fixed = before + asked, prompt.max_tokens, context, self.settings.apart
        return layout, Counted(layout.documents, *fixed), asked

    def _over_budget(self, layout: Layout, asked: int) -> OverContextError | None:
        budget = self.settings.prompt.token_budget
        if budget is not None:
            try:
                layout.keep_budget(asked, budget)
            except OverContextError as error:
                return error
        return None

    def _kept(self, prompts: Sequence[np.ndarray], decision: Decision, tokens: int) -> list[int]:
        """The kept tokens of each prompt that is read, with this many positions in all."""
        return kept_tokens(
            self.files,
            prompts,
            device=decision.device,
            dtype=decision.dtype,
            quantization=decision.quantization,
            chunk=decision.attention.chunk,
            kept=self.settings.store.dtype,
            trust_remote_code=self.settings.model.trust_remote_code,
            turned=self.model.shape.rotation.reach(tokens),
            sparsely=[self._reading(ids, decision) == "sparse" for ids in prompts],
            cached=decision.cache_dtype,
            in_bytes=decision.in_bytes,
            gpus=decision.gpus,
        )

    def _reading(self, ids: np.ndarray, decision: Decision) -> str:
        """How a prompt is read, `dense` or `sparse`: apart from others, each as its own length decides."""
        if not self.settings.apart:
            return decision.attention.read
        obstacle = self.model.shape.obstacle or self.model.shape.dense_reading
        return decide_reading(self.settings.attention, len(ids), decision.device, obstacle)

    def _speed(self, decision: Decision, calibrates: bool | None) -> Speed | None:
        """The known speed. On a GPU, None until a question has been asked there, because its kernels compile
        for longer than a plan may take.
        """
        threads = self.settings.model.threads
        key = speed_key(
            self.files.fingerprint,
            dtype=decision.dtype,
            quantization=decision.quantization,
            device=computing_device(decision.device, threads, decision.gpus),
            attention=decision.attention.kind,
            read=decision.attention.read,
            in_bytes=decision.in_bytes,
        )
        known = recall(key)
        if calibrates is False or decision.device != "cpu" or (_is_whole(known) and calibrates is None):
            return known
        if self.model.shape.recurrent or decision.gpus > 1:  # a few layers of one process do not represent it
            return known
        from adamas_cli.engine.attention import AttentionSettings
        from adamas_cli.forecast.calibration import calibrate

        # The few layers represent all, which are sparse except the first ones.
        attention = AttentionSettings(
            decision.attention.kind, dense_layers=0, backend=decision.attention.backend or "auto"
        )
        with self.progress.task("timing this machine", None, "layers"):
            timed = calibrate(
                self.files,
                self.model.weights,
                decision,
                attention=attention,
                threads=threads,
                trust_remote_code=self.settings.model.trust_remote_code,
                progress=self.progress,
            )
        return known if timed is None else remember(key, *timed, calibrated=True)

    def _times(
        self,
        speed: Speed,
        counted: Counted,
        prompts: Sequence[np.ndarray],
        kept: Sequence[int],
        decision: Decision,
    ) -> Times | None:
        shape, attention = self.model.shape, decision.attention
        prompt = min(counted.prompt, counted.context - counted.answer)
        pair = shape.pair_operations / (2 * max(1, self.model.weights.computing))
        spans = [(kept[0], prompt)]
        if counted.apart:
            ends = [len(ids) for ids in prompts]
            # The question, a part of what is around the documents, attends to all of them.
            spans = [*zip(kept, ends, strict=True), (counted.in_documents, prompt)]
        pair *= SPARSE_PAIR_COST if attention.read == "sparse" else 1.0
        parts = [speed.prefill_seconds(start, end, pair) for start, end in spans if start < end]
        item = ITEM_BYTES[decision.dtype]
        read = (
            shape.code_bytes(1, attention.dense_layers)
            if attention.sparse
            else shape.cache_bytes(1, item, decision.cache_dtype)
        )
        step = speed.step_seconds(prompt, read / max(1, decision.bytes.weights))
        if None in parts or step is None:
            return None
        reading = sum(filter(None, parts))
        source = "calibration" if speed.calibrated else "earlier runs"
        return Times(reading, step * counted.answer, 1 / step, source)
