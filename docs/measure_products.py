"""How fast this CPU multiplies a vector, or several, by weights in GGUF block types, read from memory.

    python docs/measure_products.py [KIND ...]

Prints the fastest of many runs over far more weights than caches hold: microseconds, GB/s of the file's
bytes, weights/s, and how many times as long several vectors take together. Runs are so short that other
processes seldom interrupt them. Vectors are rounded beforehand.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from adamas_kernels.blocks import BlockWeight, row_bytes
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.linear import Inputs, products
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.records import STAGES
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.tasks import Program

from adamas_cli.lab.bench.table import markdown_head, markdown_row
from adamas_cli.lab.hardware import device_name
from adamas_cli.machine.threads import use_threads

SHAPES = ((4864, 896), (896, 4864))  # of the default model; rows are padded to whole blocks
KINDS = ("Q5_0", "Q8_0", "Q4_K", "Q6_K", "Q4_0")
MEMORY = 150e6  # bytes of weights
RUN = 6e6  # bytes read per run
ROUNDS = 20
SEVERAL = 4  # vectors


def main(*kinds: str) -> None:
    """Print the table."""
    use_threads(None)
    runner = Runner()
    print(f"{device_name(torch.device('cpu'))}\n")
    print(markdown_head(("type", "weight", "µs", "GB/s", "10⁹ weights/s", f"{SEVERAL} vectors")))
    for kind in kinds or KINDS:
        for rows, columns in SHAPES:
            columns += -columns % FORMATS[kind].numbers
            seconds, together = (fastest(runner, kind, rows, columns, count) for count in (1, SEVERAL))
            rates = (rows * row_bytes(kind, columns) / seconds / 1e9, rows * columns / seconds / 1e9)
            numbers = (f"{seconds * 1e6:.0f}", *(f"{x:.1f}" for x in rates), f"{together / seconds:.2f}x")
            print(markdown_row((kind, f"{rows} x {columns}", *numbers)))


def fastest(runner: Runner, kind: str, rows: int, columns: int, vectors: int) -> float:
    """Seconds of one weight's product with this many vectors."""
    size = rows * row_bytes(kind, columns)
    weights = [
        BlockWeight(kind, torch.randint(0, 256, (rows, size // rows), dtype=torch.uint8), columns)
        for _ in range(int(MEMORY / size))
    ]
    inputs, out = Inputs(runner, torch.randn(vectors, columns)), torch.empty(vectors, rows)
    runner.run(inputs.stage)
    records = [products(runner, [(weight, None, out)], inputs=inputs) for weight in weights]
    function = runner.compiled(build_multiply)
    each = max(1, int(RUN / size))
    programs = [
        Program(
            np.array(
                [
                    (function, int(record["tasks"][0]), record.ctypes.data, *inputs.addresses())
                    for record in records[at : at + each]
                ],
                STAGES,
            )
        )
        for at in range(0, len(records) - each + 1, each)
    ]
    times = []
    for _ in range(ROUNDS):
        for program in programs:
            begun = time.perf_counter()
            runner.run_program(program)
            times.append(time.perf_counter() - begun)
    return min(times) / each


if __name__ == "__main__":
    main(*sys.argv[1:])
