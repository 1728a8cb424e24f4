"""How much CPU time other programs took during a measurement. Engines are measured one after another, so
another program that starts or stops in between makes one of them look fast.
"""

from __future__ import annotations

import time

import psutil

NOTICEABLE = 0.2  # cores
SHORTEST = 0.5  # seconds; the system counts in hundredths


class Contention:
    """Watches the cores of this machine from construction on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = self._seconds()
        self._cores = 0.0

    def cores(self) -> float:
        """Average number of cores kept busy by other programs since the last call; the previous result if
        that call was a moment ago, as between rows that were measured together.
        """
        (then, before), (now, after) = self._last, self._seconds()
        if now - then >= SHORTEST:
            self._last = now, after
            self._cores = max(0.0, (after - before) / (now - then))
        return self._cores

    def _seconds(self) -> tuple[float, float]:
        """The time, and the seconds that cores were busy for other programs, both since a fixed moment."""
        machine = psutil.cpu_times()
        # Guest time is part of user time, and Linux counts it in both.
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
