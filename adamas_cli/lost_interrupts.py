"""Interrupts that Python drops, delivered again.

A Ctrl-C can arrive while Python runs a finalizer, a weak reference's callback or a function that a C library
calls. No exception can leave these: Python reports the interrupt as ignored, and the command goes on as if
nobody had pressed a key.
"""

from __future__ import annotations

import signal
import sys
import threading

AGAIN = 0.01  # seconds: what dropped the interrupt has usually ended then, and if not, it comes here again


def deliver_lost_interrupts() -> None:
    """From now on a dropped interrupt comes again, in the main thread, until something handles it."""
    report = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN, _interrupt).start()
        else:
            report(unraisable)

    sys.unraisablehook = hook


def _interrupt() -> None:
    # A signal, so that the main thread also leaves a system call in which it waits.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
