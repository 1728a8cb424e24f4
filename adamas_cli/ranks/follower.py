"""A rank that is not the first: a process that does what the first one tells it, until that ends."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from adamas_cli.errors import AdamasError, OutOfMemoryError, as_user_error
from adamas_cli.quiet import prepare_environment
from adamas_cli.ranks.messages import (
    Call,
    Close,
    Create,
    Failed,
    Forget,
    Here,
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

LEAVING = 4.0  # seconds to leave the other ranks, less than the first one waits for this process to end
END = packed(None)
ALIKE = 30.0  # seconds after which an error that the first rank did not have is this rank's own


def main() -> None:
    """Serve the connection whose descriptor is the command's argument."""
    connection: Connection = Connection(int(sys.argv[1]))
    prepare_environment(silent=True, offline=False)
    follower = Follower(connection)
    try:
        follower.serve()
    except EndOfModel:
        follower.leave()
        os._exit(0)
    except BaseException as error:
        follower.report(error)
    os._exit(1)  # other threads may wait for ranks


class EndOfModel(BaseException):
    """The first rank needs this one no longer."""


class _FailedThereError(AdamasError):
    """The first rank has an error in the middle of what this one does."""


class Follower:
    """objects: those that all ranks have, by number; generators: those that have begun."""

    def __init__(self, connection: Connection) -> None:
        self.objects: dict[int, Any] = {}
        self.generators: dict[int, Generator[Any]] = {}
        self._connection = connection
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def serve(self) -> None:
        """Do what is told. Raises EndOfModel, or an error that the first rank does not have too."""
        import torch

        from adamas_cli.ranks import group

        told = self._next()
        assert isinstance(told, Join)
        self._ranks = group.Ranks(told.rank, told.ranks)
        store = group.meeting_point(told.port)
        self._connection.send_bytes(packed(Here()))
        group.join(self._ranks, store, torch.device(told.device))
        message = self._next()
        while True:
            try:
                self._do(message)
            except OutOfMemoryError:
                raise
            except AdamasError:
                if not self._failed_there():
                    raise
            following = self._next()
            while isinstance(following, Failed):  # only there
                self._drop(message)
                following = self._next()
            message = following

    def report(self, error: BaseException) -> None:
        """Tell the first rank why this one ends."""
        shown = as_user_error(error) if isinstance(error, Exception) else AdamasError(repr(error))
        with suppress(OSError):
            self._connection.send_bytes(packed(Report(type(shown), shown.message)))

    def leave(self) -> None:
        """Leave the other ranks, which do so at the same time: NCCL's way to end waits for all of them."""
        from adamas_cli.ranks import group

        self.generators.clear()
        self.objects.clear()
        group.leave(self._ranks)

    def _receive(self) -> None:
        """Take messages while the main thread computes, so that the end of the first rank ends this one."""
        try:
            while (data := self._connection.recv_bytes()) != END:
                self._inbox.put(data)
        except (EOFError, OSError):
            os._exit(1)
        self._inbox.put(END)
        time.sleep(LEAVING)
        os._exit(0)

    def _next(self, timeout: float | None = None) -> Any:
        """The next message. Raises EndOfModel for the last one, queue.Empty after a timeout."""
        data = self._inbox.get(timeout=timeout)
        if data == END:
            raise EndOfModel
        return unpacked(data, self.objects)

    def _failed_there(self) -> bool:
        """Whether the first rank has the error that this one has."""
        try:
            while not isinstance(message := self._next(ALIKE), Failed):
                if not isinstance(message, Close | Forget):
                    return False
                self._do(message)
        except queue.Empty:
            return False
        return True

    def _drop(self, message: Any) -> None:
        """The first rank has had an error in what this message asked for."""
        match message:
            case Create(number):
                self.objects.pop(number, None)
            case Call(_, _, number) | Next(number):
                self.objects.pop(number, None)
                self._do(Close(number))

    def _do(self, message: Any) -> None:
        match message:
            case Load(function, arguments):
                self.objects[LOADED] = function(self._ranks, **arguments)
            case Create(number, kind, arguments):
                self.objects[number] = kind(self.objects[LOADED], **arguments)
            case Call(target, method, number, arguments):
                given = {name: self._taken(value) for name, value in arguments.items()}
                result = getattr(self.objects[target], method)(**given)
                if isinstance(result, Generator):
                    self.generators[number] = result
                elif isinstance(result, Mirrored):
                    self.objects[number] = result
            case Next(number):
                if next(self.generators[number], _END) is _END:
                    del self.generators[number]
            case Close(number):
                if number in self.generators:
                    self.generators.pop(number).close()
            case Forget(numbers):
                for number in numbers:
                    self.objects.pop(number, None)
            case _:
                raise RuntimeError(f"unexpected {type(message).__name__}")

    def _taken(self, value: Any) -> Any:
        """An argument; a function that only the first rank calls becomes one that returns the same here."""
        return self._relayed if isinstance(value, Relayed) else value

    def _relayed(self, *given: Any) -> Any:
        while not isinstance(message := self._next(), Returned):
            if isinstance(message, Failed):
                self._inbox.put(packed(message))
                raise _FailedThereError("the first rank failed")
            self._do(message)
        return message.value


_END: Any = object()

if __name__ == "__main__":
    main()
