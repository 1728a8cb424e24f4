"""Standard streams that the caller has closed, as `>&-` in a shell or some supervisors do.

Python then has None in their place, and the next opened file gets their descriptor, so that the output of a
library would end up in that file.
"""

from __future__ import annotations

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by descriptor


def open_closed() -> list[str]:
    """Redirect each closed standard stream to /dev/null, for child processes too; return their names."""
    closed = []
    for descriptor, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            closed.append(name)
            stream = open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    return closed
