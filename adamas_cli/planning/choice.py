"""Defaults for settings that the user leaves open: tokens read at once, contexts from which sparse reading
and sparse attention gain, and the number of tokens attended to.
"""

from __future__ import annotations

import math

# Tokens read at once: on a CPU few enough that activations stay in its cache, on a GPU enough that matrix
# products and attention run at full speed.
PREFILL_CHUNK = {"cpu": 512, "cuda": 8192}
OTHER_CHUNK = 2048
# Contexts from which `auto` reads documents sparsely, by kind of device, if that was measured to be faster
# and to answer as well (docs/accuracy.md, docs/performance.md); other devices read densely.
SPARSE_READING_FROM = {"cpu": 16_000, "cuda": 30_000}
SPARSE_PAIR_COST = 0.3  # of a query with a key, where most blocks are skipped; until some are timed
# Contexts from which a sparse decode step is at least as fast as a full one, by backend; with AVX2 to within
# 3 % (docs/performance.md). The reference in plain torch never is: it unpacks all codes at every step. On a
# GPU, a full step takes as long as reading its keys and values, so the limit is their bytes in a layer; a
# sparse step takes as long as
# choosing its tokens: (largest budget, bytes), as measured on an H100.
AUTO_MIN_CONTEXT = {"cpu": 12_288, "torch": math.inf}
AUTO_MIN_BYTES = {"triton": ((256, 45e6), (768, 110e6), (1536, 200e6), (math.inf, 900e6))}
# Budgets that keep an answer's distribution close to full attention's at every length (docs/accuracy.md).
LEAST_BUDGET, BUDGET_STEP, BUDGET_GROWTH = 256, 64, 4
BOUNDED_BUDGETS = 2  # factor with an error bound, which omits most tokens: for heads that attend broadly


def auto_min_context(backend: str, budget: int, token_bytes: int) -> float:
    """The context from which `auto` decodes sparsely with a budget, for keys and values of this many bytes
    per token and layer.
    """
    if backend not in AUTO_MIN_BYTES:
        return AUTO_MIN_CONTEXT[backend]
    return next(size for largest, size in AUTO_MIN_BYTES[backend] if budget <= largest) / token_bytes


def budget_for(context: int, *, bounded: bool = False) -> int:
    """The number of tokens that each query head attends to in a context of this many: grows with its square
    root, in steps. bounded: whether an error bound omits some of them.
    """
    whole = max(LEAST_BUDGET, BUDGET_STEP * math.ceil(BUDGET_GROWTH * math.sqrt(context) / BUDGET_STEP))
    return BOUNDED_BUDGETS * whole if bounded else whole
