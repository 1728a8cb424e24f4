"""Answers of parts on disk, so that an interrupted run continues where it stopped.

An answer is found by a hash of everything that it depends on: the model, its computation and sampling, and
the ids of the whole prompt, which include text, template and question. So the right name implies the right
content, whatever the files are called and wherever they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from adamas_cli.files import appearing
from adamas_cli.folders import cache_directory

FORMAT = 1
KEPT_SECONDS = 30 * 24 * 3600  # age at which an unused answer is removed


def partials_directory() -> Path:
    """The folder of the answers to parts."""
    return cache_directory() / "partials"


def remove_partials(before: float = math.inf) -> int:
    """Remove the answers that were last used before a time, in seconds as in `time.time`; return the bytes
    freed.
    """
    freed = 0
    for file in partials_directory().glob("*/*"):
        with suppress(OSError):
            status = file.stat()
            if status.st_mtime < before:
                file.unlink()
                freed += status.st_size
    return freed


class Partials:
    """The answers of one model with one choice of settings (`facts`, JSON values).

    reads: use answers of earlier runs. writes: keep those of this run.
    """

    def __init__(self, facts: Mapping[str, Any], *, reads: bool = True, writes: bool = True) -> None:
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=str)
        self._facts = text.encode()
        self._reads, self._writes = reads, writes
        self._folder = partials_directory()
        if writes:
            remove_partials(time.time() - KEPT_SECONDS)

    def key(self, prompt: Iterable[np.ndarray]) -> str:
        """The name of the answer to a prompt, which is given as token ids in one or more arrays."""
        digest = hashlib.sha256(self._facts)
        for ids in prompt:
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
        return digest.hexdigest()

    def find(self, key: str) -> str | None:
        """The answer; None if it is missing or damaged."""
        if not self._reads:
            return None
        file = self._file(key)
        try:
            answer = json.loads(file.read_bytes())["answer"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(answer, str):
            return None
        with suppress(OSError):
            os.utime(file)
        return answer

    def keep(self, key: str, answer: str) -> None:
        """Keep an answer, completely or not at all. On a full or read-only disk it is not kept."""
        if self._writes:
            with suppress(OSError), appearing(self._file(key)) as stream:
                stream.write(json.dumps({"answer": answer}).encode())

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"
