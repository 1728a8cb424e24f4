"""The memory that a model needs with a given number of tokens in its cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adamas_cli.errors import OutOfMemoryError
from adamas_cli.models.shape import COPIED_STEPS, ModelShape, WeightCount
from adamas_cli.settings import CacheDType

# Python, torch, compiled code and the tokenizer on a CPU, measured with three models.
PROGRAM = 850_000_000
# Memory in use at once on a GPU while a chunk is in an MLP, in units of its hidden and its inner size: the
# residual, its norm and the output; gate, up and their product.
HIDDEN_ALIVE, INNER_ALIVE = 3, 3
# The same while it is in a mixture's experts, for each expert that a token chooses: sorted inputs, outputs
# and their shares if weights are plain numbers; only outputs if they are in few bits.
CHOICES_ALIVE, FEW_BITS_CHOICES_ALIVE = 3, 1
LIBRARIES = 150_000_000  # workspaces of cuBLAS and cuDNN, and a captured step
PLANES = 1.03  # size of blocks' planes relative to the blocks, with scales as 8-bit integers
UNPACKED = 1 << 27  # maximum numbers of a weight unpacked at a time
# Sparse reading chooses 64 keys for 128 queries at a time, by every 8th query; it lists them as 4 bytes, and
# keeps shares of 2 bytes: of all heads up to this many, or of so many queries.
KEY_BLOCK, QUERY_BLOCK, QUERY_STRIDE = 64, 128, 8
SHARES, LEAST_QUERIES = 1 << 26, 1 << 14
STAGED = 2  # layers whose keys and values come to a GPU from host memory at a time
LISTED_BYTES = 8  # rank and position of a listed token, for each query head


@dataclass(frozen=True)
class Bytes:
    """Bytes. cache: keys and values. codes: of the keys, and means of blocks of both. work: on a CPU the
    program, on a GPU the temporary memory for reading a chunk. exact: whether the size of the weights is that
    of the weights as they will be loaded. host: of keys and values that a GPU reads from host memory; they
    are in no other number here.
    """

    weights: int
    cache: int
    codes: int
    work: int
    exact: bool = True
    host: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.codes + self.work

    @property
    def line(self) -> str:
        """A one-line description."""
        parts = {"weights": self.weights, "cache": self.cache, "codes": self.codes, "work": self.work}
        told = " + ".join(f"{_gigabytes(size)} {name}" for name, size in parts.items() if size)
        hosted = f", and {_gigabytes(self.host)} cache in host memory" if self.host else ""
        return f"{told} = {_gigabytes(self.total)}{hosted}"

    def fits(self, there: int, host: int) -> bool:
        """Whether a device has this many bytes, and the host beside it."""
        return self.total <= there and self.host <= host

    def with_weights(self, weights: int) -> Bytes:
        """The same with weights of this known size in bytes."""
        return replace(self, weights=weights, exact=True)

    def as_json(self) -> dict[str, object]:
        """The parts under their names in the plan's JSON."""
        return {
            "weights_bytes": self.weights,
            "cache_bytes": self.cache,
            "codes_bytes": self.codes,
            "program_bytes": self.work,
            "total_bytes": self.total,
            "host_bytes": self.host,
            "weights_exact": self.exact,
        }

    def require(self, there: int, device: str, what: str, advice: str, host: int = 0) -> None:
        """Raises OutOfMemoryError if `what` needs more bytes than a device has, or than are free in host
        memory.
        """
        if self.host > host:
            raise OutOfMemoryError(
                f"{what} needs {_gigabytes(self.host)} of host memory, and {_gigabytes(host)} are free. "
                f"{advice}"
            )
        if self.total > there:
            raise OutOfMemoryError(
                f"{what} needs {self.line}, and {device} has {_gigabytes(there)}. {advice}"
            )


def cpu_bytes(
    shape: ModelShape,
    count: WeightCount,
    *,
    tokens: int,
    item: int,
    coded_from: int | None,
    reads_sparsely: bool = False,
    packed: bool,
    blocks: int | None,
    kept: CacheDType = "auto",
) -> Bytes:
    """Bytes on a CPU. item: bytes of a number; kept: the cache's format. coded_from: the first layer with
    codes, None without any. packed: whether the weights' matrices are in few bits; blocks: bytes of a GGUF
    file's tensors, which are then mapped as they are. Work includes the keys and values of one layer,
    unpacked for reading.
    """
    if packed and blocks is not None:
        weights = blocks
    else:
        weights = count.packed_bytes(item) if packed else count.bytes(item)
    return Bytes(
        weights=weights,
        cache=shape.cache_bytes(tokens, item, kept) + shape.state_bytes(item),
        codes=_codes(shape, tokens, item, coded_from, reads_sparsely),
        work=PROGRAM + (0 if kept == "auto" else shape.token_bytes(item) * tokens),
        exact=not packed or blocks is not None,
    )


def _codes(shape: ModelShape, tokens: int, item: int, coded_from: int | None, reads_sparsely: bool) -> int:
    """Bytes that represent keys and values in sparse attention."""
    codes = 0 if coded_from is None else shape.code_bytes(tokens, coded_from)
    return codes + (shape.means_bytes(tokens, item) if reads_sparsely else 0)


def gpu_bytes(
    shape: ModelShape,
    count: WeightCount,
    *,
    tokens: int,
    item: int,
    coded_from: int | None,
    reads_sparsely: bool = False,
    chunk: int,
    bits: float | None,
    blocks: int | None,
    hosted_from: int | None = None,
    kept: CacheDType = "auto",
    budget: int | None = None,
    copied: int = COPIED_STEPS,
) -> Bytes:
    """Bytes on a GPU, as `cpu_bytes`. chunk: tokens read at once. bits: of a quantized weight. blocks: bytes
    of a GGUF file's tensors, if they stay in few bits. hosted_from: the first layer with keys and values in
    host memory, None without any; work includes the keys and values of the layers that come from there at a
    time, and copies of those that `copied` sparse steps with this budget choose.
    """
    away = () if hosted_from is None else shape.hosted(hosted_from)
    staged = STAGED * max((layer.row_bytes(item, kept) for layer in away), default=0) * tokens
    if away and hosted_from is not None and budget is not None:
        staged += shape.copied_bytes(tokens, item, hosted_from, budget, kept, copied)
    unpacked_rows = 0 if kept == "auto" else shape.token_bytes(item) * tokens  # of one layer
    each = CHOICES_ALIVE if blocks is None else FEW_BITS_CHOICES_ALIVE
    mixed = shape.choices * each * (shape.hidden + shape.expert_inner)
    alive = HIDDEN_ALIVE * shape.hidden + max(INNER_ALIVE * shape.inner, mixed)
    unpacked = max(UNPACKED, 2 * shape.expert_inner * shape.hidden)  # an expert is not divided
    choice = _choice_bytes(shape.heads, min(chunk, tokens), tokens) if reads_sparsely else 0
    selection = 0 if coded_from is None else shape.heads * tokens * LISTED_BYTES
    weights = count.bytes(item) if bits is None else count.quantized_bytes(item, bits)
    if blocks is not None:
        weights = int(blocks * PLANES)
    return Bytes(
        weights=weights,
        cache=shape.cache_bytes(tokens, item, kept)
        - sum(layer.cache_bytes(tokens, item, kept) for layer in away)
        + shape.state_bytes(item),
        codes=_codes(shape, tokens, item, coded_from, reads_sparsely),
        work=min(chunk, tokens) * alive * item
        + staged
        + unpacked_rows
        + selection
        + choice
        + LIBRARIES
        + (0 if blocks is None else item * unpacked),
        host=0 if hosted_from is None else shape.hosted_bytes(tokens, item, hosted_from, kept),
    )


def _choice_bytes(heads: int, chunk: int, tokens: int) -> int:
    """Bytes to choose the blocks of `tokens` keys that a layer's chunk reads."""
    blocks, sampled = tokens // KEY_BLOCK, chunk // QUERY_STRIDE
    shares = min(heads * sampled * blocks, max(SHARES, LEAST_QUERIES * blocks))
    return heads * (chunk // QUERY_BLOCK) * blocks * 4 + shares * 2


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
