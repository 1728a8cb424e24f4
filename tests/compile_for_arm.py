"""Compiles every kernel for Arm CPUs on any machine, without running one; prints as JSON, for each function,
the first bytes of its objects and the instructions that its code calls by name.

    python tests/compile_for_arm.py [FORMAT ...]

Before numba is imported, everything is set as on an Arm machine: our own choices, LLVM's target, and the
features of ADAMAS_CPU's level `dotprod`. FORMAT: a weight format whose products are compiled, such as Q4_K.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from contextlib import nullcontext
from functools import cache

from adamas_kernels import levels
from llvmlite import binding

TRIPLES = ("aarch64-unknown-linux-gnu", "arm64-apple-darwin")
NAMED = re.compile(r"@llvm\.((?:x86|aarch64|arm)\.[\w.]+)")  # instructions of one processor family

platform.machine = lambda: "aarch64"
levels.host_features = lambda: levels.levels()["dotprod"].features
os.environ[levels.VARIABLE] = "dotprod"
os.environ["NUMBA_OPT"] = "0"  # instructions are still selected, in half the time
binding.initialize_all_targets()
binding.initialize_all_asmprinters()
binding.get_process_triple = lambda: TRIPLES[0]

from adamas_kernels.cpu import build  # noqa: E402
from adamas_kernels.cpu.floats import Bfloat16, Bytes, Float16, Float32, HalfBytes  # noqa: E402
from numba.core import codegen  # noqa: E402

_modules: list[str] = []  # LLVM code of all functions, each with the functions it inlines
# Code compiled here cannot be loaded into this process.
codegen.JITCPUCodegen._add_module = lambda self, module: _modules.append(str(module))
codegen.JITCPUCodegen.set_env = lambda self, name, env: None
build._kept = lambda function: nullcontext(False)  # no reads from or writes to the disk


def point_to_nothing(library: codegen.JITCodeLibrary, name: str) -> int:
    """Stands in for the address of compiled code."""
    library._ensure_finalized()
    return 1


codegen.JITCodeLibrary.get_pointer_to_function = point_to_nothing


def compile_all(formats: list[str]) -> None:
    """Every stage, for the number formats of a model on such a CPU."""
    from adamas_kernels.cpu.between import build_gate_rows, build_norm_rows, build_rotate_rows
    from adamas_kernels.cpu.dense import build_dense
    from adamas_kernels.cpu.encode import build_encode
    from adamas_kernels.cpu.inner import build_inner
    from adamas_kernels.cpu.joined import build_joined
    from adamas_kernels.cpu.mixture import build_mixture, build_route
    from adamas_kernels.cpu.multiply import build_multiply
    from adamas_kernels.cpu.norm_rope import build_norm
    from adamas_kernels.cpu.prefill import build_flash
    from adamas_kernels.cpu.product import available_forms
    from adamas_kernels.cpu.quantize import build_quantize
    from adamas_kernels.cpu.reading import build_reading
    from adamas_kernels.cpu.rounding import build_round
    from adamas_kernels.cpu.rows import build_product, build_unpack
    from adamas_kernels.cpu.step import build_stages, build_tally
    from adamas_kernels.cpu.strips import build_strips
    from adamas_kernels.cpu.tasks import build_member
    from adamas_kernels.cpu.tile import form_of

    number = Float32()
    for make_rows in (build_gate_rows, build_norm_rows, build_rotate_rows):
        make_rows(number)
        make_rows(Bfloat16())
    for make in (
        build_inner,
        build_joined,
        build_member,
        build_mixture,
        build_multiply,
        build_norm,
        build_round,
        build_route,
        build_tally,
    ):
        make()
    build_dense(number, Bfloat16(), Bfloat16(), 7)
    build_dense(number, Bytes(), HalfBytes(), 9)
    build_encode(number)
    build_flash(number, number, form_of(number, number))
    build_flash(number, Float16(), form_of(number, Float16()))
    build_quantize(number)
    build_reading(number, Float16(), form_of(number, Float16()))
    build_stages(available_forms()[0], number, number, number)
    for kind in formats:
        build_product(kind)
        build_strips(kind)
        build_unpack(kind, number)


@cache
def machine_of(triple: str) -> binding.TargetMachine:
    """Emits code of the level for a target."""
    level = levels.levels()["dotprod"]
    features = level.environment["NUMBA_CPU_FEATURES"]
    return binding.Target.from_triple(triple).create_target_machine(cpu=level.cpu, features=features, opt=0)


def emit(code: str, triple: str) -> bytes:
    """The object that LLVM makes from a module for a target."""
    machine = machine_of(triple)
    module = binding.parse_assembly(re.sub(r'target triple = ".*"', f'target triple = "{triple}"', code))
    module.data_layout = str(machine.target_data)
    return machine.emit_object(module)


def tell(code: str) -> dict[str, object]:
    """What is printed about a module. Both systems share instructions, so only stages are built for macOS."""
    name = re.search(r"ModuleID = '(.*)'", code)[1]
    triples = TRIPLES if "_task" in name else TRIPLES[:1]
    return {
        "name": name,
        "named": sorted(set(NAMED.findall(code))),
        "objects": [emit(code, triple)[:4].hex() for triple in triples],
    }


if __name__ == "__main__":
    compile_all(sys.argv[1:])
    print(json.dumps([tell(code) for code in _modules]))
