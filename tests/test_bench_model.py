"""`adamas bench --len` on tiny random models, and beside made-up other engines."""

from __future__ import annotations

import csv
import io
import json
import os
import sys

import pytest
import typer
from told import raises_told

from adamas_cli.commands.bench.shared import parse_batches, parse_lengths
from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.lab.bench import clock, contention, rivals
from adamas_cli.lab.bench.measurement import NOTHING, Measurement, Rows
from adamas_cli.lab.bench.model import QUESTION, agreement, tokens_needed
from adamas_cli.lab.bench.rivals import run_child

SMALL = ["--device", "cpu", "--quantization", "none", "--dtype", "float32", "-n", "3", "-r", "2"]


@pytest.fixture
def text(tmp_path):
    """More tokens than any test needs, one per byte."""
    path = tmp_path / "text.txt"
    path.write_text("It is a truth universally acknowledged. " * 20, encoding="utf-8")
    return path


def fake_engine(tmp_path, monkeypatch, lines):
    """Makes `--vs llama.cpp` run a script that keeps its job and prints these lines."""
    script = tmp_path / "engine.py"
    job = tmp_path / "job.json"
    script.write_text(f"import sys\nopen({str(job)!r}, 'w').write(sys.stdin.read())\nprint({lines!r})\n")
    fake = rivals.Rival("llama.cpp", [sys.executable, str(script)], {"gguf": "model.gguf"})
    monkeypatch.setattr("adamas_cli.lab.bench.rivals.find_rival", lambda *_: fake)
    return job


def json_lines(out):
    machine_line, *rows = map(json.loads, out.splitlines())
    return machine_line, rows


def test_rows_have_the_names_of_llama_bench(bench):
    code, out, err = bench("--shape", "tiny", "--len", "64-200", *SMALL, "--format", "jsonl")
    assert code == 0, err
    about, rows = json_lines(out)
    assert about["copy_bytes_per_s"] == 8e9
    tests = [(row["test"], row["attention"]) for row in rows]
    assert tests == [
        pair
        for length in (64, 128, 200)
        for pair in (
            (f"pp{length}", "full"),
            (f"tg3 @ d{length}", "full"),
            (f"tg3 @ d{length}", "adamas"),
        )
    ]
    prefill, full, sparse = rows[-3:]
    assert (prefill["n_prompt"], prefill["n_gen"], prefill["n_depth"]) == (200, 0, 0)
    assert (sparse["n_prompt"], sparse["n_gen"], sparse["n_depth"]) == (0, 3, 200)
    assert sparse["ratio"] == pytest.approx(sparse["avg_ts"] / full["avg_ts"])
    assert full["ratio"] == 1.0
    assert prefill["ratio"] is None
    assert all(len(row["samples_ts"]) == 2 for row in rows)
    assert sparse["avg_ts"] == pytest.approx(sum(sparse["samples_ts"]) / 2)
    assert (sparse["budget"], sparse["backend"]) == (256, "cpu")
    assert (full["budget"], full["backend"]) == (None, None)
    assert sparse["agreement"] is None  # random tokens
    assert 0 < sparse["ttft_s"] < 60
    peaks = [row["peak_memory_bytes"] for row in rows]
    assert peaks == sorted(peaks)
    common = {"engine": "adamas", "model": "tiny", "dtype": "float32", "text": None}
    assert all(common.items() <= row.items() for row in rows)
    assert {"torch", "adamas", "device", "features", "threads", "others_cores"} <= rows[0].keys()
    assert "200 tokens: decoding" in err


def test_a_sparse_prefill_stands_beside_a_dense_one(bench, monkeypatch):
    monkeypatch.setattr("adamas_cli.engine.reading.LEAST_SPARSELY", 128)
    code, out, err = bench("--shape", "tiny", "--len", "200", *SMALL, "--read", "sparse", "--format", "jsonl")
    assert code == 0, err
    _, (dense, sparse, *decodes) = json_lines(out)
    assert [(row["test"], row["attention"]) for row in (dense, sparse)] == [
        ("pp200", "full"),
        ("pp200", "sparse"),
    ]
    assert sparse["ratio"] == pytest.approx(sparse["avg_ts"] / dense["avg_ts"])
    assert 0 < sparse["blocks_computed"] <= 1
    assert dense["blocks_computed"] is None
    assert [row["attention"] for row in decodes] == ["full", "adamas"]
    assert "200 tokens: reading sparsely" in err


def test_answers_that_decode_together_stand_beside_one(bench):
    packed = [
        "--shape",
        "tiny",
        "--len",
        "200",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "-n",
        "3",
        "-r",
        "1",
    ]
    code, out, err = bench(*packed, "--quantization", "packed", "--batch", "1,3", "--format", "jsonl")
    assert code == 0, err
    _, rows = json_lines(out)
    tests = [(row["test"], row["attention"], row["n_sequences"]) for row in rows[-2:]]
    assert tests == [("tg3 x3 @ d200", "full", 3), ("tg3 x3 @ d200", "adamas", 3)]
    for alone, together in zip(rows[1:3], rows[3:], strict=True):
        assert together["ratio_to_one"] == pytest.approx(together["avg_ts"] / alone["avg_ts"])
        assert alone["ratio_to_one"] is None
    _, out, _ = bench(*packed, "--quantization", "packed", "--batch", "2", "--attn", "full")
    assert " | ratio to one | " in out
    _, out, err = bench(*packed, "--quantization", "none", "--batch", "2", "--format", "jsonl")
    assert "one after the other" in err
    assert all(row["n_sequences"] == 1 for row in json_lines(out)[1])


def test_batches_are_numbers():
    assert parse_batches("4, 1,4") == [1, 4]
    for wrong in ("0", "a", "4-8", ""):
        with raises_told(UsageError, "--batch"):
            parse_batches(wrong)


def test_the_table_is_markdown_under_a_line_about_the_machine(bench):
    code, out, err = bench("--shape", "tiny", "--len", "70", *SMALL)
    assert code == 0, err
    about, blank, head, _, *rows = out.splitlines()
    assert about.startswith("tiny; ")
    assert about.endswith("cpu backend; float32; copy 8 GB/s")
    assert blank == ""
    assert head.startswith("| test | attention | tokens/s | ratio to full | first token, s | agreement |")
    assert [row.split(" | ")[0] for row in rows] == ["| pp70", "| tg3 @ d70", "| tg3 @ d70"]
    assert rows[1].split(" | ")[3] == "1.00x"
    assert rows[2].split(" | ")[5] == NOTHING
    assert all(row.endswith(" | random tokens |") for row in rows)


def test_csv_and_json_hold_the_same_rows(bench):
    arguments = ["--shape", "tiny", "--len", "70", *SMALL, "--attn", "full", "--format"]
    _, out, _ = bench(*arguments, "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["test"], row["attention"]) for row in rows] == [("pp70", "full"), ("tg3 @ d70", "full")]
    _, out, _ = bench(*arguments, "json")
    about, *others = json.loads(out)
    assert "test" not in about
    assert [row["test"] for row in others] == ["pp70", "tg3 @ d70"]
    assert rows[0].keys() == others[0].keys() - {"samples_ts"}


def test_rows_tell_how_keys_and_values_are_kept(bench):
    arguments = ["--shape", "tiny", "--len", "70", *SMALL, "--attn", "full"]
    _, out, _ = bench(*arguments, "--cache-dtype", "int8", "--format", "jsonl")
    assert {(row["kv"], row["cache_dtype"]) for row in json_lines(out)[1]} == {(None, "int8")}
    _, out, _ = bench(*arguments, "--cache-dtype", "int8")
    assert out.count("| full, int8 cache |") == 2
    _, out, _ = bench(*arguments)
    assert out.count("| full |") == 2


def test_a_text_gives_agreement(bench, tiny_model, text):
    arguments = ["-m", tiny_model, "--text", text, "--len", "300", *SMALL, "--format", "jsonl"]
    code, out, err = bench(*arguments, "--budget", "1000")
    assert code == 0, err
    _, (_, full, sparse) = json_lines(out)
    assert sparse["agreement"] == 1.0  # the budget is the whole context
    assert full["agreement"] is None
    assert sparse["budget"] == 1000
    assert sparse["text"] == "text.txt"
    _, out, _ = bench(*arguments[:-2], "--attn", "full")
    assert all(line.endswith(" | text.txt |") for line in out.splitlines()[4:])


def test_agreement_leaves_out_the_first_token():
    assert agreement([1, 2, 3, 4, 5], [9, 2, 3, 0, 0]) == 0.5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("4k", [4096]),
        ("16k,4k,4k", [16384, 4096]),
        ("4k-32k", [4096, 8192, 16384, 32768]),
        ("1k-3000, 512", [1024, 2048, 3000, 512]),
    ],
)
def test_lengths_are_a_list_of_lengths_and_ranges(given, expected):
    assert parse_lengths(given) == expected


@pytest.mark.parametrize("given", ["8k-4k", "0", "4k,0"])
def test_impossible_lengths_are_refused(given):
    with raises_told(UsageError, match="--len"):
        parse_lengths(given)


@pytest.mark.parametrize("given", ["", "4k-", "-4k", "many", "1-2-3"])
def test_what_is_no_length_is_refused(given):
    with pytest.raises(typer.BadParameter, match="is not a length"):
        parse_lengths(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "round", "--len", "64"], "--shape round: choose from tiny"),
        (["--shape", "tiny", "--len", "64", "--text", "a"], "--text needs a tokenizer"),
        (["--shape", "tiny", "--len", "64", "--vs", "llama.cpp"], "--vs llama.cpp reads a .gguf file"),
        (["--shape", "tiny", "--len", "64", "--vs", "ollama"], "choose from llama.cpp, transformers"),
        (["--shape", "tiny", "--len", "64", "--plot", "x.gif"], "ends with .svg or .png"),
        (["--shape", "tiny", "--len", "64", "--plot", "/nowhere/x.svg"], "there is no folder /nowhere"),
        (["--shape", "tiny"], "name what to measure"),
        (["--kernels", "--shape", "tiny"], "--shape does not work with --kernels"),
        (["--heads", "4/2x64", "--len", "64"], "--heads does not work with --len without --kernels"),
    ],
)
def test_mistakes_are_told_in_a_line(bench, arguments, message):
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_over_the_context_is_told_with_the_numbers(bench, tiny_model):
    code, _, err = bench("-m", tiny_model, "--len", "64,4k", *SMALL)
    assert code == 4
    assert f"needs {tokens_needed(4096, 3):,} tokens, and the context of {tiny_model} is 4,096" in err


def test_a_short_text_is_told_with_its_tokens(bench, tiny_model, text):
    code, _, err = bench("-m", tiny_model, "--text", text, "--len", "1k", *SMALL)
    assert code == 2
    assert f"it has {len(text.read_text()):,} tokens, and {tokens_needed(1024, 3):,} are needed" in err


def test_llama_cpp_needs_a_gguf_file(bench, tiny_model):
    code, _, err = bench("-m", tiny_model, "--len", "64", "--vs", "llama.cpp")
    assert code == 2
    assert f"{tiny_model} is neither" in err


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (None, "pip install llama-cpp-python"),
        ("/nowhere/python", "/nowhere/python: No such file"),
        (sys.executable, "has no llama-cpp-python"),
    ],
)
def test_llama_cpp_that_is_not_installed_is_told(monkeypatch, python, message):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    if python is None:
        monkeypatch.delenv(rivals.LLAMA_PYTHON, raising=False)
    else:
        monkeypatch.setenv(rivals.LLAMA_PYTHON, python)
    with pytest.raises(UsageError, match=message) as told:
        rivals.llama_python()
    assert "\n" not in told.value.message


def test_another_engine_is_compared_on_the_same_tokens(bench, tiny_model, text, tmp_path, monkeypatch):
    lines = "\n".join(
        json.dumps({"length": 80, "generated": count, "seconds": [2.0], "peak_memory_bytes": 7})
        for count in (0, 3)
    )
    told = fake_engine(tmp_path, monkeypatch, f"noise of a library\n{lines}")
    arguments = ["-m", tiny_model, "--text", text, "--len", "80", *SMALL, "--vs", "llama.cpp"]
    picture = tmp_path / "speeds.svg"
    code, out, err = bench(*arguments, "--format", "jsonl", "--plot", picture)
    assert code == 0, err
    _, rows = json_lines(out)
    assert [row["engine"] for row in rows] == ["llama.cpp"] * 2 + ["adamas"] * 3
    assert rows[0]["avg_ts"] == 40
    assert rows[1]["avg_ts"] == 1.5
    assert [row["vs_llama_cpp"] for row in rows[:2]] == [None, None]
    for row, other in zip(rows[2:], (40, 1.5, 1.5), strict=True):
        assert row["vs_llama_cpp"] == pytest.approx(row["avg_ts"] / other)
    job = json.loads(told.read_text())
    assert job["gguf"] == "model.gguf"
    assert (job["lengths"], job["generated"], job["repeats"]) == ([80], 3, 2)
    assert bytes(text.read_bytes()[: len(job["ids"])]).decode().startswith("It is a truth")
    assert len(job["ids"]) == tokens_needed(80, 3) > 80 + QUESTION
    drawn = picture.read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    code, _, _ = bench(*arguments, "--plot", picture.with_suffix(".png"))
    assert code == 0
    assert picture.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_equal_rows_give_equal_pictures(tmp_path):
    from adamas_cli.lab.bench.picture import draw

    rows = Rows({"model": "m", "device": "d"}, ["llama.cpp"], 1e9)
    measured = [
        Measurement(engine, "full", 64 * 2**step, generated, [0.5, 0.6], 1)
        for engine in ("llama.cpp", "adamas")
        for step in range(3)
        for generated in (0, 8)
    ]
    made = [rows.row(one, 0.0) for one in measured]
    for name in ("one.svg", "two.svg"):
        draw(made, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_an_engine_that_fails_ends_the_run(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import json\nprint('{}')\nraise SystemExit(3)\n")
    lines = run_child("some engine", [sys.executable, str(script)], {}, os.environ)
    assert next(lines) == {}
    with pytest.raises(AdamasError, match="some engine stopped with exit code 3"):
        next(lines)


def test_an_engine_is_killed_when_the_run_is_left(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(
        "import json, os, time\nprint(json.dumps({'pid': os.getpid()}), flush=True)\ntime.sleep(600)\n"
    )
    lines = run_child("some engine", [sys.executable, str(script)], {}, os.environ)
    pid = next(lines)["pid"]
    lines.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_transformers_is_measured_in_a_process_of_its_own(bench):
    arguments = ["--shape", "tiny", "--len", "64", *SMALL, "--vs", "transformers", "--format", "jsonl"]
    code, out, err = bench(*arguments)
    assert code == 0, err
    _, rows = json_lines(out)
    assert [(row["engine"], row["test"]) for row in rows[:2]] == [
        ("transformers", "pp64"),
        ("transformers", "tg3 @ d64"),
    ]
    assert rows[2]["vs_transformers"] == pytest.approx(rows[2]["avg_ts"] / rows[0]["avg_ts"])


def test_only_other_programs_count_as_contention(monkeypatch):
    """Of 10 seconds on 2 cores, 16 were busy: 5 in this process, 3 in a live child, 2 in one that ended."""
    from collections import namedtuple
    from types import SimpleNamespace

    machine_times = namedtuple("machine_times", "user system idle guest")
    states = iter(
        [
            (100.0, machine_times(50.0, 10.0, 70.0, 5.0), (1.0, 1.0, 0.0), 0.0),
            (110.0, machine_times(64.0, 12.0, 74.0, 9.0), (5.0, 2.0, 2.0), 3.0),
            (110.1, machine_times(65.0, 12.0, 74.0, 9.0), (5.0, 2.0, 2.0), 3.0),
        ]
    )

    class Process:
        def cpu_times(self):
            user, system, ended = self.own
            return SimpleNamespace(user=user, system=system, children_user=ended, children_system=0.0)

        def children(self, recursive):
            times = SimpleNamespace(user=self.child, system=0.0)
            return [SimpleNamespace(cpu_times=lambda: times)]

    process = Process()

    def cpu_times():
        nonlocal now
        now, times, process.own, process.child = next(states)
        return times

    now = 0.0
    monkeypatch.setattr(contention.psutil, "Process", lambda: process)
    monkeypatch.setattr(contention.psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(contention.time, "monotonic", lambda: now)
    watch = contention.Contention()
    assert watch.cores() == pytest.approx(0.6)
    assert watch.cores() == pytest.approx(0.6)  # too soon to measure again


def test_copies_are_measured_apart(monkeypatch):
    import torch

    assert clock.copy_bandwidth_apart(torch.device("cpu")) > 1e8
