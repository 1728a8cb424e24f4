"""From documents and flags to a plan, without a weight of the model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adamas_cli.engine.choice import OTHER_CHUNK, PREFILL_CHUNK, auto_min_context, budget_for
from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.models import ModelFiles, resolve
from adamas_cli.models.device import device_kind, dtype_name
from adamas_cli.models.load import kept_as, packs
from adamas_cli.models.prequantized import stored_bytes, stored_quantization
from adamas_cli.models.resolve import require_here
from adamas_cli.models.shape import ITEM_BYTES, ModelShape, WeightCount, count_weights, read_shape
from adamas_cli.planning.memory import Needs, needs_on_cpu
from adamas_cli.planning.plan import Counted, Plan, Times
from adamas_cli.planning.reuse import kept_tokens
from adamas_cli.planning.speed import Speed, computing_device, recall, remember, speed_key
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, frame, load_template
from adamas_cli.prompt.tokens import Tokenizer

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.progress import Progress
    from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
    from adamas_cli.store.settings import StoreSettings


@dataclass(frozen=True)
class Flags:
    """What the user's command line says."""

    model: ModelSettings
    attention: DecodingSettings
    prompt: PromptSettings
    store: StoreSettings


def foresee(
    documents: Sequence[Document],
    questions: Sequence[str],
    flags: Flags,
    progress: Progress,
    *,
    calibrates: bool | None,
) -> Plan:
    """The plan of these questions about these documents. calibrates: time the model's shape now; None does
    where no timings are known.

    Raises ModelUnavailableError, and UsageError for a wrong template or `ctx_size`.
    """
    chosen = flags.model
    require_here(chosen.model, dtype=chosen.dtype, device=chosen.device)
    files = resolve(
        chosen.model, dtype=chosen.dtype, device=chosen.device, offline=chosen.offline, progress=progress
    )
    return _Foresight(files, flags, progress).plan(documents, questions, calibrates)


def _is_whole(known: Speed | None) -> bool:
    """Whether there are timings of both reading and answering."""
    return known is not None and bool(known.readings) and bool(known.decodings)


class _Foresight:
    """What is known of a model and the way that it will run, before it is loaded."""

    def __init__(self, files: ModelFiles, flags: Flags, progress: Progress) -> None:
        self.files, self.flags, self.progress = files, flags, progress
        self.shape: ModelShape = read_shape(files.directory)
        self.count: WeightCount = count_weights(files.directory)
        self.kind = device_kind(flags.model.device)
        self.dtype = dtype_name(flags.model.dtype, self.kind)
        stored = stored_quantization(files.directory)
        self.stored_bytes = stored_bytes(files.directory)
        quantized = self.stored_bytes is not None
        asked = flags.model.quantization
        self.packed = packs(asked, flags.model.dtype, self.kind) and not quantized
        self.quantization = kept_as(stored, asked, quantized=quantized, packed=self.packed)

    def plan(self, documents: Sequence[Document], questions: Sequence[str], calibrates: bool | None) -> Plan:
        layout, counted, asked = self._counted(documents, questions)
        kept = 0
        if counted.fits and not self.flags.store.off:
            kept = self._kept(layout)
        tokens = min(counted.total, counted.context)
        sparse = self._decodes_sparsely(tokens)
        needs, available = self._needs(tokens, sparse)
        speed = self._speed(sparse, calibrates)
        return Plan(
            model=self.files.name,
            device=self.kind,
            attention="adamas" if sparse else "full",
            counted=counted,
            kept=kept,
            needs=needs,
            available=available,
            over_budget=self._over_budget(layout, asked),
            times=None if speed is None else self._times(speed, counted, kept, needs, sparse),
        )

    def _counted(
        self, documents: Sequence[Document], questions: Sequence[str]
    ) -> tuple[Layout, Counted, int]:
        """The documents laid out, all that is counted, and the tokens of the longest question."""
        prompt = self.flags.prompt
        if prompt.ctx_size > self.shape.context:
            raise UsageError(
                f"`ctx_size` {prompt.ctx_size:,} is more than the model's context of "
                f"{self.shape.context:,} tokens"
            )
        tokenizer = Tokenizer.from_directory(self.files.directory)
        template = load_template(prompt.template or DEFAULT_TEMPLATE)
        around = frame(
            template,
            ChatTemplateFile(self.files.directory),
            system=prompt.system,
            think=prompt.think,
            note=self.progress.note,
        )
        layout = Layout(tokenizer, around)
        before = layout.total
        with self.progress.task("counting tokens", None, "tokens") as advance:
            for document in documents:
                layout.add(document, advance)
        asked = max(len(question_ids(tokenizer, around, text)) for text in questions or [""])
        context = prompt.ctx_size or self.shape.context
        return layout, Counted(layout.documents, before + asked, prompt.max_tokens, context), asked

    def _over_budget(self, layout: Layout, asked: int) -> OverContextError | None:
        budget = self.flags.prompt.token_budget
        if budget is not None:
            try:
                layout.keep_budget(asked, budget)
            except OverContextError as error:
                return error
        return None

    def _kept(self, layout: Layout) -> int:
        return kept_tokens(
            self.files,
            layout.fit(0, 0, layout.total),
            device=self.kind,
            dtype=self.dtype,
            quantization=self.quantization,
            chunk=self._chunk,
            kept=self.flags.store.dtype,
            trust_remote_code=self.flags.model.trust_remote_code,
        )

    @property
    def _chunk(self) -> int:
        return self.flags.attention.prefill_chunk or PREFILL_CHUNK.get(self.kind, OTHER_CHUNK)

    def _decodes_sparsely(self, tokens: int) -> bool:
        chosen = self.flags.attention
        if chosen.attn != "auto":
            return chosen.attn == "adamas"
        backend = chosen.backend if chosen.backend != "auto" else {"cuda": "triton"}.get(self.kind, "cpu")
        each = 2 * self.shape.kv_heads * self.shape.head_dim * ITEM_BYTES[self.dtype]
        return tokens >= auto_min_context(backend, chosen.budget or budget_for(tokens), each)

    def _needs(self, tokens: int, sparse: bool) -> tuple[Needs, int]:
        """What is needed, and the bytes that there are for it."""
        if self.kind == "cuda":
            return self._needs_on_gpu(tokens, sparse)
        from adamas_cli.machine.memory import memory

        needs = needs_on_cpu(
            self.shape,
            self.count,
            self.files.fingerprint,
            tokens=tokens,
            dtype=self.dtype,
            packed=self.packed,
            sparse=sparse,
            dense_layers=self.flags.attention.dense_layers,
        )
        if self.stored_bytes is not None:
            needs = replace(needs, weights=self.stored_bytes, exact=True)
        return needs, memory().available

    def _needs_on_gpu(self, tokens: int, sparse: bool) -> tuple[Needs, int]:
        """As `ask` plans it, which takes torch."""
        import torch
        from transformers import AutoConfig

        from adamas_cli.engine.plan import plan_memory
        from adamas_cli.machine.gpus import gpus

        config = AutoConfig.from_pretrained(
            self.files.directory,
            local_files_only=True,
            trust_remote_code=self.flags.model.trust_remote_code,
        )
        found = plan_memory(
            config,
            context=tokens,
            chunk=self._chunk,
            dtype=getattr(torch, self.dtype),
            quantization=self.flags.model.quantization,
            sparse=sparse,
            dense_layers=self.flags.attention.dense_layers,
            weights=self.stored_bytes,
        )
        there = gpus()
        return (
            Needs(found.weights, found.cache, found.codes, found.work, exact=True),
            there[0].memory if there else 0,
        )

    def _speed(self, sparse: bool, calibrates: bool | None) -> Speed | None:
        """What is known of the speed; on a GPU nothing until a question was asked there, since its kernels
        compile for longer than a plan may take.
        """
        key = speed_key(
            self.files.fingerprint,
            dtype=self.dtype,
            quantization=self.quantization,
            device=computing_device(self.kind, self.flags.model.threads),
            attention="adamas" if sparse else "full",
        )
        known = recall(key)
        if calibrates is False or self.kind != "cpu" or (_is_whole(known) and calibrates is None):
            return known
        from adamas_cli.engine.attention import AttentionSettings
        from adamas_cli.planning.calibration import calibrate

        with self.progress.task("timing this machine", None, "layers"):
            readings, decodings = calibrate(
                self.files,
                self.count,
                dtype=self.dtype,
                packed=self.packed,
                threads=self.flags.model.threads,
                attention=AttentionSettings(
                    # The few layers stand for all of them, which are sparse but for the first ones.
                    "adamas" if sparse else "full",
                    dense_layers=0,
                    backend=self.flags.attention.backend,
                ),
                chunk=self._chunk,
                progress=self.progress,
            )
        return remember(key, readings, decodings, calibrated=True)

    def _times(self, speed: Speed, counted: Counted, kept: int, needs: Needs, sparse: bool) -> Times | None:
        shape = self.shape
        pair = 4 * shape.layers * shape.heads * shape.head_dim
        prompt = min(counted.prompt, counted.context - counted.answer)
        reading = speed.prefill_seconds(kept, prompt, pair / (2 * max(1, self.count.computing)))
        item = ITEM_BYTES[self.dtype]
        read = (
            shape.code_bytes(1, self.flags.attention.dense_layers) if sparse else shape.cache_bytes(1, item)
        )
        step = speed.step_seconds(prompt, read / max(1, needs.weights))
        if reading is None or step is None:
            return None
        source = "calibration" if speed.calibrated else "earlier runs"
        return Times(reading, step * counted.answer, 1 / step, source)
