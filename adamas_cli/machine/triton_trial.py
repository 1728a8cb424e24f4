"""Whether Triton compiles here, tried in a separate process, so that a compiler that hangs or crashes does no
harm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass

SECONDS = 60.0  # seconds that the trial may take


@dataclass(frozen=True)
class Trial:
    """The result. problem: in one line, None on success."""

    seconds: float
    ran: bool  # on a GPU, with the right result
    problem: str | None


def try_triton(limit: float = SECONDS) -> Trial:
    """Compile a small kernel, and run it if there is a GPU."""
    begun = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            # -P: nothing may be imported from the current folder.
            [sys.executable, "-P", "-m", "adamas_cli.machine.triton_kernel"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            env=environment | {"TRITON_ALWAYS_COMPILE": "1"},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Trial(limit, False, f"it did not finish in {limit:.0f} s")
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        last = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        return Trial(seconds, False, last)
    return Trial(seconds, done.stdout.split()[-1:] == ["ran"], None)
