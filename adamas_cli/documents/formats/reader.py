"""Converts files in a child process, which is supervised and replaced when it fails."""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

OCR_SILENCE_SECONDS = 300.0  # until the next page; the number of pages is not limited
SILENCE_SECONDS = 60.0  # until the next part, such as a page of a PDF, or all of a Word document
TOTAL_SECONDS = 600.0
MAX_TEXT_BYTES = 256 * 2**20
_READ = 1 << 18
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; from adamas_cli.documents.formats.worker import main; main()"
)


class Reader:
    """Runs readers in a child process, started at the first file and restarted after one that broke it."""

    def __init__(self, silence: float = SILENCE_SECONDS, total: float = TOTAL_SECONDS) -> None:
        self._silence = silence
        self._total = total
        self._child: subprocess.Popen[bytes] | None = None
        self._held = bytearray()
        self._scratch = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, kind: Format, path: str, **options: Any) -> Iterator[Part | Remark]:
        """The parts of the file, then remarks on it. options: arguments of this format's reader besides the
        path. Raises UnreadableError, perhaps after some parts.
        """
        finished = False
        try:
            child = self._started()
            assert child.stdin is not None
            job = json.dumps({"format": kind, "path": os.path.abspath(path), "options": options})
            with suppress(BrokenPipeError):  # the child's end is noticed below
                child.stdin.write(job.encode() + b"\n")
                child.stdin.flush()
            size = 0
            for line in self._lines(child, by_ocr=bool(options.get("ocr"))):
                if line.startswith(b"{"):
                    finished = True
                    last = json.loads(line)
                    yield from (Remark(*remark) for remark in last["remarks"])
                    if "failed" in last:
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
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # For files inside files: deleted with the child, however it ends.
            self._scratch = tempfile.mkdtemp(prefix="adamas-")
            # -P and an explicit path: no module is imported from the current folder.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, *filter(None, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": self._scratch},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        return self._child

    def _lines(self, child: subprocess.Popen[bytes], *, by_ocr: bool) -> Iterator[bytes]:
        assert child.stdout is not None
        deadline = math.inf if by_ocr else time.monotonic() + self._total
        silence = max(self._silence, OCR_SILENCE_SECONDS) if by_ocr else self._silence
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
            patience = min(silence, deadline - time.monotonic())
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, patience))
            if not ready:
                raise UnreadableError(Trouble.TOO_SLOW)
            block = os.read(child.stdout.fileno(), _READ)
            if not block:
                raise UnreadableError(Trouble.DAMAGED, "the reader crashed")
            self._held += block
