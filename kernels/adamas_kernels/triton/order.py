"""Puts the tokens that a step chooses into the order of their positions, or nearly, before their rows are
fetched from host memory: rows that are fetched at a time then lie near each other, where a GPU translates
their addresses together (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.select import forced_and_wanted

BUCKETS = 256  # parts of a text, within which tokens have no order
BLOCK = 2048  # tokens at a time
WARPS = 8


@triton.jit
def order_kernel(
    chosen_at_ptr, ordered_ptr, places_ptr, attended_ptr, length_ptr, chosen_n, ordered_n, places_n,
    sinks, recents, budget,
    HEADS: tl.constexpr, NEW: tl.constexpr, BUCKETS: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Program (query head of a batch, new token): its chosen positions by buckets. places [rows, >= BUCKETS]:
    where the next token of each bucket goes. CHAINED, BOUND: see `fetch_kernel`.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    row = (pair * NEW + new).to(tl.int64)
    seen = tl.load(length_ptr + pair // HEADS) + new + 1
    _, _, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    chosen_at, ordered = chosen_at_ptr + row * chosen_n, ordered_ptr + row * ordered_n
    places = places_ptr + row * places_n
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    if BOUND:
        want = tl.load(attended_ptr + row) - forced
    width = tl.cdiv(seen, BUCKETS)
    counts = tl.zeros((BUCKETS,), tl.int32)
    for start in range(0, want, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        at = tl.load(chosen_at + slot, mask=slot < want, other=0)
        counts += tl.histogram(at // width, BUCKETS, mask=slot < want)
    tl.store(places + tl.arange(0, BUCKETS), tl.cumsum(counts, axis=0) - counts)
    tl.debug_barrier()
    for start in range(0, want, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        at = tl.load(chosen_at + slot, mask=slot < want, other=0)
        to = tl.atomic_add(places + at // width, 1, mask=slot < want, sem="relaxed")
        tl.store(ordered + to, at, mask=slot < want)


def order(
    chosen_at: Tensor, ordered: Tensor, places: Tensor, attended: Tensor, length: Tensor,
    heads: int, new: int, budget: int, forced: tuple[int, int], *, chained: bool, bound: bool,
) -> None:  # fmt: skip
    """Changes: ordered [rows, >= budget] has the chosen positions [rows, budget], see `order_kernel`. Tokens
    of a bucket may lie otherwise each time. forced: sinks and recents, which are not among them.
    """
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    order_kernel[(len(length) * heads, new)](
        chosen_at, ordered, places, attended, length, *(x.stride(0) for x in (chosen_at, ordered, places)),
        *forced, budget,
        HEADS=heads, NEW=new, BUCKETS=min(BUCKETS, places.shape[1]), BLOCK=BLOCK,
        CHAINED=chained, BOUND=bound, num_warps=WARPS, **chain,
    )  # fmt: skip
