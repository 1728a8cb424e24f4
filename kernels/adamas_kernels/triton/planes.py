"""A weight from a file on a GPU: its blocks are split into planes of codes and of scales.

A chunk is 32 numbers of a row; a thread of a kernel holds one chunk. The four lowest bits of its codes are 16
bytes, four words of four pairs of codes; higher bits lie in a separate plane. Numbers 8 p + 2 k and
8 p + 2 k + 1 of chunk g are pair p ^ (g / 2 % 4) of word k, so that neighbouring threads read x from
different banks.

Scales are kept as in the file, not multiplied out: a number is
    unit * scale * (value of its code) - unit of minimums * minimum
K-types have small integers as scales and minimums, and a float16 unit per 256 numbers; other types have
16-bit floats and no units. Nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from gguf.quants import IQ4_NL, MXFP4
from torch import Tensor

from adamas_kernels.blocks import PLAIN, BlockWeight, block_size, unpack

CHUNK = 32  # numbers that a thread holds
WORDS = 4  # for the lowest four bits of a chunk
AT_ONCE = 1 << 26  # numbers that are split at a time, which bounds memory besides the planes


@dataclass(frozen=True)
class Form:
    """How kernels read a kind. high: bits of a code beyond four. halves: scales per chunk. minimum: whether
    each scale has a minimum. units: whether these are integers with units. offset: subtracted from codes.
    table: the values of the sixteen codes, if not the codes themselves. floats: whether 8-bit codes are
    floats, E4M3.
    """

    high: int = 0
    halves: int = 1
    minimum: bool = False
    units: bool = False
    offset: int = 0
    table: tuple[int, ...] | None = None
    floats: bool = False

    @property
    def integers(self) -> bool:
        """Whether codes are their own values."""
        return self.table is None and not self.floats

    @property
    def parts(self) -> int:
        """Numbers in the plane of scales for each chunk: scales, then minimums."""
        return self.halves * (1 + self.minimum)


FORMS = {
    "Q4_0": Form(offset=8),
    "Q4_1": Form(minimum=True),
    "Q5_0": Form(high=1, offset=16),
    "Q5_1": Form(high=1, minimum=True),
    "Q8_0": Form(high=4, offset=128),
    "Q8_M": Form(high=4, minimum=True, offset=128),
    "F8": Form(high=4, floats=True),
    "Q2_K": Form(halves=2, minimum=True, units=True),
    "Q3_K": Form(halves=2, units=True, offset=4),
    "Q4_K": Form(minimum=True, units=True),
    "Q5_K": Form(high=1, minimum=True, units=True),
    "Q6_K": Form(high=2, halves=2, units=True, offset=32),
    "IQ4_NL": Form(table=tuple(IQ4_NL.kvalues)),
    "IQ4_XS": Form(units=True, table=tuple(IQ4_NL.kvalues)),
    "MXFP4": Form(table=tuple(MXFP4.kvalues)),
}


@dataclass(frozen=True)
class PlaneWeight:
    """A weight [rows, columns] in planes.

    kind: of FORMS. low: int32 [rows, chunks, WORDS]. high: uint8, int16 or int32 of that shape, or None.
    scales: [rows, chunks, parts], int8 if there are units, else float16 or bfloat16. units: float16 [rows,
    super blocks, 1 or 2], for scales and minimums. table: float32 [16].
    """

    kind: str
    columns: int
    low: Tensor
    high: Tensor | None
    scales: Tensor
    units: Tensor | None
    table: Tensor | None

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return len(self.low)

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.low.shape[1]

    @property
    def count(self) -> int:
        """Numbers of the weight."""
        return self.rows * self.columns

    @property
    def form(self) -> Form:
        """How kernels read its kind."""
        return FORMS[self.kind]

    @property
    def device(self) -> torch.device:
        """The device of the planes."""
        return self.low.device

    @property
    def planes(self) -> dict[str, Tensor]:
        """The tensors with one entry per row, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: named[name] for name in ("low", "high", "scales", "units") if named[name] is not None}

    @property
    def bytes(self) -> int:
        """Bytes read by one product with a vector."""
        return sum(plane.nbytes for plane in self.planes.values())

    def part(self, first: int, last: int) -> PlaneWeight:
        """Some of the rows, as a view."""
        return self._with({name: plane[first:last] for name, plane in self.planes.items()})

    def _with(self, planes: dict[str, Tensor]) -> PlaneWeight:
        low, scales = planes["low"], planes["scales"]
        high, units = planes.get("high"), planes.get("units")
        return PlaneWeight(self.kind, self.columns, low, high, scales, units, self.table)


def joinable(weights: Sequence[PlaneWeight]) -> bool:
    """Whether one product can serve all these weights."""
    return len({(weight.kind, weight.columns) for weight in weights}) == 1


def join(weights: Sequence[PlaneWeight]) -> PlaneWeight:
    """One weight with the rows of all; they must be joinable."""
    names = weights[0].planes
    return weights[0]._with({name: torch.cat([weight.planes[name] for weight in weights]) for name in names})


def halves(weight: PlaneWeight, parts: int) -> list[PlaneWeight]:
    """Two weights, with the first and with the second halves of each of `parts` parts of the rows."""
    named = {name: plane.unflatten(0, (parts, 2, -1)) for name, plane in weight.planes.items()}
    return [weight._with({name: x[:, half].flatten(0, 1) for name, x in named.items()}) for half in (0, 1)]


def take_turns(weights: Sequence[PlaneWeight]) -> PlaneWeight:
    """One weight that alternates between the rows of all, which must be joinable, with equally many rows."""
    planes = [weight.planes for weight in weights]
    return weights[0]._with(
        {name: torch.stack([x[name] for x in planes], 1).flatten(0, 1) for name in planes[0]}
    )


def split(weight: BlockWeight, device: torch.device) -> PlaneWeight | Tensor:
    """Upload a weight and split it on the device; plain numbers become a tensor.

    Kinds without a form become Q8_0.
    """
    if weight.kind in PLAIN:
        return weight.data.to(device).view(PLAIN[weight.kind])
    step = max(1, AT_ONCE // weight.columns)
    first = _split_part(weight.part(0, step), device)
    if weight.rows <= step:
        return first
    whole = {name: plane.new_empty(weight.rows, *plane.shape[1:]) for name, plane in first.planes.items()}
    for start in range(0, weight.rows, step):
        part = first if start == 0 else _split_part(weight.part(start, start + step), device)
        for name, plane in part.planes.items():
            whole[name][start : start + step] = plane
    return first._with(whole)


def _split_part(weight: BlockWeight, device: torch.device) -> PlaneWeight:
    kind, rows, columns = weight.kind, weight.rows, weight.columns
    if kind in FORMS:
        blocks = weight.data.to(device).view(rows, -1, block_size(kind)[1])
        content = _READERS[kind](blocks)
    else:
        kind, content = "Q8_0", _rounded(unpack(weight).to(device))
    form = FORMS[kind]
    codes, scales = content.codes.view(rows, -1, CHUNK), content.scales
    chunks = codes.shape[1]
    turn = (torch.arange(chunks, device=device) >> 1) & 3
    pairs = torch.arange(4, device=device) ^ turn[:, None]
    codes = codes.view(rows, chunks, 4, WORDS, 2)[:, torch.arange(chunks, device=device)[:, None], pairs]
    kept = [scales] if content.minimums is None else [scales, content.minimums]
    kept = [x.reshape(rows, chunks, form.halves) for x in kept]
    if form.halves == 2:
        kept = [torch.where((turn > 1)[:, None], x.flip(2), x) for x in kept]
    units = content.units
    table = torch.tensor(form.table, dtype=torch.float32, device=device) if form.table else None
    return PlaneWeight(
        kind, columns, _nibbles(codes & 15), _high(codes >> 4, form.high), torch.cat(kept, 2),
        None if units is None else units.reshape(rows, -1, 1 + form.minimum), table,
    )  # fmt: skip


def _nibbles(codes: Tensor) -> Tensor:
    """4-bit codes, [rows, chunks, 4 pairs, WORDS, 2], as int32 [rows, chunks, WORDS]: one byte per pair, with
    the first code in the lower bits.
    """
    pairs = codes[..., 0] | codes[..., 1] << 4
    return pairs.transpose(2, 3).contiguous().view(torch.int32).squeeze(-1)


# By number of higher bits: where the bits of the first and the second codes of the four pairs begin.
_PLACES = {1: ((3, 2, 1, 0), (7, 6, 5, 4)), 2: ((4, 12, 2, 10), (0, 8, 6, 14))}


def _high(codes: Tensor, bits: int) -> Tensor | None:
    """The higher bits of the codes, in a plane with `bits` bytes for each word of lower bits.

    Their positions allow few instructions to move them above the lower bits of four codes at once.
    """
    if bits == 0:
        return None
    if bits == 4:
        return _nibbles(codes)
    places = torch.tensor(_PLACES[bits], dtype=torch.int32, device=codes.device).T[:, None]  # [4, 1, 2]
    word = (codes.int() << places).sum((2, 4), dtype=torch.int32)
    return word.byte() if bits == 1 else word.short()


@dataclass
class _Content:
    """The content of a weight's blocks: uint8 codes in column order, and scales, minimums and units in the
    order of their groups.
    """

    codes: Tensor
    scales: Tensor
    minimums: Tensor | None = None
    units: Tensor | None = None


def _halves(blocks: Tensor, first: int, last: int) -> Tensor:
    """Bytes of each block as float16."""
    return blocks[..., first:last].contiguous().view(torch.float16)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Bytes [..., n] as fields of this many bits, [..., 8 / bits, n], lowest bits of all bytes first."""
    mask = (1 << bits) - 1
    return torch.stack([packed >> shift & mask for shift in range(0, 8, bits)], -2)


def _in_runs(packed: Tensor, bits: int, run: int) -> Tensor:
    """The same for each run of this many bytes, in order: [..., numbers]."""
    return _fields(packed.unflatten(-1, (-1, run)), bits).flatten(-3)


def _q4_0(blocks: Tensor) -> _Content:
    return _Content(_in_runs(blocks[..., 2:], 4, 16), _halves(blocks, 0, 2))


def _q4_1(blocks: Tensor) -> _Content:
    return _Content(_in_runs(blocks[..., 4:], 4, 16), _halves(blocks, 0, 2), -_halves(blocks, 2, 4))


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit n of four bytes, as bit 4 of number n."""
    return _fields(packed[..., None], 1).flatten(-2) << 4


def _q5_0(blocks: Tensor) -> _Content:
    codes = _in_runs(blocks[..., 6:], 4, 16) | _fifth_bits(blocks[..., 2:6]).flatten(-2)
    return _Content(codes, _halves(blocks, 0, 2))


def _q5_1(blocks: Tensor) -> _Content:
    codes = _in_runs(blocks[..., 8:], 4, 16) | _fifth_bits(blocks[..., 4:8]).flatten(-2)
    return _Content(codes, _halves(blocks, 0, 2), -_halves(blocks, 2, 4))


def _q8_0(blocks: Tensor) -> _Content:
    return _Content(blocks[..., 2:] ^ 128, _halves(blocks, 0, 2))


def _q8_m(blocks: Tensor) -> _Content:
    return _Content(blocks[..., 4:] ^ 128, _halves(blocks, 0, 2), -_halves(blocks, 2, 4))


def _f8(blocks: Tensor) -> _Content:
    return _Content(blocks[..., 2:], _halves(blocks, 0, 2))


def _q2_k(blocks: Tensor) -> _Content:
    scales = blocks[..., :16]
    codes = _in_runs(blocks[..., 16:80], 2, 32)
    return _Content(codes, (scales & 15).char(), (scales >> 4).char(), _halves(blocks, 80, 84))


def _q3_k(blocks: Tensor) -> _Content:
    high, low, scales = blocks[..., :32], blocks[..., 32:96], blocks[..., 96:108]
    codes = _in_runs(low, 2, 32) | _in_runs(high, 1, 32) << 2
    scales = _in_runs(scales[..., :8], 4, 8) | _in_runs(scales[..., 8:], 2, 4) << 4
    return _Content(codes, scales.char() - 32, None, _halves(blocks, 108, 110))


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minimums of 6 bits from the twelve bytes of Q4_K and Q5_K."""
    scales, minimums, rest = packed.split(4, -1)
    scales = torch.cat((scales & 63, rest & 15 | scales >> 2 & 48), -1)
    minimums = torch.cat((minimums & 63, rest >> 4 | minimums >> 2 & 48), -1)
    return scales.char(), minimums.char()


def _q4_k(blocks: Tensor) -> _Content:
    return _Content(_in_runs(blocks[..., 16:], 4, 32), *_six_bits(blocks[..., 4:16]), _halves(blocks, 0, 4))


def _q5_k(blocks: Tensor) -> _Content:
    codes = _in_runs(blocks[..., 48:], 4, 32) | _in_runs(blocks[..., 16:48], 1, 32) << 4
    return _Content(codes, *_six_bits(blocks[..., 4:16]), _halves(blocks, 0, 4))


def _q6_k(blocks: Tensor) -> _Content:
    codes = _in_runs(blocks[..., :128], 4, 64) | _in_runs(blocks[..., 128:192], 2, 32) << 4
    scales = blocks[..., 192:208].contiguous().view(torch.int8)
    return _Content(codes, scales, None, _halves(blocks, 208, 210))


def _iq4_xs(blocks: Tensor) -> _Content:
    high, low = blocks[..., 2:4], blocks[..., 4:8]
    scales = _fields(low[..., None], 4).flatten(-3) | _fields(high[..., None], 2).flatten(-3) << 4
    return _Content(_in_runs(blocks[..., 8:], 4, 16), scales.char() - 32, None, _halves(blocks, 0, 2))


def _mxfp4(blocks: Tensor) -> _Content:
    # Powers of two, of which float16 has too few, halved because the table has doubled values.
    exponents = blocks[..., :1].int()
    scales = torch.where(exponents < 2, 1 << 21 + exponents, exponents - 1 << 23).view(torch.float32)
    return _Content(_in_runs(blocks[..., 1:], 4, 16), scales.bfloat16())


def _rounded(numbers: Tensor) -> _Content:
    """Float numbers [rows, columns] as the content of Q8_0."""
    groups = numbers.unflatten(1, (-1, CHUNK))
    scales = (groups.abs().amax(2, keepdim=True) / 127).half()
    codes = (groups / scales.float()).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-128, 127)
    return _Content((codes + 128).byte(), scales)


_READERS: dict[str, Callable[[Tensor], _Content]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q8_M": _q8_m,
    "F8": _f8,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _q4_0,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
