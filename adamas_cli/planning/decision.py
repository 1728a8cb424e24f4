"""How a model will run, decided once from facts, for the printed plan and for the engine.

Imports neither torch nor a device: their facts are gathered in `facts.py` before weights are loaded, and by
the engine from the loaded model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.machine.products import Products
from adamas_cli.models.device import number_format
from adamas_cli.models.quantization import PACKAGES, QUANTIZED_BITS, kept_as, packs, require_quantizable
from adamas_cli.models.shape import ITEM_BYTES, ModelShape, WeightCount
from adamas_cli.planning.choice import (
    OTHER_CHUNK,
    PREFILL_CHUNK,
    SPARSE_READING_FROM,
    auto_min_context,
    budget_for,
)
from adamas_cli.planning.needs import Bytes, cpu_bytes, gpu_bytes
from adamas_cli.planning.shares import shape_share, weight_share
from adamas_cli.settings import CacheDType, DecodingSettings, KvPlace, ModelSettings

SMALLER: tuple[CacheDType, ...] = ("16", "int8", "int4")  # cache formats, the most exact first


@dataclass(frozen=True)
class Backends:
    """The backends that can compute sparse steps on a kind of device (`cpu`, `cuda`), the fastest first, each
    with its obstacle in a few words, or None if it runs.
    """

    device: str
    obstacles: Mapping[str, str | None]

    def pick(self, name: str) -> tuple[str, str | None]:
        """The backend of that name, or for `auto` the fastest that runs, with one line if that is not the
        first. Raises UsageError if a named one cannot run.
        """
        if name != "auto":
            if reason := self.obstacles[name]:
                raise UsageError(f"the {name} backend cannot run: {reason}. Use `backend` auto.")
            return name, None
        chosen = next(backend for backend, reason in self.obstacles.items() if reason is None)
        passed = [f"no {other}: {why}" for other, why in self.obstacles.items() if why]
        if chosen == next(iter(self.obstacles)):
            return chosen, None
        return chosen, f"the {chosen} backend computes sparse attention ({'; '.join(passed)})"


@dataclass(frozen=True)
class Machine:
    """A device. bfloat16: whether it multiplies that natively. packing: why weights cannot be packed on it,
    None if they can. memory: bytes available for a model. capability: of a GPU. installed: packages that
    quantize. products: how a CPU's tokens meet packed weights, None for their number format. host: bytes of
    free host memory beside a GPU's.
    """

    backends: Backends
    bfloat16: bool
    packing: str | None
    memory: int
    capability: tuple[int, int] | None = None
    installed: frozenset[str] = frozenset()
    products: Products | None = None
    host: int = 0

    @property
    def device(self) -> str:
        """Its kind."""
        return self.backends.device


@dataclass(frozen=True)
class Model:
    """What the files of a model say. stored: how their weights are quantized, as in the config.
    stored_bytes: the size of these if a library multiplies them, else None. blocks: bytes of weights in the
    blocks of their files, None if the files hold plain numbers.
    """

    shape: ModelShape
    weights: WeightCount
    stored: Mapping[str, object] | None
    stored_bytes: int | None
    blocks: int | None

    def share(self, count: int) -> Model:
        """The largest share over this many GPUs. Raises ModelUnavailableError if heads cannot be split."""
        weights = weight_share(self.weights, self.shape.vocabulary, count)
        part = weights.bytes(1) / max(1, self.weights.bytes(1))
        blocks = None if self.blocks is None else int(self.blocks * part)
        return replace(self, shape=shape_share(self.shape, count), weights=weights, blocks=blocks)


@dataclass(frozen=True)
class Attention:
    """How documents are read and answers decoded. backend: of sparse steps; budget: tokens of a step; both
    are None with full attention. reason: one line if the backend is not the fastest one, or if no layer would
    attend sparsely. chunk: tokens read at once. read: `dense` or `sparse`.
    """

    kind: str  # `adamas` or `full`
    backend: str | None
    reason: str | None
    budget: int | None
    dense_layers: int
    chunk: int
    read: str = "dense"

    @property
    def sparse(self) -> bool:
        """Whether answers are decoded with sparse attention."""
        return self.kind == "adamas"


@dataclass(frozen=True)
class Decision:
    """Everything decided before weights are loaded. quantization: as in `LoadedModel`. packed: whether its
    matrices are in few bits, as in the file or packed for a CPU. positions: one line on how they are rotated,
    if that depends on the length of the text. cache_dtype: the format of keys and values. smaller: the format
    in which they would fit the memory if they do not, None if there is none. in_bytes: as in `LoadedModel`.
    gpus: over how many the model is split; bytes are those of one.
    """

    device: str
    dtype: str
    quantization: str
    packed: bool
    attention: Attention
    bytes: Bytes
    positions: str | None = None
    cache_dtype: CacheDType = "auto"
    smaller: CacheDType | None = None
    in_bytes: bool = False
    gpus: int = 1

    @property
    def kv(self) -> str:
        """Where keys and values are, except the first layers' on a GPU: `gpu` or `host`."""
        return "gpu" if self.device == "cuda" and not self.bytes.host else "host"


def decide(
    model: Model, machine: Machine, loading: ModelSettings, decoding: DecodingSettings, tokens: int
) -> Decision:
    """Decide for this many tokens, including the answer's.

    Raises UsageError if the machine cannot do what is requested, and ModelUnavailableError if Adamas is
    requested and does not support the model, or if it cannot be split over as many GPUs as requested.
    """
    if loading.gpus > 1:
        model = model.share(loading.gpus)
    dtype = number_format(loading.dtype, machine.bfloat16)
    if loading.quantization in PACKAGES:
        require_quantizable(
            loading.quantization, machine.device, dtype, machine.capability, machine.installed
        )
    quantized = model.stored_bytes is not None
    packed = not quantized and packs(
        loading.quantization,
        loading.dtype,
        machine.device,
        machine.packing,
        in_blocks=model.blocks is not None,
    )
    in_bytes = False
    if packed and loading.dtype == "auto" and machine.products is not None:
        dtype, in_bytes = machine.products.dtype, machine.products.in_bytes
    shape, item = model.shape, ITEM_BYTES[dtype]
    attention = decide_attention(
        decoding,
        tokens,
        machine.backends,
        obstacle=shape.obstacle,
        dense=shape.dense_on(machine.device),
        dense_reading=shape.dense_reading,
        unmeasured=shape.unmeasured,
        token_bytes=shape.token_bytes(item),
    )
    coded_from = attention.dense_layers if attention.sparse else None

    def on_cpu(kept: CacheDType) -> Bytes:
        needs = cpu_bytes(
            shape,
            model.weights,
            tokens=tokens,
            item=item,
            coded_from=coded_from,
            reads_sparsely=attention.read == "sparse",
            packed=packed,
            blocks=model.blocks,
            kept=kept,
        )
        return needs if model.stored_bytes is None else needs.with_weights(model.stored_bytes)

    def on_gpu(hosted_from: int | None, kept: CacheDType) -> Bytes:
        needs = gpu_bytes(
            shape,
            model.weights,
            tokens=tokens,
            item=item,
            coded_from=coded_from,
            reads_sparsely=attention.read == "sparse",
            chunk=attention.chunk,
            bits=QUANTIZED_BITS.get(loading.quantization),
            blocks=model.blocks if packed else None,
            hosted_from=hosted_from,
            kept=kept,
            budget=attention.budget,
        )
        return needs if model.stored_bytes is None else needs.with_weights(model.stored_bytes)

    def needed(kept: CacheDType) -> Bytes:
        if machine.device != "cuda":
            return on_cpu(kept)
        return place(decoding, partial(on_gpu, kept=kept), machine.memory, machine.host, shape.obstacle)

    kept_in = cache_format(decoding.cache_dtype, in_bytes=in_bytes)
    needs = needed(kept_in)
    smaller: CacheDType | None = None
    packs_cache = machine.device != "cuda" or machine.backends.obstacles.get("triton") is None
    if packs_cache and not needs.fits(machine.memory, machine.host):
        smaller = next((kept for kept in SMALLER if needed(kept).fits(machine.memory, machine.host)), None)
    return Decision(
        machine.device,
        dtype,
        kept_as(model.stored, loading.quantization, quantized=quantized, packed=packed),
        packed,
        attention,
        needs,
        shape.rotation.line(tokens),
        kept_in,
        smaller,
        in_bytes,
        loading.gpus,
    )


def place(
    settings: DecodingSettings,
    needs: Callable[[int | None], Bytes],
    memory: int,
    host: int,
    obstacle: str | None,
) -> Bytes:
    """What a GPU needs with keys and values where the settings want them; `auto` takes host memory if the
    GPU's does not suffice, and both together do. needs: for the first layer in host memory, or None; memory,
    host: free bytes; obstacle: why Adamas does not support the model, whose cache then is not its own.

    Raises UsageError if the host's memory is requested and cannot be used.
    """
    there = needs(None)
    if settings.kv == "host" and obstacle is not None:
        raise UsageError(f"`kv` host does not serve this model: {obstacle}. Use `kv` gpu.")
    if settings.kv == "host":
        return needs(settings.dense_layers)
    if settings.kv == "gpu" or obstacle is not None or there.total <= memory:
        return there
    hosted = needs(settings.dense_layers)
    return hosted if hosted.fits(memory, host) else there


def decide_attention(
    settings: DecodingSettings,
    tokens: int,
    backends: Backends,
    *,
    obstacle: str | None,
    token_bytes: int,
    dense: str | None = None,
    dense_reading: str | None = None,
    unmeasured: str | None = None,
) -> Attention:
    """The part of the decision about attention. obstacle: why Adamas does not support the model; dense: why
    none of its layers would attend sparsely; unmeasured: why they do so only on request; dense_reading: why
    none would read sparsely. token_bytes: of a token's keys and values in a layer.
    """
    check_cache(settings.cache_dtype, backends.device, backends.obstacles.get("triton"))
    check_place(settings.kv, backends.device)
    chunk = settings.prefill_chunk or PREFILL_CHUNK.get(backends.device, OTHER_CHUNK)
    read = decide_reading(settings, tokens, backends.device, obstacle or dense_reading)
    full = Attention("full", None, None, None, settings.dense_layers, chunk, read)
    reason = obstacle or dense
    if reason is not None and settings.attn == "adamas":
        raise UnservedError(reason)
    if obstacle is not None or settings.attn == "full":
        return full
    if dense is not None:
        return replace(full, reason=f"full attention: {dense}")
    check_error(settings)
    backend, reason = backends.pick(settings.backend)
    budget = settings.budget or budget_for(tokens, bounded=settings.error > 0)
    if settings.attn == "auto" and tokens < auto_min_context(backend, budget, token_bytes):
        return full
    if settings.attn == "auto" and unmeasured is not None:
        return replace(full, reason=f"full attention: {unmeasured}")
    return Attention("adamas", backend, reason, budget, settings.dense_layers, chunk, read)


def decide_reading(settings: DecodingSettings, tokens: int, device: str, obstacle: str | None) -> str:
    """How a document is read in a context of this many tokens, `dense` or `sparse`. obstacle: why the model
    cannot read sparsely. Raises ModelUnavailableError if that is requested nevertheless.
    """
    if settings.read == "sparse" and obstacle is not None:
        raise ModelUnavailableError(
            f"sparse reading does not serve this model: {obstacle}. Use `read` dense."
        )
    if settings.read != "auto":
        return settings.read
    gains = tokens >= SPARSE_READING_FROM.get(device, math.inf)
    return "sparse" if gains and obstacle is None else "dense"


def cache_format(asked: CacheDType, *, in_bytes: bool) -> CacheDType:
    """The format of keys and values for a requested one. in_bytes: see `LoadedModel`; what such a model
    computes in float32 is no more exact than 16 bits, and those are read in less time.
    """
    return "16" if asked == "auto" and in_bytes else asked


def check_cache(kept: CacheDType, device: str, triton: str | None = None) -> None:
    """Raises UsageError if a device does not support this format of keys and values. triton: why Triton does
    not run there, None if it does.
    """
    if kept == "auto" or device == "cpu" or (device == "cuda" and triton is None):
        return
    reason = "" if triton is None else f" ({triton})"
    raise UsageError(
        f"`cache_dtype` {kept} needs a CPU or a GPU with Triton, and the model is on {device}{reason}. "
        "Use `cache_dtype` auto."
    )


def check_place(kv: KvPlace, device: str) -> None:
    """Raises UsageError if a device cannot have keys and values there."""
    if kv == "gpu" and device != "cuda":
        raise UsageError(f"`kv` gpu needs an NVIDIA GPU, and the model is on {device}. Use `kv` auto.")


def check_error(settings: DecodingSettings) -> None:
    """Raises UsageError if the error bound is invalid."""
    if not 0 <= settings.error < 1:
        raise UsageError("`error` must be a share below 1, such as 0.0005, or 0 for none.")
    if settings.error > 0 and settings.scorer != "dot":
        raise UsageError(f"`error` needs `scorer` dot: {settings.scorer} does not estimate shares.")


class UnservedError(ModelUnavailableError):
    """Adamas does not support the attention of a model, for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Adamas attention does not serve this model: {reason}. Use `attn` full.")
        self.reason = reason
