"""Calls that all ranks make: the first rank's objects tell the others', which do the same.

A method marked here is sent to the other ranks before the first one runs it; what it calls in turn is part of
it and is not sent. Of a generator each `next` is sent, so between two of them no rank computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

LOADED = 0  # the number of the loaded model

P = ParamSpec("P")
R = TypeVar("R")
Arguments = Mapping[str, Any]
Told = Callable[[Arguments], Arguments]  # from the first rank's arguments to those of the others


class Leader(Protocol):
    """What tells the other ranks; see `team.Team`."""

    @property
    def under_way(self) -> bool:
        """Whether all ranks are in a call now."""
        ...

    def free_number(self) -> int:
        """A number for an object or a generator."""
        ...

    def register(self, target: Mirrored, number: int) -> None:
        """The object of this number is this one, as long as it is used."""
        ...

    def create(self, target: Mirrored, arguments: Arguments) -> AbstractContextManager[None]:
        """A scope in which all ranks create an object."""
        ...

    def call(
        self, target: Mirrored, method: str, number: int, arguments: Arguments
    ) -> AbstractContextManager[None]:
        """A scope in which all ranks call a method; functions among its arguments stay here."""
        ...

    def step(self, number: int) -> AbstractContextManager[None]:
        """A scope in which all ranks run a generator to its next event."""
        ...

    def end(self, number: int) -> None:
        """The others end a generator. That may happen in another call, when Python drops it."""
        ...

    def relaying(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which tells the others what it returns."""
        ...


class Mirrored:
    """An object that each rank has. team: the other ranks, where this one leads them; else None. number: its
    own among all objects of the team.
    """

    team: Leader | None = None
    number: int = -1


def part_name(rank: int, count: int) -> str:
    """A rank's part of a model for the user, counted from 1."""
    return f"part {rank + 1} of {count}"


def _as_they_are(arguments: Arguments) -> Arguments:
    return arguments


def _named(method: Callable[..., Any], *given: Any, **options: Any) -> dict[str, Any]:
    """Arguments by their names."""
    return inspect.signature(method).bind(*given, **options).arguments


def created(told: Told = _as_they_are) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Marks an `__init__` whose first argument is a loaded model: other ranks create the same with theirs.
    told: the other arguments for them.
    """

    def mark(init: Callable[P, None]) -> Callable[P, None]:
        @wraps(init)
        def create(*given: P.args, **options: P.kwargs) -> None:
            self: Any = given[0]
            arguments = _named(init, *given, **options)
            _, loaded = list(arguments.values())[:2]
            self.team = team = loaded.team if isinstance(loaded, Mirrored) else None
            if team is None or team.under_way:
                init(*given, **options)
                return
            rest = dict(list(arguments.items())[2:])
            with team.create(self, told(rest)):
                init(*given, **options)

        return create

    return mark


def mirrored(method: Callable[P, R]) -> Callable[P, R]:
    """Marks a method of a `Mirrored` that all ranks run; a `Mirrored` that it returns is also theirs."""

    @wraps(method)
    def call(*given: P.args, **options: P.kwargs) -> R:
        self: Any = given[0]
        team: Leader | None = self.team
        if team is None or team.under_way:
            return method(*given, **options)
        arguments = _named(method, *given, **options)
        number = team.free_number()
        with team.call(self, method.__name__, number, dict(list(arguments.items())[1:])):
            result = method(*given, **options)
        if isinstance(result, Mirrored):
            team.register(result, number)
        return result

    return call


def mirrored_events(
    told: Told = _as_they_are,
) -> Callable[[Callable[..., Generator[R]]], Callable[..., Generator[R]]]:
    """Marks a generator method that all ranks run. Functions among its arguments are called in the first rank
    alone, and the others get what they return. told: other changes to the arguments for the others.
    """

    def mark(method: Callable[..., Generator[R]]) -> Callable[..., Generator[R]]:
        def led(team: Leader, self: Any, arguments: dict[str, Any]) -> Generator[R]:
            number = team.free_number()
            own = {
                name: team.relaying(value) if callable(value) else value for name, value in arguments.items()
            }
            with team.call(self, method.__name__, number, told(arguments)):
                events = method(self, **own)
            ended = False
            try:
                while True:
                    with team.step(number):
                        event = next(events, _END)
                    if event is _END:
                        ended = True
                        return
                    yield event
            finally:
                if not ended:
                    team.end(number)
                    events.close()

        @wraps(method)
        def call(self: Any, *given: Any, **options: Any) -> Generator[R]:
            team: Leader | None = self.team
            if team is None or team.under_way:
                return method(self, *given, **options)
            arguments = _named(method, self, *given, **options)
            return led(team, self, dict(list(arguments.items())[1:]))

        return call

    return mark


_END: Any = object()
