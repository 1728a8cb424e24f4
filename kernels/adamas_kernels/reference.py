"""The specification of Adamas decode attention, in plain torch (arXiv 2510.18413, section 3).

Every backend computes what this module computes. Integer stages (codes, dot products, distances) are equal
bit for bit; float stages agree within rounding. Nothing here is meant to be fast.

Shapes: `B` batch, `H` query heads, `K` KV heads, `G = H / K` query heads per KV head, `N` new tokens, `S`
tokens in the cache (the new ones included), `D` head_dim, `P` = D padded to a power of two, `W = P / 16`
code words per key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adamas_kernels.softmax import PLAIN, Softmax

CODES_PER_WORD = 16
FLAT = 1e-6  # share of the mean below which a coordinate's power counts as none
GAUSSIAN_EDGE = 0.9816  # outer edge, in deviations, of the best 4-level quantizer of a Gaussian (Max 1960)
QUERY_LEVELS = 127  # int8 range of an encoded query
LEAST_ATTENDED = 32  # tokens, forced ones included, that a query always attends to, whatever its error
# Exponents of 2 are integers in units, UNITS to an octave, counted from ORIGIN units below 1. A bin has SPAN
# octaves.
UNIT_BITS, SPAN_BITS = 16, 4
UNITS, SPAN = 1 << UNIT_BITS, 1 << SPAN_BITS
UNITS_PER_NAT = 94548.0  # UNITS log2 e
ORIGIN = 1 << 30  # units
LARGEST_EXPONENT = float(ORIGIN - 64)  # the largest float32 below ORIGIN


@dataclass(frozen=True)
class Codebook:
    """How the keys of one layer become codes. All keys that are compared share one codebook.

    mean: float32 [B, K, P], the mean rotated key (zeros if keys are not centred).
    edge: float32 [B, K], the outer edge t of the levels (-inf, -t], (-t, 0], (0, t], (t, inf).
    balance: float32 [B, K, P]; before rotation, a key's coordinates are multiplied and a query's divided by
    it, which keeps their dot product.
    noise: float32 [B, K], the mean square error of coding in the score of a query of length 1.
    """

    mean: Tensor
    edge: Tensor
    balance: Tensor
    noise: Tensor


def padded_dim(head_dim: int) -> int:
    """The power of two, at least 16, that a head is zero-padded to: 64 -> 64, 80 -> 128, 96 -> 128."""
    return max(CODES_PER_WORD, 1 << (head_dim - 1).bit_length())


def rotate(x: Tensor) -> Tensor:
    """Hadamard-transform the last dimension, [..., D] -> float32 [..., P]. Dot products do not change.

    The fast transform in Sylvester's order: log2 P rounds of sums and differences of coordinates 1, 2, 4,
    ... apart, then one factor 1 / sqrt(P). Every backend does the same float32 operations in the same order,
    so all get the same codes.
    """
    size = padded_dim(x.shape[-1])
    return transformed(F.pad(x.float(), (0, size - x.shape[-1])), size)


def transformed(x: Tensor, block: int) -> Tensor:
    """The transform of `rotate` in each block of the last dimension of x, float32 [..., D]; block: a power of
    two that divides D.
    """
    step = 1
    while step < block:
        low, high = x.unflatten(-1, (-1, 2, step)).unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
        step *= 2
    return x * block**-0.5


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two, by adding its halves, so that every backend uses the same
    order of float operations.
    """
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x.squeeze(-1)


def query_power(queries: Tensor, kv_heads: int) -> Tensor:
    """The mean square of each coordinate of queries [B, H, N, D], per KV head: float32 [B, K, D]."""
    return _by_kv_head(queries, kv_heads).float().square().mean(2)


def balance(keys: Tensor, power: Tensor) -> Tensor:
    """The `Codebook.balance` for keys [B, K, N, D] and queries of this power, float32 [B, K, D].

    Coding adds the same noise to every coordinate of a rotated key, so coordinates that are small in keys and
    large in queries lose most. The mean error of a score is lowest if both have the same deviation, which
    multiplies key coordinates by (query power / key variance)^(1/4). But the noise is proportional to the
    key's length, and this makes the keys that matter most the longest. Half of that exponent is better than
    either extreme (docs/accuracy.md).
    """
    variance = keys.float().var(2, correction=0)
    power, variance = (x + FLAT * x.mean(-1, keepdim=True) for x in (power, variance))
    ratio = torch.where((power > 0) & (variance > 0), power / variance, 1)
    factor = ratio.log() / 8
    factor = (factor - factor.mean(-1, keepdim=True)).exp()  # keys keep their size, for float16 scales
    return F.pad(factor, (0, padded_dim(keys.shape[-1]) - keys.shape[-1]), value=1.0)


def fit_codebook(
    keys: Tensor, edge: float | None = None, centre: bool = True, power: Tensor | None = None
) -> Codebook:
    """Statistics of keys [B, K, N, D].

    edge: a fixed outer edge (the paper uses 10); None takes the optimal edge for Gaussian coordinates of the
    measured deviation, which GQA models need.
    centre: subtract the mean key; this shifts all scores of a query equally, so attention does not change.
    power: `query_power` of the queries, in any unit, to balance keys and queries; None does not balance.
    """
    ones = torch.ones_like(rotate(keys[:, :, 0]))
    factor = ones if power is None else balance(keys, power)
    rotated = rotate(stretched(keys, factor))
    mean = rotated.mean(2) if centre else torch.zeros_like(ones)
    centred = rotated - mean.unsqueeze(2)
    if edge is None:
        outer = GAUSSIAN_EDGE * centred.square().mean((2, 3)).sqrt()
    else:
        outer = torch.full_like(mean[..., 0], edge)
    levels, scales = _levels(centred, outer)
    lost = rotate(centred - scales.unsqueeze(-1) * levels).square().mean(2)  # rotated back
    weight = ones if power is None else F.pad(power, (0, ones.shape[-1] - power.shape[-1])) / factor.square()
    weight = weight + FLAT * weight.mean(-1, keepdim=True)  # all-zero queries have no noise
    noise = (lost * weight).sum(-1) / weight.sum(-1).clamp(min=torch.finfo().tiny)
    return Codebook(mean, outer, factor, noise)


def stretched(keys: Tensor, factor: Tensor) -> Tensor:
    """Keys [B, K, N, D] times a codebook's balance [B, K, P], in float32."""
    return keys.float() * factor[..., : keys.shape[-1]].unsqueeze(2)


def rotate_queries(queries: Tensor, codebook: Codebook) -> Tensor:
    """Queries [B, H, N, D], balanced and rotated to match rotated keys: float32 [B, H, N, P]."""
    groups = queries.shape[1] // codebook.balance.shape[1]
    factor = codebook.balance[..., : queries.shape[-1]].repeat_interleave(groups, 1).unsqueeze(2)
    return rotate(queries.float() / factor)


def bucketize(x: Tensor, edge: Tensor) -> Tensor:
    """The number of edges (-t, 0, t) strictly below each value: int32 0..3. `edge` broadcasts against x."""
    return (x > -edge).int() + (x > 0).int() + (x > edge).int()


def pack(codes: Tensor) -> Tensor:
    """Codes 0..3 [..., P] -> int32 [..., P / 16].

    Coordinate 4i + b of a word lies at bit 8b + 2i, so `(word >> 2i) & 0x03030303` gives the codes of four
    neighbouring coordinates as four bytes: the operand of a four-way byte product with an int8 query.
    """
    grouped = codes.reshape(*codes.shape[:-1], -1, 4, 4).long()
    steps = torch.arange(4, device=codes.device)
    words = (grouped << (2 * steps[:, None] + 8 * steps)).sum((-1, -2))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def unpack(words: Tensor) -> Tensor:
    """int32 [..., W] -> codes 0..3, uint8 [..., 16 W], the inverse of `pack`."""
    steps = torch.arange(0, 8, 2, device=words.device, dtype=torch.int32)
    quads = (words.unsqueeze(-1) >> steps) & 0x03030303
    return quads.contiguous().view(torch.uint8).flatten(-2)


def encode_keys(keys: Tensor, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """Keys [B, K, N, D] -> (codes int32 [B, K, N, W], scales float16 [B, K, N]).

    The scale is the least-squares length of the centred key along its own levels 2c - 3: <k, l> / <l, l>.
    """
    centred = rotate(stretched(keys, codebook.balance)) - codebook.mean.unsqueeze(2)
    levels, scales = _levels(centred, codebook.edge)
    return pack((levels.int() + 3) >> 1), scales.half()


def _levels(centred: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 levels 2c - 3 of centred rotated keys [B, K, N, P], and their best-fitting scales [B, K, N]."""
    levels = (2 * bucketize(centred, edge[..., None, None]) - 3).float()
    return levels, tree_sum(centred * levels) / tree_sum(levels.square())


def encode_query(rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated queries [B, H, N, P] -> (int8 [B, H, N, P], float32 step [B, H, N]): in steps of max / 127.

    Halves round to even. A zero query has step 0 and codes 0.
    """
    step = rotated.abs().amax(-1) / QUERY_LEVELS
    scaled = rotated / torch.where(step > 0, step, 1).unsqueeze(-1)
    return scaled.round().clamp(-QUERY_LEVELS, QUERY_LEVELS).to(torch.int8), step


def dot(query: Tensor, codes: Tensor) -> Tensor:
    """Asymmetric product sum q (2c - 3), exact: int8 [B, H, N, P], int32 [B, K, S, W] -> int32 [B, H, N,
    S].
    """
    levels = 2 * unpack(codes).int() - 3
    # Products stay below 2^24 (127 * 3 * 256 = 97,536), so float32 holds every partial sum exactly.
    grouped = _by_kv_head(query.float(), codes.shape[1])
    return _by_query_head(grouped @ levels.float().transpose(-1, -2), query.shape[2]).int()


def manhattan(rotated: Tensor, codes: Tensor, edge: float | None = None) -> Tensor:
    """Manhattan distance between the codes of rotated queries [B, H, N, P] and of keys: int32 [B, H, N, S],
    0..3P (paper, 3.3).

    Queries are bucketized with the fixed edge, or with None by the Gaussian edge of their own deviation.
    """
    edges = (
        GAUSSIAN_EDGE * (tree_sum(rotated.square()) / rotated.shape[-1]).sqrt().unsqueeze(-1)
        if edge is None
        else torch.full_like(rotated[..., :1], edge)
    )
    query_codes = _by_kv_head(bucketize(rotated, edges), codes.shape[1])  # [B, K, G * N, P]
    key_codes = unpack(codes).int()
    distances = torch.stack(
        [(row.unsqueeze(2) - key_codes).abs().sum(-1) for row in query_codes.unbind(2)], 2
    )  # one query at a time keeps the difference at [B, K, S, P]
    return _by_query_head(distances, rotated.shape[2]).int()


def rank_by_dot(query: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Integer dot product x per-key scale, float32 [B, H, N, S]; times the query's step it estimates q (k -
    mean).

    The estimate of q k differs by q mean, the same for all keys of a query.
    """
    groups = query.shape[1] // codes.shape[1]
    return dot(query, codes) * scales.float().repeat_interleave(groups, 1).unsqueeze(2)


def select(scores: Tensor, budget: int, sinks: int, recents: int, reaching: Tensor | None = None) -> Tensor:
    """The positions of the `budget` tokens of highest score [B, H, N, S]; ties go to the lowest position.

    Query n of N stands at position S - N + n and sees nothing later. Its own token, the first `sinks` and
    the last `recents` (its own included) visible tokens are always chosen, within the budget.
    reaching: `reaches_error`, bool [B, H, N, S]: beyond the best LEAST_ATTENDED tokens, only these are
    chosen.

    Returns int64 [B, H, N, min(budget, S)], ascending. Rows with fewer tokens than the budget are filled up
    with positions beyond the query's own, to be ignored.
    """
    new, size = scores.shape[-2:]
    position = torch.arange(size, device=scores.device)
    own = own_positions(new, size, scores.device)
    forced = (position < sinks) | (position > own - max(recents, 1))
    ranking = torch.where(forced, torch.inf, scores).masked_fill(position > own, -torch.inf)
    count = min(budget, size)
    chosen = _best(ranking, count)
    if reaching is not None:
        chosen &= forced | reaching | _best(ranking, min(LEAST_ATTENDED, count))
    return torch.where(chosen, position, size).sort(-1).values[..., :count]


def _best(ranking: Tensor, count: int) -> Tensor:
    """A mask of exactly the `count` highest of each row [..., S]; ties go to the lowest position."""
    threshold = ranking.topk(count).values[..., -1:]
    above = ranking > threshold
    ties = ranking == threshold
    return above | (ties & (ties.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def reaches_error(
    queries: Tensor,
    keys: Tensor,
    rank: Tensor,
    step: Tensor,
    codebook: Codebook,
    scaling: float,
    forced: tuple[int, int],
    error: float,
) -> Tensor:
    """Which tokens' estimated share of the softmax is `error` or more: bool [B, H, N, S].

    A token that is not attended to leaves an error proportional to its squared share p^2: the mean value
    takes its mass, so only its own deviation is lost. Attending to one more token gains p^2 in any head. One
    bound on p everywhere therefore loses least for a given number of tokens; one bound on the total left out
    would spend too much on heads that attend broadly (docs/accuracy.md).
    rank, float32 [B, H, N, S], times step, float32 [B, H, N], estimates q (k - mean). The sum below a share
    takes exact scores for the `forced` sinks and recents, which are attended to anyway. It is a sum of
    integers, so every backend gets the same result in any order of addition.
    """
    new, size = rank.shape[-2:]
    own = own_positions(new, size, rank.device)
    position = torch.arange(size, device=rank.device)
    slope = (step * scaling * UNITS_PER_NAT).unsqueeze(-1)
    estimated = exponents(rank * slope)
    offset = score_offset(rotate_queries(queries, codebook), codebook, scaling).unsqueeze(-1)
    index, exact = exact_scores(queries, keys, scaling, *forced)
    exact = exponents((exact - offset) * UNITS_PER_NAT)
    estimated = estimated.masked_fill(position > own, -1)
    ranked = F.pad(estimated, (0, 1)).scatter(-1, index, -1)[..., :size]
    mass = log_mass(torch.cat([ranked, torch.where(index < size, exact, -1)], -1))
    return estimated >= (mass + units_of(error)).unsqueeze(-1)


def units_of(share: float) -> int:
    """The exponent of a share in units, without ORIGIN."""
    return round(math.log2(share) * UNITS)


def exponents(units: Tensor) -> Tensor:
    """Exponents of 2, float32 in units relative to 1, as integers counted from ORIGIN below: non-negative
    int64.
    """
    return units.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).long() + ORIGIN


def log_mass(exponents: Tensor) -> Tensor:
    """The exponent of a sum of powers of 2 with these exponents [..., S]; negative exponents are ignored.

    Powers are linear between whole octaves, like the mantissa of a float, and the logarithm is the inverse:
    together they err by at most 0.09 octaves. Only the bin of the largest term and the one below it count.
    Lower bits are cut off, so the sum does not depend on the order of the terms or a running maximum.
    """
    top = (exponents >> UNIT_BITS + SPAN_BITS).amax(-1, keepdim=True)
    power = (exponents & (UNITS - 1) | UNITS) << (exponents >> UNIT_BITS & (SPAN - 1))
    below = top - (exponents >> UNIT_BITS + SPAN_BITS)
    power = torch.where(below == 0, power, torch.where(below == 1, power >> SPAN, 0))
    fraction, octave = torch.frexp(power.masked_fill(exponents < 0, 0).sum(-1).double())
    straight = ((2 * fraction - 1) * UNITS).long() + (octave.long() - 1 - SPAN) * UNITS
    return straight + (top.squeeze(-1) << UNIT_BITS + SPAN_BITS)


def exact_scores(
    queries: Tensor, keys: Tensor, scaling: float, sinks: int, recents: int
) -> tuple[Tensor, Tensor]:
    """Positions of each query's first `sinks` and last `recents` tokens, int64 [B, H, N, sinks + recents],
    with S in place of missing ones; and their exact float32 scores, in a fixed order of operations.
    """
    heads, new, size = queries.shape[1], queries.shape[2], keys.shape[2]
    own = own_positions(new, size, keys.device)
    first = torch.arange(sinks, device=keys.device).expand(new, -1)
    last = own - torch.arange(recents, device=keys.device)
    index = torch.cat([torch.where(first <= own, first, size), torch.where(last >= sinks, last, size)], -1)
    index = index.expand(len(queries), heads, -1, -1)
    products = queries.float().unsqueeze(-2) * gather(keys, index)
    products = F.pad(products, (0, padded_dim(keys.shape[-1]) - keys.shape[-1]))
    return index, scaling * tree_sum(products)


def own_positions(new: int, size: int, device: torch.device) -> Tensor:
    """The positions of the newest `new` of `size` tokens: int64 [N, 1], to compare with positions."""
    return torch.arange(size - new, size, device=device).unsqueeze(-1)


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, S, D] at the positions index [B, H, N, k] of each query head: float32 [B, H, N, k, D].
    Position S gives an arbitrary row.
    """
    batch, kv_heads, _, dim = rows.shape
    heads, new, count = index.shape[1:]
    flat = index.clamp(max=rows.shape[2] - 1).reshape(batch, kv_heads, -1, 1).expand(-1, -1, -1, dim)
    return rows.gather(2, flat).float().view(batch, heads, new, count, dim)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    index: Tensor,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Exact attention of queries [B, H, N, D] over keys and values [B, K, S, D] at the positions of `select`,
    without learned sinks: a softmax in parts counts them once, at the end.

    Returns the output float32 [B, H, N, D] and the log-sum-exp of its scores, float32 [B, H, N].
    """
    scores = (gather(keys, index) @ queries.float().unsqueeze(-1)).squeeze(-1) * scaling
    scores = softmax.capped(scores)
    own = own_positions(queries.shape[2], keys.shape[2], keys.device)
    scores = scores.masked_fill(index > own, -torch.inf)
    out = scores.softmax(-1).unsqueeze(-2) @ gather(values, index)
    return out.squeeze(-2), scores.logsumexp(-1)


def rest_of_softmax(
    queries: Tensor,
    estimate: Tensor,
    index: Tensor,
    codebook: Codebook,
    values: Tensor,
    value_sum: Tensor,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor]:
    """What the tokens that were not chosen would have added: their mean value and the logarithm of their
    softmax mass.

    The idea is SparQ's (arXiv 2312.04985, section 4): the mass comes from the estimated scores, and goes to
    the mean of all values not chosen. `value_sum` is the cache's running sum of values, float32 [B, K, D].
    The exponential of an estimate with error variance v is too large by e^(v/2) on average, so v/2 is
    subtracted. If scores are soft-capped, the estimates are soft-capped after that.
    Returns mean value float32 [B, H, N, D] and log mass float32 [B, H, N] (-inf if nothing is left).
    """
    kv_heads, size = values.shape[1:3]
    heads, new = queries.shape[1:3]
    groups = heads // kv_heads
    own = own_positions(new, size, values.device)
    scores = estimated_scores(queries, estimate, codebook, scaling, softmax)
    rest = F.pad(scores, (0, 1)).scatter(-1, index, -torch.inf)[..., :size]
    # All visible values minus the chosen ones: sums over `budget` rows instead of the context.
    future = torch.stack([values[:, :, size - new + n + 1 :].float().sum(2) for n in range(new)], 2)
    seen = (value_sum.unsqueeze(2) - future).repeat_interleave(groups, 1)
    valid = index <= own
    taken = (valid.float().unsqueeze(-2) @ gather(values, index)).squeeze(-2)
    left = (own.squeeze(-1) + 1) - valid.sum(-1)
    return (seen - taken) / left.clamp(min=1).unsqueeze(-1), rest.logsumexp(-1)


def estimated_scores(
    queries: Tensor, estimate: Tensor, codebook: Codebook, scaling: float, softmax: Softmax = PLAIN
) -> Tensor:
    """Scores from estimates of q (k - mean), float32 [B, H, N, S]: half of the error variance is subtracted,
    then they are soft-capped, and -inf where the query does not see the token.
    """
    new, size = estimate.shape[-2:]
    offset = score_offset(rotate_queries(queries, codebook), codebook, scaling)
    hidden = torch.arange(size, device=estimate.device) > own_positions(new, size, estimate.device)
    return softmax.capped(scaling * estimate + offset.unsqueeze(-1)).masked_fill(hidden, -torch.inf)


def score_offset(rotated: Tensor, codebook: Codebook, scaling: float) -> Tensor:
    """A score minus scaling times its estimate of q (k - mean), and minus half of the error variance, for
    rotated queries [B, H, N, P]: float32 [B, H, N]. Every backend gets the same bits.
    """
    groups = rotated.shape[1] // codebook.mean.shape[1]
    mean, noise = (x.repeat_interleave(groups, 1).unsqueeze(2) for x in (codebook.mean, codebook.noise))
    return scaling * (tree_sum(rotated * mean) - 0.5 * scaling * tree_sum(rotated.square()) * noise)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Join two softmax parts over disjoint tokens: outputs [..., D] and log-sum-exps [...], -inf for an empty
    part.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    weight = (lse_b - lse).exp().unsqueeze(-1)
    return torch.lerp(out_a, out_b, weight), lse


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, N, X] -> [B, K, G N, X]: the queries of one KV head side by side."""
    return x.reshape(x.shape[0], kv_heads, -1, x.shape[-1])


def _by_query_head(x: Tensor, new: int) -> Tensor:
    """[B, K, G N, X] -> [B, H, N, X], the inverse of `_by_kv_head`."""
    return x.reshape(x.shape[0], -1, new, x.shape[-1])
