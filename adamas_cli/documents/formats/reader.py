"""Files are converted in a process of their own, which is watched and replaced when it fails."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Note, Part

SILENCE_SECONDS = 60.0  # until the next part, such as a page of a PDF, or all of a Word document
TOTAL_SECONDS = 600.0
MAX_TEXT_BYTES = 256 * 2**20
_READ = 1 << 18
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; from adamas_cli.documents.formats.worker import main; main()"
)


class Reader:
    """Runs readers in a child process; starts it at the first file, and anew after one that broke it."""

    def __init__(self, silence: float = SILENCE_SECONDS, total: float = TOTAL_SECONDS) -> None:
        self._silence = silence
        self._total = total
        self._child: subprocess.Popen[bytes] | None = None
        self._held = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, kind: Format, path: str, encoding: str | None = None) -> Iterator[Part | Note]:
        """The parts of the file and notes on it; encoding: the codec that the user names.

        Raises UnreadableError, perhaps after some of them.
        """
        finished = False
        try:
            child = self._started()
            assert child.stdin is not None
            job = json.dumps({"format": kind, "path": os.path.abspath(path), "encoding": encoding})
            with suppress(BrokenPipeError):  # its end is noticed below
                child.stdin.write(job.encode() + b"\n")
                child.stdin.flush()
            size = 0
            for line in self._lines(child):
                if line.startswith(b"{"):
                    last = json.loads(line)
                    if "note" in last:
                        yield Note(**last)
                        continue
                    finished = True
                    if last:
                        raise UnreadableError(Trouble(last["failed"]), last["why"])
                    return
                size += len(line)
                if size > MAX_TEXT_BYTES:
                    raise UnreadableError(Trouble.TOO_LARGE)
                yield Part(*json.loads(line))
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        self._held.clear()
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # -P and an explicit path: no module is imported from the folder that the user is in.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, *filter(None, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        return self._child

    def _lines(self, child: subprocess.Popen[bytes]) -> Iterator[bytes]:
        assert child.stdout is not None
        deadline = time.monotonic() + self._total
        searched = 0
        while True:
            end = self._held.find(b"\n", searched) + 1
            if end:
                line = bytes(self._held[:end])
                del self._held[:end]
                searched = 0
                yield line
                continue
            searched = len(self._held)
            patience = min(self._silence, deadline - time.monotonic())
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, patience))
            if not ready:
                raise UnreadableError(Trouble.TOO_SLOW)
            block = os.read(child.stdout.fileno(), _READ)
            if not block:
                raise UnreadableError(Trouble.DAMAGED, "the reader crashed")
            self._held += block
