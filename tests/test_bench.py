"""`adamas bench --kernels`, once through the installed command, and how it finds the break-even."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adamas_kernels.contract import SparseSettings
from adamas_kernels.torch.backend import TorchBackend

from adamas_cli.lab.bench import dense, kernels
from adamas_cli.lab.bench.kernels import KernelBench, Shape

SMALL = ["--kernels", "--heads", "4/2x64", "--len", "1k,300", "--device", "cpu"]


def test_json_lines_hold_the_machine_and_a_row_for_each_length():
    command = [str(Path(sys.executable).parent / "adamas"), "bench", *SMALL]
    command += ["--no-break-even", "--format", "jsonl", "--budget", "32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    machine, first, second = map(json.loads, done.stdout.splitlines())
    assert machine["backend"] == "cpu"
    assert machine["copy_bytes_per_s"] > 1e8
    assert [first["context"], second["context"]] == [1024, 300]
    assert first["shape"] == "4/2x64"
    assert first["budget"] == 32
    assert first["ratio"] == pytest.approx(first["dense"] / first["step"])
    assert first["dense_kernel"] in ("sdpa", "products")
    assert "no triton: the model is on cpu" in done.stderr


def test_the_table_is_markdown_and_ends_with_the_break_even(bench):
    code, out, err = bench(*SMALL, "--scorer", "manhattan", "--dtype", "float32")
    assert code == 0, err
    lines = out.splitlines()
    assert "manhattan, budget 128, float32" in lines[0]
    assert [len(line.split("|")) for line in lines[2:6]] == [9] * 4
    assert lines[-1].startswith("4/2x64: a sparse step is faster ")


def test_csv_has_one_line_for_each_row(bench):
    _, out, _ = bench(*SMALL, "--no-break-even", "--format", "csv", "--backend", "torch")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["context"], row["backend"]) for row in rows] == [("1024", "torch"), ("300", "torch")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to measure, for example: adamas bench --kernels"),
        (["--kernels", "--heads", "5/2x64"], "5 is not a multiple of 2"),
        (["--kernels", "--heads", "5"], "such as 32/8x128"),
        (["--kernels", "--len", "many"], "'many' is not a length"),
        (["--kernels", "--backend", "triton", "--device", "cpu"], "the triton backend cannot run"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, bench):
    code, _, err = bench(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("step", "each_token", "expected"),
    [(3000, 1, 3000), (100, 1, 512), (1e9, 1, None), (4096, 1, 4096)],
)
def test_the_break_even_lies_where_both_take_the_same_time(step, each_token, expected, monkeypatch):
    """Full attention takes `each_token` microseconds a token, and a sparse step `step`."""

    class Timed(KernelBench):
        def _layer(self, shape, length):
            return length

        def _call(self, shape, queries, layers, **stages):
            return None

    monkeypatch.setattr(kernels, "fastest", lambda q, layers, length, clock: (each_token * length, "made up"))
    monkeypatch.setattr(kernels, "microseconds", lambda call, device: step * kernels.LAYERS)
    timed = Timed(TorchBackend(), torch.device("cpu"), torch.float32, SparseSettings(), "", 1.0)
    found = timed.break_even(Shape(4, 2, 64))
    assert found == (None if expected is None else pytest.approx(expected, rel=0.001))


def test_a_dense_kernel_that_refuses_a_shape_is_left_out(monkeypatch):
    def refuse():
        raise RuntimeError("no\nmore")

    pairs = [("broken", refuse), ("works", lambda: None)]
    monkeypatch.setattr(dense, "dense_kernels", lambda *_: iter(pairs))
    clock = lambda run, device: run() or 8.0  # noqa: E731
    assert dense.fastest(torch.zeros(1), [None, None], 5, clock) == (4.0, "works")
    pairs.pop()
    with pytest.raises(RuntimeError, match=r"broken: no$"):
        dense.fastest(torch.zeros(1), [None], 5, clock)
