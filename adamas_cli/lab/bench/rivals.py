"""Other engines for comparison, each measured in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.lab.bench.measurement import Measurement
from adamas_cli.lab.bench.target import Target, gguf_file

if TYPE_CHECKING:
    from adamas_cli.settings import ModelSettings

LLAMA, TRANSFORMERS = "llama.cpp", "transformers"
LLAMA_PYTHON = "ADAMAS_LLAMA_PYTHON"  # a Python with llama-cpp-python, if this one lacks it
ALL_LAYERS = -1  # on the GPU, in llama.cpp's notation


@dataclass(frozen=True)
class Rival:
    """An engine. command: the program that measures it. job: JSON input for this engine only."""

    name: str
    command: list[str]
    job: dict[str, Any]

    def measure(self, job: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Measurement]:
        """Its measurements as they arrive. job: input common to all engines. Raises AdamasError if it fails.
        The process is killed if the caller stops early.
        """
        for record in run_child(self.name, self.command, {**job, **self.job}, environment):
            yield Measurement(engine=self.name, attention="full", **record)


def find_rival(name: str, target: Target, options: ModelSettings) -> Rival:
    """The engine of this name. Raises UsageError if it is unknown, not installed or cannot read the model."""
    if name == TRANSFORMERS:
        # -P: nothing may be imported from the current folder.
        command = [sys.executable, "-P", "-m", "adamas_cli.lab.bench.transformers_child"]
        dtype = str(target.dtype).removeprefix("torch.")
        return Rival(name, command, {**target.origin, "device": str(target.device), "dtype": dtype})
    if name == LLAMA:
        if target.directory is None:
            raise UsageError("`vs` llama.cpp reads a .gguf file, and `shape` has none: leave out one of them")
        gguf = gguf_file(options)
        script = Path(__file__).with_name("llama_child.py")
        layers = ALL_LAYERS if target.device.type == "cuda" else 0
        return Rival(name, [llama_python(), str(script)], {"gguf": str(gguf), "gpu_layers": layers})
    raise UsageError(f"`vs` {name}: choose from {LLAMA}, {TRANSFORMERS}")


def run_child(
    name: str, command: list[str], job: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The JSON objects that a program prints, one per line, given a job as JSON on stdin.

    Raises AdamasError if it ends with an error; its stderr is shown.
    """
    # A separate session: Ctrl-C reaches only this process, which ends the other without a traceback.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=dict(environment),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError), process.stdin:  # it has already ended; its exit code is checked below
            process.stdin.write(json.dumps(job))
        for line in process.stdout:
            if line.startswith("{"):  # libraries print other lines too
                yield json.loads(line)
        if code := process.wait():
            raise AdamasError(f"{name} stopped with exit code {code}; see its messages above")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def llama_python() -> str:
    """A Python that has llama-cpp-python. Raises UsageError."""
    chosen = os.environ.get(LLAMA_PYTHON)
    if chosen is None:
        if find_spec("llama_cpp") is not None:
            return sys.executable
        raise UsageError(
            "`vs` llama.cpp needs llama-cpp-python, which is not installed: pip install llama-cpp-python "
            f"(or name another Python that has it in {LLAMA_PYTHON})"
        )
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('llama_cpp') is None)"
    try:
        absent = subprocess.run(
            [chosen, "-c", code], stdin=subprocess.DEVNULL, capture_output=True
        ).returncode
    except OSError as error:
        raise UsageError(f"{LLAMA_PYTHON}={chosen}: {error.strerror}") from None
    if absent:
        raise UsageError(
            f"{LLAMA_PYTHON}={chosen} has no llama-cpp-python: {chosen} -m pip install llama-cpp-python"
        )
    return chosen
