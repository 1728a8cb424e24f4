"""Every Triton kernel compiles for every supported NVIDIA generation, on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# Weight types differ only in how codes are read, and sequences that lie apart in where they are, the same for
# every generation: one gets all of that.
SOME = ["--kinds", "Q4_K,Q6_K", "--no-apart"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("generation", "kinds"), [("80", SOME), ("90", []), ("120", SOME)])
def test_the_kernels_compile_and_do_not_spill(generation, kinds, capsys):
    # In a separate process: here the kernels belong to Triton's interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    command = [sys.executable, ROOT / "docs" / "compile_kernels.py", "--generations", generation, *kinds]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    with capsys.disabled():
        print(f"\n{run.stdout}", end="")
    assert run.returncode == 0, run.stderr[-2000:]
    assert f"| sm_{generation} |" in run.stdout
