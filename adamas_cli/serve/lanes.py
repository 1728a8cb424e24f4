"""The timelines of current answers, and of earlier ones that the next answers can continue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from adamas_cli.engine.batch import Batch
from adamas_cli.engine.model import Model
from adamas_cli.errors import OutOfMemoryError
from adamas_cli.session.runtime import Runtime
from adamas_cli.session.session import Session


@dataclass(eq=False)
class Lane:
    """A session with the documents it was opened for, int32 [n]."""

    session: Session
    documents: np.ndarray
    busy: bool = True


class Lanes:
    """At most `most` sessions of a runtime, used in the model's thread."""

    def __init__(self, runtime: Runtime, most: int) -> None:
        self._runtime, self._most = runtime, most
        self._lanes: list[Lane] = []  # least recently used first
        self._batch: Batch | None = None  # of all answers, which the worker steps in turn

    @contextmanager
    def lane(self, ids: np.ndarray, documents: int, context: int) -> Iterator[Session]:
        """A session for a prompt, int32 [n], whose first tokens are its documents: the idle session over
        these documents that shares most of it, else a new one. context: tokens of the prompt and its answer.

        An error ends the session; leaving early does not.
        """
        lane = self._known(ids, documents) or self._new(ids[:documents], context)
        self._lanes.append(lane)
        lane.busy = True
        try:
            yield lane.session
        except Exception as error:
            self._lanes.remove(lane)
            if isinstance(error, OutOfMemoryError):  # make memory for the next one
                self._lanes = [other for other in self._lanes if other.busy]
            raise
        finally:
            lane.busy = False

    def close(self) -> None:
        """Wait until everything they read is stored."""
        while self._lanes:
            self._lanes.pop().session.finish()

    def _known(self, ids: np.ndarray, documents: int) -> Lane | None:
        kept = ids[:documents]
        idle = [lane for lane in self._lanes if not lane.busy and np.array_equal(lane.documents, kept)]
        best = max(idle, key=lambda lane: lane.session.timeline.reusable(ids[:-1]), default=None)
        if best is not None:
            self._lanes.remove(best)
        return best

    def _new(self, documents: np.ndarray, context: int) -> Lane:
        if len(self._lanes) >= self._most:
            oldest = next(lane for lane in self._lanes if not lane.busy)
            self._lanes.remove(oldest)
            oldest.session.finish()
            del oldest  # the next one needs its memory
        if self._batch is None:
            self._batch = Batch(Model.of(self._runtime.load()))
        session = Session(
            self._runtime,
            context,
            limit=self._runtime.context,
            reach=context,
            counts=True,
            announces=False,
            batch=self._batch,
        )
        return Lane(session, documents)
