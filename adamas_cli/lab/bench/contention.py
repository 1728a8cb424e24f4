"""How much of the CPU other programs took while something was measured: engines are measured one after
another, so that a neighbour who comes or goes in between makes one of them look fast.
"""

from __future__ import annotations

import time

import psutil

NOTICEABLE = 0.2  # cores
SHORTEST = 0.5  # seconds; a system counts in hundredths


class Contention:
    """Watches the cores of this machine from its making on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = self._seconds()
        self._cores = 0.0

    def cores(self) -> float:
        """Cores that other programs kept busy, on average since the last call; what that call said where it
        was just now, as between rows that were measured together.
        """
        (then, before), (now, after) = self._last, self._seconds()
        if now - then >= SHORTEST:
            self._last = now, after
            self._cores = max(0.0, (after - before) / (now - then))
        return self._cores

    def _seconds(self) -> tuple[float, float]:
        """The time, and the seconds that cores have been busy for others, both since any fixed moment."""
        machine = psutil.cpu_times()
        # Guests' seconds are among the user's, and Linux counts them in both.
        idle = ("idle", "iowait", "guest", "guest_nice")
        busy = sum(seconds for name, seconds in machine._asdict().items() if name not in idle)
        times = self._process.cpu_times()
        own = times.user + times.system + times.children_user + times.children_system
        for child in self._process.children(recursive=True):
            try:
                spent = child.cpu_times()
            except psutil.Error:  # it has ended meanwhile
                continue
            own += spent.user + spent.system
        return time.monotonic(), busy - own
