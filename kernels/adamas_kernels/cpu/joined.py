"""Joins the separate stages of several sequences into one, whose tasks run side by side."""

from __future__ import annotations

from functools import cache

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.records import programs_at
from adamas_kernels.cpu.tasks import STAGE, call


@cache
def build_joined() -> int:
    """Compile a stage with the tasks of several STAGES, one after the other; its first record is the first of
    them.
    """
    stamp = source_stamp()

    def joined_task(task, thread, stages_at, unused, unused_too):
        _ = stamp
        stages = programs_at(stages_at)
        at = 0
        while task >= stages[at].tasks:
            task -= stages[at].tasks
            at += 1
        call(stages[at].function, task, thread, stages[at].first, stages[at].second, stages[at].third)

    return stage(joined_task, STAGE)
