"""The decode step of one layer in compiled stages: enter, estimate, find candidates, select and attend."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from adamas_kernels.cpu.attend import attend
from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.candidates import find_threshold, keep_candidates
from adamas_kernels.cpu.enter import append_tokens, encode_queries, encode_tokens
from adamas_kernels.cpu.estimate import estimate
from adamas_kernels.cpu.floats import Kind, RowKind
from adamas_kernels.cpu.norm_rope import rope_heads
from adamas_kernels.cpu.product import Form
from adamas_kernels.cpu.records import floats_at, ints_at, layers_at, queries_of, scratches_at, steps_at
from adamas_kernels.cpu.select import select
from adamas_kernels.cpu.shares import begin_sums
from adamas_kernels.cpu.tasks import STAGE

ONE = np.float32(1)


@njit
def add_to_tally(steps, scratch):
    """Add what the queries attended to, on one thread, because heads of a sequence share tokens."""
    queries = queries_of(steps[0])
    chosen, scores, tally = ints_at(scratch.chosen), floats_at(scratch.scores), floats_at(steps[0].tally)
    attended = ints_at(scratch.attended)
    for place in range(steps[0].batch * queries):
        step = steps[place // queries]
        at = place // queries * step.tally_b + place % step.new * step.tally_n
        for i in range(attended[place]):
            position = chosen[place * scratch.row + i]
            tally[at + position] += ONE
            tally[at + step.tally_row + position] += scores[place * scratch.row + i]


class Stages(NamedTuple):
    """Addresses of the compiled stages of a step, in order, with STAGE's arguments."""

    enter: int
    estimate: int
    threshold: int
    candidates: int
    attend: int

    @staticmethod
    def tasks(kv_heads: int, queries: int, segments: int) -> Stages:
        """How many tasks the stages have, for these totals over all sequences."""
        return Stages(kv_heads, kv_heads * segments, queries, queries * segments, queries)


@lru_cache(maxsize=None, typed=True)  # kinds are empty tuples that differ only in type
def build_stages(form: Form, query_kind: Kind, key_kind: RowKind, value_kind: RowKind) -> Stages:
    """Compile the stages for this form of the byte product and these number formats of queries and of the
    cache's rows.
    """
    stamp = source_stamp()

    def enter_task(pair, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        step = steps[b]
        if step.rope:
            rope_heads(step, head)
        append_tokens(query_kind, key_kind, value_kind, step, layer, scratch, b, head)
        encode_tokens(query_kind, key_kind, step, layer, scratch, b, head)
        encode_queries(query_kind, step, layer, scratch, b, head)

    def estimate_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        pair, segment = task // steps[0].room, task % steps[0].room
        step = steps[pair // steps[0].kv_heads]
        if segment < step.segments:
            estimate(form, step, layer, scratch, pair // step.kv_heads, pair % step.kv_heads, segment)

    def threshold_task(place, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        step = steps[place // queries_of(steps[0])]
        find_threshold(step, scratch, place)
        if step.least_share:
            begin_sums(query_kind, key_kind, step, layer, scratch, place)

    def candidates_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, scratch = steps_at(step_at), scratches_at(scratch_at)[thread]
        place, segment = task // steps[0].room, task % steps[0].room
        step = steps[place // queries_of(steps[0])]
        if segment < step.segments:
            keep_candidates(step, scratch, place, segment)

    def attend_task(place, thread, step_at, layer_at, scratch_at):
        _ = stamp
        steps, layer, scratch = steps_at(step_at), layers_at(layer_at)[0], scratches_at(scratch_at)[thread]
        pair = place // (steps[0].group * steps[0].new)
        b, head = pair // steps[0].kv_heads, pair % steps[0].kv_heads
        step = steps[b]
        count, log_mass = select(step, scratch, place)
        attend(query_kind, key_kind, value_kind, step, layer, scratch, b, head, place, count, log_mass)

    tasks = enter_task, estimate_task, threshold_task, candidates_task, attend_task
    return Stages(*(stage(task, STAGE) for task in tasks))


@cache
def build_tally() -> int:
    """Compile the one-task stage that adds to the tally."""
    stamp = source_stamp()

    def tally_task(task, thread, step_at, layer_at, scratch_at):
        _ = stamp
        add_to_tally(steps_at(step_at), scratches_at(scratch_at)[0])

    return stage(tally_task, STAGE)
