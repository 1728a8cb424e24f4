"""The arguments of compiled functions: the numbers of a step, a layer's buffers, and scratch memory.

Each is a NumPy record, which compiled functions take as one pointer; arrays in it are addresses.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from adamas_kernels.contract import AnyCache, LayerCache
from adamas_kernels.cpu.build import distinct, njit
from adamas_kernels.cpu.floats import ROW_KINDS, STORED, Float32, RowKind
from adamas_kernels.cpu.lanes import LANES
from adamas_kernels.reference import CODES_PER_WORD

DENSE_SEGMENT = 512  # tokens of one KV head per task, in layers that attend to all tokens
DENSE_QUERIES = 8  # most queries that share one read of a value there
SEGMENT = 2048  # tokens of one KV head per task elsewhere; the tasks of a step run on all threads
REGION = SEGMENT + LANES  # stride between segments' ranks: a power of two would cause L1 conflicts
GROUPS_PER_CHOICE = 4  # with more, fewer tokens pass the threshold, but finding it takes longer
# Facts about each query, float32: score per unit of rank, offset of the score, and the threshold of ranks.
# int32, for a sum of powers of 2, see `shares.py`: the highest bin, and two sums over sinks and recents.
UNIT, OFFSET, THRESHOLD, TOP, HIGH, LOW = range(6)
FACTS = 6
MANY = 1 << 40  # the length of arrays whose end the caller knows


def _record(integers: str, reals: str = "") -> np.dtype:
    return np.dtype([(n, np.int64) for n in integers.split()] + [(n, np.float64) for n in reals.split()])


# One per sequence of a batch, all with the same tensors. Strides count numbers; a tensor's address is that of
# its first element. `room`, the segments of the longest sequence, and `peak_room`, the most peaks of a query,
# determine the layout of scratch memory. tally_n: stride between new tokens' tallies, 0 if all share one.
# least_share: of an attended token, an exponent in units, 0 if the whole budget is attended to.
# window: see `Softmax`, 0 for none; ring: rows of the layer's buffers if they are a ring, else 0.
# sink_scores: learned sinks, float32 [H], or 0.
STEP = _record(
    "batch kv_heads group new dim dim_v size length budget sinks recents manhattan compensated least_share "
    "segments groups room peak_room query query_b query_h query_n key key_b key_h key_n value value_b "
    "value_h value_n out out_b out_h out_n lse tally tally_b tally_row tally_n rope window ring sink_scores",
    "scaling query_edge softcap",
)
LAYER = _record(
    "keys keys_b keys_h keys_n values values_b values_h values_n codes codes_b codes_h codes_w "
    "scales scales_b scales_h value_sum mean edge balance noise centre"
)
# A norm of a float32 vector, written to `out` and, if `sum` is an address, added to the vector there. step:
# stride between the weights, and biases, of heads. centred: a LayerNorm.
NORM = _record("x weight bias step out sum size centred", "eps")
# In-place operations on queries and keys before use: clipped to `clip` unless it is 0, like values; norms of
# each head, the addresses of a NORM or 0, before the rotation or, with norms_last, after it; rotation of the
# first `rotated` coordinates by cos and sin, float32 [new, step], one number for two coordinates, which are
# half of `rotated` apart or, with pairs, neighbours.
ROPE = _record("cos sin step query_norm key_norm norms_last rotated pairs", "clip")
# A chunk of queries [H, new, D] that attend causally to keys and values [K, past + new, D], see `prefill.py`.
# The current range of keys: `count` tiles from tile `first` on, packed to `packed_keys` and `packed_values`,
# `room` tiles per KV head; `last` is set for the last range. highest, sums: float32 [H, rows], sum: float32
# [H, rows, D_v], so far. window: as in STEP.
FLASH = _record(
    "query query_h query_n key key_h key_n value value_h value_n out out_h out_n kv_heads group new past "
    "dim dim_v packed_keys packed_values room first count last rows highest sums sum window",
    "scaling softcap",
)
# The blocks that a chunk's query blocks read, see `reading.py`: chosen, bytes [H, query_blocks, blocks].
READ = _record("chosen query_blocks blocks", "tolerance")
# One stage of a program: `tasks` calls of a function with the addresses of three records, see `tasks.py`.
STAGES = _record("function tasks first second third")
# A run of a program: its `count` STAGES, as many counters, and the address of a count of threads so far.
RUN = _record("stages count counters threads")
# A weight in blocks, see `rows.py`, to multiply by `vectors` vectors, `x_step` bytes apart, with the compiled
# `function` of its type, or with `several` for TILE at a time. The products, plus a float32 bias if there is
# one, times `factor`, are written or (add) added to out, `out_step` bytes apart, `share` rows per task.
# rounded: whether the functions take rounded vectors.
PRODUCT = _record(
    "function several data row_bytes blocks rounded rows bias vectors x_step out out_step add share tasks",
    "factor",
)
# Rows of float32 to round, see `rounding.py`: each has `numbers` numbers, `blocks` blocks and `tasks` tasks.
# raised: what is added to each integer, without its sums.
ROUNDING = _record("x x_step numbers out out_step blocks tasks raised")
# The part of an MLP before its last product, for each of `slots` experts, or for `vectors` vectors and one
# expert: out, float32 [slots or vectors, out_step], with `rows` numbers written, `share` per task. gate, up:
# addresses of PRODUCTs, gate 0 for none; an expert's rows begin `step` after those of the previous one, and
# up's `up_at` after the gate's, unless they alternate. chosen: the experts, int32 [slots], or 0 for only the
# first; scale: the address of a float32 that multiplies all, or 0. kind, alpha, limit, shift: see `inner.py`.
INNER = _record(
    "gate up up_at step alternating rows vectors out out_step chosen scale kind slots share tasks",
    "alpha limit shift",
)
# The last products of chosen experts, summed with their shares: `rows` outputs, `share` per task.
MIXTURE = _record(
    "product rows chosen shares slots inner inner_step rounded rounded_step out add share", "factor"
)
# From a router's logits to the chosen experts, int32, and their shares, float32, see `mixture.py`. gate: the
# address of a logit whose sigmoid is written to `scale`, or 0.
ROUTE = _record(
    "logits correction experts slots scoring normalized groups kept_groups chosen shares gate scale",
    "factor tolerance",
)
# Rows of blocks to unpack to rows of numbers, or to quantize from them, `share` rows per task.
ROWS = _record("data row_bytes blocks rows numbers stride share")
# A weight in blocks, [outputs, blocks of its type], and `rows` rounded rows to multiply it by, see
# `strips.py`: out, float32 [rows, outputs].
STRIPS = _record("data row_bytes blocks outputs rounded rounded_step rows out out_step")
# Rows of numbers of one format between products, see `between.py`: strides count numbers; offset: whether
# 1 is added to a norm's weight.
BETWEEN = _record("x x_n x_h other other_n sines out out_n out_h rows size heads offset", "eps")
CHUNK = _record(
    "batch heads count dim size keys keys_b keys_h keys_n codes codes_b codes_h codes_n codes_w "
    "scales scales_b scales_h mean edge balance"
)


def describe_dense(cache: AnyCache) -> np.ndarray:
    """The record of a layer's buffers, without codes."""
    if cache.value_sum is not None and not _plain(cache.value_sum):
        raise ValueError("the sum of values must be contiguous float32")
    if {x.stride(-1) for x in (cache.keys, cache.values)} != {1}:
        raise ValueError("keys and values must be contiguous rows")
    record = np.zeros(1, LAYER)
    for name, x in (("keys", cache.keys), ("values", cache.values)):
        record[name] = x.data_ptr()
        record[f"{name}_b"], record[f"{name}_h"], record[f"{name}_n"] = x.stride()[:3]
    record["value_sum"] = 0 if cache.value_sum is None else cache.value_sum.data_ptr()
    record["centre"] = 0 if cache.centre is None else cache.centre.data_ptr()
    return record


def row_kinds(cache: AnyCache) -> tuple[RowKind, RowKind]:
    """The storage formats of a layer's keys and values."""
    return ROW_KINDS[cache.keys.dtype], ROW_KINDS[cache.values.dtype]


def describe_layer(cache: LayerCache) -> np.ndarray:
    """The record of a layer's buffers and codes."""
    record = describe_dense(cache)
    if not all(_plain(x) for x in vars(cache.codebook).values()):
        raise ValueError("a codebook must be contiguous float32")
    if (cache.codes.dtype, cache.scales.dtype) != (torch.int32, torch.float16):
        raise ValueError("codes must be int32 and scales float16")
    if cache.codes.stride(2) != 1 or cache.scales.stride(-1) != 1:
        raise ValueError("scales must be contiguous rows, and codes contiguous words")
    record["codes"], record["scales"] = cache.codes.data_ptr(), cache.scales.data_ptr()
    record["codes_b"], record["codes_h"], record["codes_w"] = (cache.codes.stride(i) for i in (0, 1, 3))
    record["scales_b"], record["scales_h"] = cache.scales.stride()[:2]
    for name, x in vars(cache.codebook).items():
        record[name] = x.data_ptr()
    return record


def _plain(x: Tensor) -> bool:
    return x.is_contiguous() and x.dtype == torch.float32


# Scratch memory that a step writes before it reads. Per KV head and new token: `sums` float32 [D_v] of the
# values up to it. Per query: `words` int32 [P / 4] int8 coordinates or W words of codes, `totals` int32 sum
# of the coordinates, `facts` [FACTS], `chosen` int32 and `scores` float32 [row], `attended` int32 number of
# them. Per query and segment: `rank` float32 [REGION] of all tokens, later of candidates, and the candidates'
# `position` int32 [REGION], `peaks` float32 [groups] the highest ranks, `counts` int32 of candidates,
# `masses` float32, `highs` and `lows` int32, see `shares.py`. Per query and DENSE_SEGMENT: `parts` float32
# [PART], see `dense.py`. Per thread: `block` and `spare` float32 [P * LANES] rows to encode, `block_words`
# int32 [P / 4 * LANES], `lanes` float32 [LANES], `found` int32 [G N * LANES], `tail` int32 [W * LANES] the
# last tokens' words, `ranked` float32 and `ranked_at` int32 [tokens] one query's candidates, `vector` float32
# [DENSE_QUERIES (D + 1)], `weighted`, `plain` float32 [D or D_v], `dense` float32 [DENSE_QUERIES,
# DENSE_SEGMENT] scores.
SHARED = "sums words totals facts chosen attended scores rank position peaks counts masses highs lows parts"
OWN = "block spare block_words lanes found tail ranked ranked_at vector weighted plain dense"
SCRATCH = _record(f"row {SHARED} {OWN}")


def groups_of_segment(budget: int, tokens: int) -> int:
    """The number of token groups in a segment, a power of two; each group keeps its highest rank.

    This gives GROUPS_PER_CHOICE groups in total for each token of the budget, or one group per token.
    """
    groups = LANES
    while groups < SEGMENT and groups * tokens < GROUPS_PER_CHOICE * budget * SEGMENT:
        groups *= 2
    return groups


def dense_segments(tokens: int, first: int = 0) -> int:
    """Tasks of one KV head in a layer that attends to all of these tokens from `first` on."""
    return -(-tokens // DENSE_SEGMENT) - first // DENSE_SEGMENT


def part_size(dim: int) -> int:
    """Numbers that one query keeps per DENSE_SEGMENT: the output, then the maximum score and the sum of
    weights.
    """
    return dim + LANES


class Arena:
    """Scratch memory for the steps of all layers, reallocated only when a step needs more."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._shape: tuple[int, ...] = ()
        self._sizes: dict[str, int] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self._records = np.zeros(threads, SCRATCH)
        self.address = self._records.ctypes.data  # of the records, one per thread

    def reserve(self, *shape: int) -> None:
        """Make room for a step of this shape, see `_reserve`."""
        if shape != self._shape:
            self._reserve(*shape)
            self._shape = shape

    def _reserve(
        self, queries: int, per_head: int, segments: int, peaks: int, size: int, dim: int, budget: int
    ) -> None:
        """R = B H N queries, G N of them per KV head; segments, peaks: `room` and `peak_room` of the STEP;
        dim: the larger of D and D_v.
        """
        row, block = budget + LANES, max(size, 4) * LANES
        tokens = segments * SEGMENT + 2 * LANES
        regions = queries * segments
        sizes = {
            "sums": queries * dim, "words": queries * size // 4, "totals": queries, "facts": queries * FACTS,
            "chosen": queries * row, "attended": queries, "scores": queries * row, "rank": regions * REGION,
            "position": regions * REGION, "peaks": queries * peaks, "counts": regions, "masses": regions,
            "highs": regions, "lows": regions,
            "block": block, "spare": block, "block_words": block // 4, "lanes": LANES,
            "found": per_head * LANES, "tail": size // CODES_PER_WORD * LANES,
            "ranked": tokens, "ranked_at": tokens, "weighted": dim, "plain": dim,
            "parts": queries * dense_segments(segments * SEGMENT) * part_size(dim),
            "vector": DENSE_QUERIES * (dim + 1), "dense": DENSE_QUERIES * (DENSE_SEGMENT + LANES),
        }  # fmt: skip
        if any(count > self._sizes.get(name, 0) for name, count in sizes.items()):
            self._sizes = {name: max(count, self._sizes.get(name, 0)) for name, count in sizes.items()}
            self._allocate()
        self._records["row"] = row

    def _allocate(self) -> None:
        for name, count in self._sizes.items():
            copies = 1 if name in SHARED.split() else self._threads
            array = self.arrays[name] = _aligned(copies, count + LANES)  # a cache line between threads
            self._records[name] = array.ctypes.data + array.strides[0] * (np.arange(self._threads) % copies)


def _aligned(rows: int, count: int) -> np.ndarray:
    """Uninitialized float32 or int32 [rows, count or more], with rows aligned to whole vectors."""
    columns = -(-count // LANES) * LANES
    memory = np.empty(rows * columns + LANES, np.float32)
    skipped = -memory.ctypes.data % (4 * LANES) // 4
    return memory[skipped : skipped + rows * columns].reshape(rows, columns)


@intrinsic
def _pointer(typing_context, address, kind):
    stored = types.CPointer(STORED[kind.instance_class])

    def emit(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(stored))

    return stored(types.int64, kind), emit


def _pointer_to(element):
    """An intrinsic that turns an address into a pointer to numbers of a numba type."""

    @intrinsic
    def pointer(typing_context, address):
        stored = types.CPointer(element)

        def emit(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(stored))

        return stored(types.int64), emit

    return pointer


_int_pointer = _pointer_to(types.int32)
_byte_pointer = _pointer_to(types.int8)
_unsigned_byte_pointer = _pointer_to(types.uint8)


@intrinsic
def _address(typing_context, address):
    """An address as a pointer to anything."""

    def emit(context, builder, sig, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), emit


@njit
def numbers_at(address, kind):
    """The numbers of this kind from an address on."""
    return carray(_pointer(address, kind), MANY)


@njit
def floats_at(address):
    """The float32 numbers from an address on."""
    return carray(_pointer(address, Float32()), MANY)


@njit
def ints_at(address):
    """The int32 numbers from an address on."""
    return carray(_int_pointer(address), MANY)


@njit
def signed_bytes_at(address):
    """The int8 numbers from an address on."""
    return carray(_byte_pointer(address), MANY)


@njit
def bytes_at(address):
    """The uint8 numbers from an address on."""
    return carray(_unsigned_byte_pointer(address), MANY)


def _records_at(record, count=1):
    """A compiled function that turns an address into an array of `count` records."""

    @njit
    @distinct
    def records(address):
        return carray(_address(address), count, record)

    return records


steps_at, layers_at, chunks_at = _records_at(STEP, MANY), _records_at(LAYER), _records_at(CHUNK)
reads_at, betweens_at = _records_at(READ), _records_at(BETWEEN)
ropes_at, norms_at, flashes_at = _records_at(ROPE), _records_at(NORM, MANY), _records_at(FLASH)
rows_at, products_at = _records_at(ROWS), _records_at(PRODUCT, MANY)
roundings_at, strips_at = _records_at(ROUNDING), _records_at(STRIPS)
inners_at, mixtures_at, routes_at = _records_at(INNER, MANY), _records_at(MIXTURE), _records_at(ROUTE)
programs_at, runs_at = _records_at(STAGES, MANY), _records_at(RUN)
scratches_at = _records_at(SCRATCH, MANY)  # one per thread


@njit
def row_of(step, token):
    """A token's row in a layer's buffers."""
    return token % step.ring if step.ring else token


@njit
def first_seen(window, length):
    """The first token that a token after `length` others sees."""
    return max(0, length + 1 - window) if window else 0


@njit
def queries_of(step):
    """The number of queries of a sequence."""
    return step.kv_heads * step.group * step.new
