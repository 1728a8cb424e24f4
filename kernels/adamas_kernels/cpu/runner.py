"""Runs compiled stages on as many threads as torch uses, and announces compilations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from adamas_kernels.cpu.build import NOTICE, announced
from adamas_kernels.cpu.records import STAGES
from adamas_kernels.cpu.tasks import Program, build_member

T = TypeVar("T")
_told: list[str] = []  # announce once for all runners of a process
Stage = tuple[int, ...]  # a function's address, the number of its tasks, and the addresses of three records


class Runner:
    """Runs programs on `threads` threads.

    announce: called with one line before anything is compiled; compiled code is kept on disk.
    """

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        self._announce = announce
        self.threads = torch.get_num_threads()

    def compiled(self, build: Callable[..., T], *arguments: object) -> T:
        """What `build` compiles; `build` caches it."""
        with announced(self._tell):
            return build(*arguments)

    def run(self, *stages: Stage) -> None:
        """Run stages in order."""
        self.run_program(Program(np.array(list(stages), STAGES)))

    def run_program(self, program: Program) -> None:
        """Run a program that may be kept and changed between runs."""
        self.compiled(build_member)
        program.run(self.threads)

    def _tell(self) -> None:
        if self._announce is not None and not _told:
            _told.append(NOTICE)
            self._announce(NOTICE)
