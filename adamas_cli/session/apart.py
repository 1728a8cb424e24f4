"""Documents read apart from each other, each after the beginning of the prompt, and joined for questions.

To the store each is an ordinary prompt, whose keys know nothing of the others. So a changed document costs
only itself. All have the same positions, as in Parallel Context Windows (Ratner et al. 2023,
https://arxiv.org/abs/2212.10947): their order does not matter, and the question comes after the longest one.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

from adamas_cli.engine.events import Prefill
from adamas_cli.errors import UsageError
from adamas_cli.prompt.layout import Layout
from adamas_cli.session.runtime import Runtime
from adamas_cli.session.session import Session
from adamas_cli.settings import OriginSettings


def require_joining(session: Session) -> None:
    """Raises UsageError if a session cannot join documents, before any is read."""
    if (reason := session.timeline.unjoinable) is not None:
        raise UsageError(f"documents cannot be read `apart` here: {reason}")


def read_apart(session: Session, layout: Layout, reach: int, tokens: int) -> Generator[Prefill]:
    """Bring the documents of a layout into a session's timeline, whole ones as far as it is interrupted.

    reach: the length that sets how positions rotate. tokens: to report as read in all, with the question.
    """
    begun, timeline, total = time.perf_counter(), session.timeline, layout.total
    reader, end, reused = _reading(session.runtime), 0, 0
    for path, ids in layout.parts():
        start = layout.beginning if end else 0
        before, end = end, end + len(ids) - start
        if end <= timeline.length:  # before an interruption
            reused += end - before
            continue
        with Session(reader, len(ids), reach=reach, announces=False) as one:
            one.keep(ids, [path])
            for event in one.sync(ids):
                done = before + max(0, event.done - start)
                known = reused + max(0, event.reused - start)
                seconds = time.perf_counter() - begun
                left = seconds / (done - known) * (total - done) if done > known else None
                yield replace(
                    event, done=done, total=total, reused=known, seconds=seconds, remaining_seconds=left
                )
            reused += session.join(one, start)
    timeline.end_joining()
    if reused:
        session.runtime.progress.note(f"reused {reused:,} of {tokens:,} tokens")


def _reading(runtime: Runtime) -> Runtime:
    """The runtime of sessions that only read: without codes, which are made of all documents together."""
    attention = replace(runtime.attention, attn="full", draft="off")
    return replace(runtime, attention=attention, origins=OriginSettings())
