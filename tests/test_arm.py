"""CPUs of Arm, and macOS: kernels compile for them, and what differs there is met; nothing here runs on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ELF, MACH_O = "7f454c46", "cffaedfe"  # how objects of Linux and of macOS begin


def test_every_kernel_compiles_for_arm_without_instructions_of_x86() -> None:
    program = Path(__file__).with_name("compile_for_arm.py")
    done = subprocess.run([sys.executable, program, "Q4_K"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    functions = json.loads(done.stdout)
    assert all(function["objects"] == [ELF, MACH_O] for function in functions)
    assert {name for function in functions for name in function["named"]} == {
        "aarch64.hint",
        "aarch64.neon.sdot.v4i32.v16i8",
    }
    compiled = {function["name"] for function in functions}
    stages = ("enter", "estimate", "threshold", "candidates", "attend", "merge", "encode", "pack", "inner")
    assert {f"{stage}_task" for stage in stages} <= {name.rpartition(".")[2] for name in compiled}
