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
class Base:
    """A session that reads documents, int32 [n], for answers that continue from forks of it. users: answers
    in progress that need it.
    """

    session: Session
    documents: np.ndarray
    users: int = 0


@dataclass(eq=False)
class Lane:
    """A session with the documents it was opened for, int32 [n]. base: what it is a fork of, if it is one."""

    session: Session
    documents: np.ndarray
    base: Base | None = None
    busy: bool = True


class Lanes:
    """At most `most` sessions of a runtime, used in the model's thread. Those over the same documents share
    their keys and values, if forks can share memory.
    """

    def __init__(self, runtime: Runtime, most: int) -> None:
        self._runtime, self._most = runtime, most
        self._lanes: list[Lane] = []  # least recently used first
        self._bases: list[Base] = []
        self._batch: Batch | None = None  # of all answers, which the worker steps in turn

    @contextmanager
    def base(self, documents: np.ndarray, context: int) -> Iterator[Base | None]:
        """Where documents, int32 [n], are to be read before a lane over them is used; None if the lane itself
        must read them. context: tokens of the prompt and its answer.
        """
        base = self._known_base(documents, context) or self._new_base(documents, context)
        if base is None:
            yield None
            return
        base.users += 1
        try:
            yield base
        except Exception:
            if base.session.timeline.length < len(documents):
                self._bases.remove(base)
            raise
        finally:
            base.users -= 1
            self._drop_unused()

    @contextmanager
    def lane(self, ids: np.ndarray, documents: int, context: int, base: Base | None) -> Iterator[Session]:
        """A session for a prompt, int32 [n], whose first tokens are its documents: the idle session over
        these documents that shares most of it, else a new one. context: tokens of the prompt and its answer.
        base: where the documents were read.

        An error ends the session; leaving early does not.
        """
        lane = self._known(ids, documents) or self._new(ids[:documents], context, base)
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
        while self._bases:
            self._bases.pop().session.finish()

    def _known(self, ids: np.ndarray, documents: int) -> Lane | None:
        kept = ids[:documents]
        idle = [lane for lane in self._lanes if not lane.busy and np.array_equal(lane.documents, kept)]
        best = max(idle, key=lambda lane: lane.session.timeline.reusable(ids[:-1]), default=None)
        if best is not None:
            self._lanes.remove(best)
        return best

    def _new(self, documents: np.ndarray, context: int, base: Base | None) -> Lane:
        self._make_room(base)
        session = self._session(context) if base is None else base.session.fork()
        return Lane(session, documents, base)

    def _known_base(self, documents: np.ndarray, context: int) -> Base | None:
        """The base with these documents; not one whose positions rotate as in a shorter text, since its forks
        still need them.
        """
        for base in self._bases:
            if np.array_equal(base.documents, documents) and not base.session.timeline.outgrows(context):
                return base
        return None

    def _new_base(self, documents: np.ndarray, context: int) -> Base | None:
        if not len(documents):
            return None
        self._make_room(None)
        session = self._session(context, forks=True)
        if not session.timeline.forks_share:
            return None
        base = Base(session, documents)
        self._bases.append(base)
        return base

    def _make_room(self, wanted: Base | None) -> None:
        """End the least recently used lane if there are as many as there may be."""
        if len(self._lanes) >= self._most:
            oldest = next(lane for lane in self._lanes if not lane.busy)
            self._lanes.remove(oldest)
            oldest.session.finish()
            del oldest  # the next one needs its memory
        self._drop_unused(wanted)

    def _drop_unused(self, wanted: Base | None = None) -> None:
        """End bases that no lane or answer needs."""
        needed = {id(lane.base) for lane in self._lanes} | {id(wanted)}
        for base in [one for one in self._bases if not one.users and id(one) not in needed]:
            self._bases.remove(base)
            base.session.finish()

    def _session(self, context: int, *, forks: bool = False) -> Session:
        if self._batch is None:
            self._batch = Batch(Model.of(self._runtime.load()))
        return Session(
            self._runtime,
            context,
            limit=self._runtime.context,
            reach=context,
            counts=True,
            announces=False,
            batch=self._batch,
            forks=forks,
        )
