"""Mixtures of experts: choose a token's experts, and sum their outputs. Only the chosen experts' rows are
read.
"""

from __future__ import annotations

import math
from functools import cache
from typing import get_args

import numpy as np

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.multiply import multiply_rows, share_of
from adamas_kernels.cpu.records import floats_at, ints_at, mixtures_at, routes_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.weights import Scoring

SCORINGS = get_args(Scoring)
SOFTMAX, SPARSEMIXER = SCORINGS.index("softmax"), SCORINGS.index("sparsemixer")
ZERO, ONE, LEAST = np.float32(0), np.float32(1), np.float32(-np.inf)


@njit
def sigmoid(x):
    """The sigmoid of one float32."""
    return ONE / (ONE + np.float32(math.exp(-x)))


@njit
def highest_of(scores, first, last):
    """The index of the highest of scores[first:last]."""
    place = first
    for at in range(first, last):
        if scores[at] > scores[place]:
            place = at
    return place


@njit
def score_experts(route, logits, scores):
    """Softmax or sigmoid of all logits."""
    experts = route.experts
    if route.scoring != SOFTMAX:
        for expert in range(experts):
            scores[expert] = sigmoid(logits[expert])
        return
    highest, total = logits[highest_of(logits, 0, experts)], ZERO
    for expert in range(experts):
        scores[expert] = np.float32(math.exp(logits[expert] - highest))
        total += scores[expert]
    for expert in range(experts):
        scores[expert] /= total


@njit
def leave_groups(route, ranks):
    """Rank experts last unless their group is among those whose two highest ranks have the highest sums."""
    size = route.experts // route.groups
    sums = np.empty(route.groups, np.float32)
    for group in range(route.groups):
        first, last = group * size, (group + 1) * size
        best = highest_of(ranks, first, last)
        second = LEAST
        for expert in range(first, last):
            if expert != best:
                second = max(second, ranks[expert])
        sums[group] = ranks[best] + second
    for _ in range(route.kept_groups):
        sums[highest_of(sums, 0, route.groups)] = LEAST
    for group in range(route.groups):
        if sums[group] > LEAST:
            for expert in range(group * size, (group + 1) * size):
                ranks[expert] = LEAST


@njit
def choose_by_score(route, logits, chosen, shares):
    """Write the experts with the highest scores, and their shares."""
    scores, ranks = np.empty(route.experts, np.float32), np.empty(route.experts, np.float32)
    score_experts(route, logits, scores)
    for expert in range(route.experts):
        ranks[expert] = scores[expert]
        if route.correction:
            ranks[expert] += floats_at(route.correction)[expert]
    if route.kept_groups < route.groups:
        leave_groups(route, ranks)
    total = ZERO
    for slot in range(route.slots):
        expert = highest_of(ranks, 0, route.experts)
        chosen[slot], shares[slot], ranks[expert] = expert, scores[expert], LEAST
        total += scores[expert]
    factor = np.float32(route.factor) / (total if route.normalized else ONE)
    for slot in range(route.slots):
        shares[slot] *= factor


@njit
def choose_by_sparsemixer(route, logits, chosen, shares):
    """Repeatedly choose the highest remaining logit. Its share is its softmax over the remaining logits
    within a tolerance of it (https://arxiv.org/abs/2409.12136, without the parts for training).
    """
    left = np.empty(route.experts, np.float32)
    for expert in range(route.experts):
        left[expert] = logits[expert]
    for slot in range(route.slots):
        best = highest_of(left, 0, route.experts)
        highest, total = left[best], ZERO
        for expert in range(route.experts):
            size = max(abs(logits[expert]), highest)
            if highest - logits[expert] <= np.float32(route.tolerance) * size:
                total += np.float32(math.exp(left[expert] - highest))
        chosen[slot], shares[slot], left[best] = best, ONE / total, LEAST


@cache
def build_route() -> int:
    """Compile the one-task stage that chooses experts; its record: a ROUTE."""
    stamp = source_stamp()

    def route_task(task, thread, route_at, unused, unused_too):
        _ = stamp
        route = routes_at(route_at)[0]
        logits, chosen, shares = floats_at(route.logits), ints_at(route.chosen), floats_at(route.shares)
        if route.scoring == SPARSEMIXER:
            choose_by_sparsemixer(route, logits, chosen, shares)
        else:
            choose_by_score(route, logits, chosen, shares)
        if route.gate:
            floats_at(route.scale)[0] = sigmoid(floats_at(route.gate)[0])

    return stage(route_task, STAGE)


@cache
def build_mixture() -> int:
    """Compile the stage that sums the outputs of the chosen experts; its record: a MIXTURE."""
    stamp = source_stamp()

    def mixture_task(task, thread, mixture_at, unused, unused_too):
        _ = stamp
        mixture = mixtures_at(mixture_at)[0]
        chosen, shares, out = ints_at(mixture.chosen), floats_at(mixture.shares), floats_at(mixture.out)
        first, count = share_of(task, mixture.share, mixture.rows)
        total = np.zeros(count, np.float32)
        for slot in range(mixture.slots):
            inner = mixture.inner + 4 * slot * mixture.inner_step
            rounded = mixture.rounded + slot * mixture.rounded_step
            row = chosen[slot] * mixture.rows + first
            found = multiply_rows(mixture.product, row, count, inner, rounded)
            for row in range(count):
                total[row] += shares[slot] * found[row]
        factor = np.float32(mixture.factor)
        for row in range(count):
            if mixture.add:
                out[first + row] += total[row] * factor
            else:
                out[first + row] = total[row] * factor

    return stage(mixture_task, STAGE)
