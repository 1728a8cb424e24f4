"""The first rank's side: it starts the other ranks, tells them what to do, and notices if one ends."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import count as counted
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar

import torch

from adamas_cli.errors import AdamasError, OutOfMemoryError, RankLostError, UsageError
from adamas_cli.ranks import group
from adamas_cli.ranks.interrupts import held_interrupts
from adamas_cli.ranks.messages import (
    Call,
    Close,
    Create,
    Failed,
    Forget,
    Join,
    Load,
    Next,
    Relayed,
    Report,
    Returned,
    packed,
    unpacked,
)
from adamas_cli.ranks.mirror import LOADED, Mirrored

R = TypeVar("R")

SETTLING = 0.3  # seconds: one that ends takes others with it, and the first reason counts
NOTICED = 1.0  # seconds until the end of a rank is known after an error here, which may come from that
STUCK = 20.0  # seconds that this process may still wait on a GPU for a rank that has ended
ENDING = 5.0  # seconds for the others to end by themselves


class _Other:
    """Another rank's process. kept: what it wrote to stderr."""

    def __init__(self, ranks: group.Ranks, device: torch.device, port: int) -> None:
        self.ranks = ranks
        self.kept: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        here, there = socket.socketpair()
        path = os.pathsep.join(filter(None, sys.path))
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "adamas_cli.ranks.follower", str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.kept,
                pass_fds=[there.fileno()],
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the first rank
            )
        self.connection: Connection = Connection(os.dup(here.fileno()))
        threading.Thread(target=self._hang_up, args=(here,), daemon=True).start()
        self.send(packed(Join(ranks.rank, ranks.count, port, str(device))))

    def _hang_up(self, line: socket.socket) -> None:
        """End the connection with the process: processes that it started may hold its other end."""
        with line:
            self.process.wait()
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """Send a message; one that has ended is noticed elsewhere."""
        with suppress(OSError):
            self.connection.send_bytes(data)

    def reason(self) -> str:
        """Why it has ended."""
        try:
            code = self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
        self.kept.seek(0)
        lines = self.kept.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}" + (f", {lines[-1].strip()}" if lines else "")

    def end(self) -> None:
        """End it, at the latest after a while."""
        with suppress(OSError):
            self.connection.close()
        try:
            self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.kept.close()


class Team:
    """The ranks that share a model, led by this process. ranks: its own view."""

    def __init__(self, devices: list[torch.device]) -> None:
        """devices: of each rank, the first one's first. Raises RankLostError if one cannot start, UsageError
        if this process has a split model already.
        """
        if group.has_joined():
            gc.collect()  # a split model that nothing uses any more still has its processes
        if group.has_joined():
            raise UsageError(
                "a process has one split model at a time: end the first one, or leave out `gpus`."
            )
        self.ranks = group.Ranks(0, len(devices))
        self._on_gpu = devices[0].type == "cuda"
        self._numbers = counted(LOADED + 1)
        self._unused: deque[int] = deque()  # numbers of objects that the others may forget
        self._losses: list[tuple[int, AdamasError]] = []  # with their rank among reasons
        self._lost, self._closing, self._here = threading.Event(), False, threading.Semaphore(0)
        store = group.meeting_point()
        self._others = [
            _Other(group.Ranks(rank, len(devices)), device, store.port)
            for rank, device in enumerate(devices)
            if rank > 0
        ]
        for other in self._others:
            threading.Thread(target=self._watch, args=(other,), daemon=True).start()
        try:
            for _ in self._others:
                self._here.acquire()
            self._require_all()
            group.join(self.ranks, store, devices[0])
        except BaseException:
            self.close(at_once=True)
            raise

    def load(self, function: Callable[..., R], arguments: Mapping[str, Any], **own: Any) -> R:
        """Call a function with each rank's view and the same arguments: the others keep its result as their
        loaded model. own: further arguments here. An error ends the team.
        """
        try:
            with self._together(Load(function, arguments), holds=False):
                return function(self.ranks, **arguments, **own)
        except BaseException:
            self.close(at_once=True)
            raise

    @property
    def under_way(self) -> bool:
        """See `Leader.under_way`."""
        return self.ranks.under_way

    def free_number(self) -> int:
        """See `Leader.free_number`."""
        return next(self._numbers)

    def register(self, target: Mirrored, number: int) -> None:
        """See `Leader.register`."""
        target.number = number
        weakref.finalize(target, self._unused.append, number).atexit = False

    @contextmanager
    def create(self, target: Mirrored, arguments: Mapping[str, Any]) -> Iterator[None]:
        """See `Leader.create`."""
        self.register(target, self.free_number())
        with self._together(Create(target.number, type(target), arguments)):
            yield

    @contextmanager
    def call(
        self, target: Mirrored, method: str, number: int, arguments: Mapping[str, Any]
    ) -> Iterator[None]:
        """See `Leader.call`."""
        told = {name: Relayed() if callable(value) else value for name, value in arguments.items()}
        with self._together(Call(target.number, method, number, told)):
            yield

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """See `Leader.step`."""
        with self._together(Next(number)):
            yield

    def end(self, number: int) -> None:
        """See `Leader.end`."""
        if self.lost is None:
            self._send(Close(number))

    def relaying(self, function: Callable[..., R]) -> Callable[..., R]:
        """See `Leader.relaying`."""

        def told(*given: Any) -> R:
            value = function(*given)
            self._send(Returned(value))
            return value

        return told

    @property
    def lost(self) -> AdamasError | None:
        """Why ranks are missing; None if all are there."""
        return max(self._losses, key=lambda loss: loss[0])[1] if self._losses else None

    def close(self, *, at_once: bool = False) -> None:
        """End the other ranks. at_once: even where they wait for each other."""
        if self._closing:
            return
        self._closing = True
        for other in self._others:
            if at_once:
                other.process.kill()
            other.send(packed(None))
        group.leave(self.ranks, at_once=at_once)
        for other in self._others:
            other.end()

    def _require_all(self) -> None:
        """Raises the reason if ranks are missing."""
        if (lost := self.lost) is not None:
            raise lost
        if self._closing:
            raise RankLostError("the processes of the other GPUs have ended: load the model again")

    def _send(self, message: Any) -> None:
        messages = [message]
        if self._unused:
            numbers = tuple(self._unused.popleft() for _ in range(len(self._unused)))
            messages.insert(0, Forget(numbers))
        for one in messages:
            data = packed(one)
            for other in self._others:
                other.send(data)

    @contextmanager
    def _together(self, message: Any, *, holds: bool = True) -> Iterator[None]:
        """A scope in which all ranks do the same, as this message tells the others. holds: Ctrl-C until its
        end; an interrupted one ends the team.
        """
        self._require_all()
        with held_interrupts() if holds else nullcontext():
            self._send(message)
            self.ranks.under_way = True
            try:
                yield
                self._require_all()  # a sum that was not waited for to its end is wrong
            except BaseException as error:
                self._failed(error)
                raise
            finally:
                self.ranks.under_way = False

    def _failed(self, error: BaseException) -> None:
        """An error here: the others have it too, or cannot go on. Raises RankLostError if it is because one
        of them has ended.
        """
        alike = isinstance(error, AdamasError) and not isinstance(error, OutOfMemoryError)
        if isinstance(error, Exception) and self._lost.wait(NOTICED):
            time.sleep(SETTLING)
            lost = self.lost
            self.close(at_once=True)
            assert lost is not None
            raise lost from None
        if alike:
            self._send(Failed())
        else:
            self.close(at_once=True)

    def _watch(self, other: _Other) -> None:
        """Read what another rank reports, until it ends."""
        try:
            while True:
                report = unpacked(other.connection.recv_bytes(), {})
                if isinstance(report, Report):
                    self._lose(
                        other, 2 if report.kind is not AdamasError else 0, report.error(other.ranks.name)
                    )
                else:
                    self._here.release()
        except (EOFError, OSError):
            pass
        if not self._closing:
            reason = other.reason()
            self._lose(
                other, 1, RankLostError(f"the process of {other.ranks.name} of the model ended: {reason}")
            )
        self._here.release()

    def _lose(self, other: _Other, weight: int, error: AdamasError) -> None:
        """A rank ends. This process ends too if it cannot be kept from waiting for that rank on a GPU."""
        if self._closing:
            return
        self._losses.append((weight, error))
        if self._lost.is_set():
            return
        self._lost.set()
        deadline = time.monotonic() + STUCK
        time.sleep(SETTLING)
        if not self._on_gpu:  # closed connections end what waits for them
            return
        if self.ranks.under_way:  # beside this thread: on a GPU that waits, this may wait as well
            threading.Thread(target=group.unblock, args=(self.ranks,), daemon=True).start()
        while self.ranks.under_way and not self._closing and time.monotonic() < deadline:
            time.sleep(SETTLING)
        if self.ranks.under_way and not self._closing:
            lost = self.lost
            assert lost is not None
            print(f"adamas: {lost.message}", file=sys.stderr, flush=True)
            for one in self._others:
                one.process.kill()
            os._exit(lost.exit_code)
